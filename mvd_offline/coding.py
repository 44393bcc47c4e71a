"""The store's codecs on tensors: where teachers run is where features are coded, and decoded where the student trains.

The arithmetic is that of `shards.codecs`, to the bit, on any device (but for the matrix products of `klt`, whose sums
devices round in their own order); there are batches of rows here.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from mvd_offline.shards.codecs import INT8_EXPONENTS, INT8_SCALE_BYTES, INT8_STEPS, CodingError, get_codec
from mvd_offline.shards.klt import LIMIT as KLT_LIMIT
from mvd_offline.shards.klt import KltCodec


def encode(features: Tensor, codec: str) -> Tensor:
    """Float32 features (B, N, D) to coded rows (B, rows, columns) in the codec's dtype (bfloat16 as itself).

    Values that the codec cannot hold are not looked for here; `is_finite` finds them.
    """
    if codec == "int8":
        return _encode_int8(features)
    if codec.startswith("klt-"):
        mean, _, projections = _basis(codec, features.device)
        return torch.matmul(features - mean, projections).round().clamp(-KLT_LIMIT, KLT_LIMIT).to(torch.int16)
    return features.to({"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[codec])


def decode(coded: Tensor, codec: str) -> Tensor:
    """Coded rows (B, M + extra rows, columns), as `Store.read_tokens` gives them, to float32 (B, M, D)."""
    if codec == "bfloat16":
        # numpy has no bfloat16: the bits travel as uint16.
        return (coded if coded.dtype == torch.bfloat16 else coded.view(torch.bfloat16)).float()
    if codec == "int8":
        width = coded.shape[-1] - INT8_SCALE_BYTES
        return coded[:, :-1, :width] * _scales(coded) * _powers(coded[:, -1:, :width].int())
    if codec.startswith("klt-"):
        mean, components, _ = _basis(codec, coded.device)
        return torch.matmul(coded.float(), components) + mean
    return coded.float()


@lru_cache(maxsize=16)
def _basis(codec: str, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (D,), components (K, D) and projections (D, K) of a basis, on the device."""
    found = get_codec(codec)
    assert isinstance(found, KltCodec)
    arrays = (found.basis.mean, found.basis.components, found.basis.projections)
    mean, components, projections = (torch.from_numpy(array).to(device) for array in arrays)
    return mean, components, projections


def is_finite(coded: Tensor) -> Tensor:
    """Whether each row (B,) holds finite values only: False where the features, or the codec's rounding, overflowed.

    The integers of codec `klt` do not tell: look at the features.
    """
    if coded.dtype == torch.int16:
        return torch.ones(len(coded), dtype=torch.bool, device=coded.device)
    if coded.dtype == torch.int8:
        return _scales(coded).isfinite().all(dim=(1, 2))
    return coded.isfinite().all(dim=(1, 2))


def coding_errors(features: Tensor, decoded: Tensor) -> Tensor:
    """What coding cost each row: (B, 4) float64, the arguments of `CodingError.of`. See `codecs.measure_error`.

    Not finite where float32 cannot hold the features' squares; those of float64 features always are.
    """
    difference = decoded - features
    squared, moved, along = (
        (first * second).sum(dim=-1).double()
        for first, second in ((features, features), (difference, difference), (difference, features))
    )
    before, after = squared.sqrt(), (squared + 2 * along + moved).clamp_min(0).sqrt()
    tiny = torch.finfo(torch.float64).tiny
    grown = (2 * along + moved) / (before + after).clamp_min(tiny)
    product = 2 * before * after
    missing = torch.where(
        product > 0, (moved - grown**2) / torch.where(product > 0, product, 1.0), (moved > 0).double()
    )
    total = squared.sum(dim=1)
    relative = torch.where(total.isfinite(), moved.sum(dim=1) / total.clamp_min(tiny), torch.nan).sqrt()
    largest = difference.abs().amax(dim=(1, 2)).double()
    return torch.stack([relative, missing.amax(dim=1), missing.mean(dim=1), largest], dim=1)


def as_coding_error(measured: Tensor) -> CodingError:
    """One row of `coding_errors`."""
    return CodingError.of(*measured.tolist())


def _encode_int8(features: Tensor) -> Tensor:
    rows, tokens, width = features.shape
    exponents = _channel_exponents(features)
    levelled = features * _powers(-exponents)[:, None]
    # By a tensor: a division by a number becomes a product with its inverse on a GPU, which is not the same to the bit.
    scales = levelled.abs().amax(dim=2) / torch.full((), float(INT8_STEPS), device=features.device)
    steps = (levelled / torch.where(scales > 0, scales, 1.0)[..., None]).round().clamp(-INT8_STEPS, INT8_STEPS)
    coded = torch.zeros(rows, tokens + 1, width + INT8_SCALE_BYTES, dtype=torch.int8, device=features.device)
    coded[:, :tokens, :width] = steps.to(torch.int8)
    coded[:, :tokens, width:] = scales.contiguous().view(torch.int8).reshape(rows, tokens, INT8_SCALE_BYTES)
    coded[:, tokens, :width] = exponents.to(torch.int8)
    return coded


def _channel_exponents(features: Tensor) -> Tensor:
    """(B, D) int32: the power of two next to the root mean square of each channel's tokens."""
    norms = torch.linalg.vector_norm(features, dim=1, dtype=torch.float64)
    exponents = torch.frexp(norms * norms / max(features.shape[1], 1)).exponent
    nearest = torch.where(norms > 0, exponents >> 1, 0)
    return nearest.clamp(*INT8_EXPONENTS).int()


def _scales(coded: Tensor) -> Tensor:
    """(B, M, 1) float32. Copied, because a view of other bytes must start at a multiple of four."""
    part = coded[:, :-1, -INT8_SCALE_BYTES:]
    return part.clone(memory_format=torch.contiguous_format).view(torch.float32)


def _powers(exponents: Tensor) -> Tensor:
    """2^exponent in float32, exactly: the exponent's bits are set, nothing is computed."""
    return ((exponents + 127) << 23).view(torch.float32)
