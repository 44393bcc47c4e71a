"""Masks: the official counts, and one spatial mask in all slices of a tube."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mvd_offline.errors import UsageError
from mvd_offline.geometry import TokenGrid
from mvd_offline.randomness import KeyedStream
from mvd_offline.video.masking import (
    decoded_tokens,
    draw_decoded,
    draw_mask,
    masked_tokens,
    random_mask,
    tube_mask,
)

GRID = TokenGrid(8, 14, 14)
grids = st.builds(TokenGrid, st.integers(1, 8), st.integers(1, 16), st.integers(1, 16))


def test_a_tube_mask_of_ratio_nine_tenths_leaves_160_of_1568_tokens() -> None:
    mask = tube_mask(GRID, 0.9, KeyedStream(0))
    assert mask.shape == (1568,)
    assert mask.dtype == np.bool_
    assert (~mask).sum() == 160
    assert (mask.reshape(8, 196).sum(axis=1) == 176).all()


def test_a_random_mask_of_ratio_nine_tenths_leaves_157() -> None:
    assert (~random_mask(GRID, 0.9, KeyedStream(0))).sum() == 157


@given(grids, st.floats(0, 1), st.integers(0, 99))
def test_a_tube_is_the_same_in_every_slice(grid: TokenGrid, ratio: float, seed: int) -> None:
    slices = tube_mask(grid, ratio, KeyedStream(seed)).reshape(grid.t, grid.h * grid.w)
    assert (slices == slices[0]).all()


@given(grids, st.floats(0, 1), st.sampled_from(["tube", "random"]), st.integers(0, 99))
def test_a_mask_has_as_many_tokens_as_announced(grid: TokenGrid, ratio: float, kind: str, seed: int) -> None:
    mask = draw_mask(kind, grid, ratio, KeyedStream(seed))  # type: ignore[arg-type]
    assert mask.sum() == masked_tokens(kind, grid, ratio)  # type: ignore[arg-type]


def test_masks_are_a_function_of_their_key() -> None:
    one, same, other = (random_mask(GRID, 0.5, KeyedStream("mask", key)) for key in (1, 1, 2))
    assert (one == same).all()
    assert (one != other).any()


@given(grids, st.floats(0.3, 0.9), st.floats(0.01, 1), st.integers(0, 99))
def test_decoded_tokens_are_as_many_of_the_masked_as_announced(
    grid: TokenGrid, ratio: float, share: float, seed: int
) -> None:
    mask = random_mask(grid, ratio, KeyedStream(seed))
    assume(mask.any())
    decoded = draw_decoded(mask, share, KeyedStream("decoded", seed))
    assert len(decoded) == decoded_tokens(int(mask.sum()), share)
    assert mask[decoded].all()
    assert (np.diff(decoded) > 0).all()


def test_all_masked_tokens_are_decoded_in_raster_order_by_default() -> None:
    mask = random_mask(GRID, 0.9, KeyedStream(0))
    assert (draw_decoded(mask, 1.0, KeyedStream(1)) == np.flatnonzero(mask)).all()


def test_every_masked_token_is_decoded_about_equally_often() -> None:
    mask = np.arange(16) < 12
    counts = np.zeros(16)
    for i in range(2000):
        counts[draw_decoded(mask, 0.5, KeyedStream(i))] += 1
    assert counts[:12].min() > 880
    assert counts[:12].max() < 1120


def test_every_token_is_masked_about_equally_often() -> None:
    total = sum(random_mask(TokenGrid(2, 4, 4), 0.5, KeyedStream(i)).astype(int) for i in range(2000))
    assert total.min() > 880
    assert total.max() < 1120


def test_unknown_kinds_and_ratios_are_refused() -> None:
    with pytest.raises(UsageError, match="allowed: tube, random"):
        masked_tokens("cube", GRID, 0.5)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="between 0 and 1"):
        masked_tokens("tube", GRID, 1.5)
