"""What some tokens of a clip look at, in an encoder's last block."""

from __future__ import annotations

from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvd_offline.errors import UsageError
from mvd_offline.geometry import TokenGrid
from mvd_offline.models.teachers import ImageTeacher, Teacher
from mvd_offline.models.vit import Attention


class Place(NamedTuple):
    """A token: its slice in time, its row and its column."""

    slice: int
    row: int
    column: int

    def __str__(self) -> str:
        return f"{self.slice},{self.row},{self.column}"


def require_inside(place: Place, grid: TokenGrid, name: str) -> None:
    """Refuse a token that a model does not have.

    Raises:
        UsageError: with what is allowed.
    """
    if not (0 <= place.slice < grid.t and 0 <= place.row < grid.h and 0 <= place.column < grid.w):
        raise UsageError(
            f"--token {place}: the token grid of {name} is {grid} (slices, rows, columns), so that 0,0,0 to "
            f"{grid.t - 1},{grid.h - 1},{grid.w - 1} are allowed."
        )


class LastAttention:
    """Attention of a teacher's last block in its next forward pass, which is to be run inside this context.

    >>> with LastAttention(teacher) as attention:   # doctest: +SKIP
    ...     features = teacher(video)
    >>> attention.of(Place(0, 7, 7))                # doctest: +SKIP
    """

    def __init__(self, teacher: Teacher) -> None:
        self._teacher, self._attention = teacher, _last_attention(teacher)
        self._seen: list[Tensor] = []

    def __enter__(self) -> LastAttention:
        self._hook = self._attention.register_forward_pre_hook(self._keep)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hook.remove()

    def _keep(self, module: torch.nn.Module, given: tuple[Any, ...]) -> None:
        self._seen = [given[0]]

    @torch.no_grad()
    def of(self, place: Place) -> NDArray[np.float32]:
        """What one token of the single clip that was shown looks at: weights, mean over heads, float32 (t, h, w).

        An image teacher looks at one frame alone: its other slices are 0, and what its token gives to the class token
        is left out.
        """
        (x,) = self._seen
        return _weights(self._attention, x, place, self._teacher)


def _weights(attention: Attention, x: Tensor, place: Place, teacher: Teacher) -> NDArray[np.float32]:
    grid = teacher.grid
    inside, found = place.row * grid.w + place.column, np.zeros((grid.t, grid.h, grid.w), np.float32)
    if isinstance(teacher, ImageTeacher):
        # Frames are a batch of images, each with its class token first.
        query = torch.tensor([1 + inside], device=x.device)
        own = attention.weights(x[place.slice : place.slice + 1], query)[0, :, 0, 1:]
        found[place.slice] = own.mean(dim=0).reshape(grid.h, grid.w).cpu().numpy()
        return found
    query = torch.tensor([place.slice * grid.tokens_per_slice + inside], device=x.device)
    found[:] = attention.weights(x, query)[0, :, 0].mean(dim=0).reshape(grid.t, grid.h, grid.w).cpu().numpy()
    return found


def _last_attention(teacher: Teacher) -> Attention:
    blocks = teacher.encoder.get_submodule("blocks")
    assert isinstance(blocks, torch.nn.ModuleList)
    found = blocks[-1].get_submodule("attn")
    assert isinstance(found, Attention)
    return found
