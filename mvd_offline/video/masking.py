"""Which tokens the student does not see (MVD official code; paper section 3)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mvd_offline.errors import UsageError
from mvd_offline.geometry import TokenGrid
from mvd_offline.randomness import KeyedStream

MaskKind = Literal["tube", "random", "none"]


def masked_tokens(kind: MaskKind, grid: TokenGrid, ratio: float) -> int:
    """Masked tokens of a clip: 1408 of 1568 for tube masks of ratio 0.9 on 8 x 14 x 14."""
    if not 0.0 <= ratio <= 1.0:
        raise UsageError(f"a mask's ratio is a share between 0 and 1, not {ratio}")
    if kind == "tube":
        return grid.t * int(ratio * grid.tokens_per_slice)
    if kind == "random":
        return int(ratio * grid.num_tokens)
    if kind == "none":
        return 0
    raise UsageError(f"mask kind {kind!r} is unknown; allowed: tube, random, none")


def tube_mask(grid: TokenGrid, ratio: float, stream: KeyedStream) -> NDArray[np.bool_]:
    """bool (N,), True = masked; the same `int(ratio * h * w)` positions in each of the t slices."""
    masked = masked_tokens("tube", grid, ratio) // grid.t
    return np.tile(_draw(grid.tokens_per_slice, masked, stream), grid.t)


def random_mask(grid: TokenGrid, ratio: float, stream: KeyedStream) -> NDArray[np.bool_]:
    """bool (N,), True = masked; `int(ratio * N)` positions anywhere in the clip."""
    return _draw(grid.num_tokens, masked_tokens("random", grid, ratio), stream)


def draw_mask(kind: MaskKind, grid: TokenGrid, ratio: float, stream: KeyedStream) -> NDArray[np.bool_]:
    """`tube_mask` or `random_mask` by its name in a recipe; `none` hides nothing."""
    if kind == "none":
        return np.zeros(grid.num_tokens, np.bool_)
    return tube_mask(grid, ratio, stream) if kind == "tube" else random_mask(grid, ratio, stream)


def decoded_tokens(masked: int, share: float) -> int:
    """How many of the masked tokens a student predicts: `int(share * masked)`, and at least one."""
    return max(1, int(share * masked))


def draw_decoded(mask: NDArray[np.bool_], share: float, stream: KeyedStream) -> NDArray[np.int64]:
    """The masked tokens that a student predicts, ascending: all of them, or a random choice of that share."""
    masked = np.flatnonzero(mask)
    if share == 1.0:
        return masked
    chosen = stream.permutation(len(masked))[: decoded_tokens(len(masked), share)]
    return masked[np.sort(chosen)]


def _draw(tokens: int, masked: int, stream: KeyedStream) -> NDArray[np.bool_]:
    mask = np.zeros(tokens, np.bool_)
    mask[stream.permutation(tokens)[:masked]] = True
    return mask
