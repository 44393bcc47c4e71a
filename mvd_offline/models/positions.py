"""The three fixed position tables of MVD and its teachers; all are computed in float64 and rounded once to float32.

Tables are made on the CPU whatever the default device is, so that a model built on the `meta` device still has them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from mvd_offline.errors import UsageError
from mvd_offline.geometry import TokenGrid

Positions: TypeAlias = Literal["sincos_3d", "interleaved_1d"]
"""`sincos_3d`: MVD's students and classifiers. `interleaved_1d`: VideoMAE."""


def sincos_3d(dim: int, grid: TokenGrid) -> Tensor:
    """MVD's table: temporal part of width D/4, column 3D/8, row 3D/8, each all sines and then all cosines.

    Args:
        dim: width D; a multiple of 16.
        grid: tokens, flattened in t, h, w order.

    Returns:
        float32 (N, D).
    """
    _require_multiple(dim, 16, "the 3-D sine-cosine table")
    t, h, w = torch.meshgrid(*(_arange(size) for size in (grid.t, grid.h, grid.w)), indexing="ij")
    spatial = dim // 16 * 6
    parts = [_sincos(t.flatten(), dim // 4), _sincos(w.flatten(), spatial), _sincos(h.flatten(), spatial)]
    return torch.cat(parts, dim=1).float()


def sincos_2d(dim: int, h: int, w: int, cls: bool = False) -> Tensor:
    """MAE's table: column part of width D/2, then row part of width D/2; the class token's row is zero.

    Returns:
        float32 (h * w, D), or (1 + h * w, D) with the class token first.
    """
    _require_multiple(dim, 4, "the 2-D sine-cosine table")
    rows, columns = torch.meshgrid(_arange(h), _arange(w), indexing="ij")
    table = torch.cat([_sincos(columns.flatten(), dim // 2), _sincos(rows.flatten(), dim // 2)], dim=1)
    if cls:
        table = torch.cat([table.new_zeros(1, dim), table])
    return table.float()


def interleaved_1d(dim: int, positions: int) -> Tensor:
    """VideoMAE's table over the flat token index p: dims 2k and 2k+1 are sine and cosine of p / 10000^(2k/D).

    Returns:
        float32 (positions, D).
    """
    _require_multiple(dim, 2, "the interleaved table")
    angles = _arange(positions)[:, None] * _frequencies(dim // 2)
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1).float()


@lru_cache(maxsize=32)
def position_table(kind: Positions, dim: int, grid: TokenGrid) -> Tensor:
    """The named table for a token grid, shared between callers: read it, never write to it.

    Returns:
        float32 (1, N, D) on the CPU.
    """
    if kind == "sincos_3d":
        return sincos_3d(dim, grid)[None]
    if kind == "interleaved_1d":
        return interleaved_1d(dim, grid.num_tokens)[None]
    raise UsageError(f"unknown positions {kind!r}; known: sincos_3d, interleaved_1d")


def _sincos(position: Tensor, dim: int) -> Tensor:
    angles = position[:, None] * _frequencies(dim // 2)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _frequencies(count: int) -> Tensor:
    return torch.pow(torch.tensor(10000.0, dtype=torch.float64, device="cpu"), -_arange(count) / count)


def _arange(count: int) -> Tensor:
    return torch.arange(count, dtype=torch.float64, device="cpu")


def _require_multiple(dim: int, factor: int, what: str) -> None:
    if dim < factor or dim % factor:
        raise UsageError(f"{what} needs a width that is a multiple of {factor}, not {dim}")
