"""How the features of one view become bytes, and back.

A payload is one array, little-endian, C order, nothing around it: the tokens in t, h, w order, channels innermost.

| codec    | a token of D channels        | worst error of a value                                          |
|----------|------------------------------|-----------------------------------------------------------------|
| float32  | D binary32                   | 0 (exact)                                                       |
| float16  | D binary16                   | 2^-11 relative; below 6.1e-5 at most 3.0e-8; largest 65504      |
| bfloat16 | D upper halves of binary32   | 2^-8 relative                                                   |
| int8     | D integers, a binary32 scale | half a step: scale * 2^(exponent of the channel) / 2            |

float16 and bfloat16 round to nearest, ties to even. An int8 payload has one row more than tokens, with an exponent for
each channel: the features before a ViT's final norm have a few channels that are 10 to 100 times the rest, and a scale
for each token alone would leave the rest a few steps. Exponents are powers of two, so that decoding is exact
arithmetic and gives the same bits everywhere. What the rounding cost is measured and recorded for every row.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from mvd_offline.shards.errors import CodecError
from mvd_offline.shards.jpeg import JpegCodec
from mvd_offline.shards.klt import KltCodec

if sys.byteorder != "little":
    raise ImportError("mvd_offline.shards stores little-endian values and runs on little-endian machines only")

BFLOAT16_NAN: Final = 0x7FC0

INT8_STEPS: Final = 127
"""Values of an int8 token lie in -127 .. 127 steps of its scale."""
INT8_SCALE_BYTES: Final = 4
"""A binary32 after the D integers of a token."""
INT8_EXPONENTS: Final = (-126, 126)
"""Exponents whose power of two, and its inverse, are normal binary32."""


class Packing(Protocol):
    """How coded arrays become payloads of a length of their own, and back."""

    def pack(self, values: NDArray[Any]) -> bytes:
        """The payload of one row; what is stored is what it unpacks to."""
        ...

    def unpack(self, payload: memoryview, out: NDArray[Any]) -> None:
        """Fill a coded array, of the codec's dtype and shape; raises CodecError for what is no payload of its own."""
        ...


class Codec(Protocol):
    """One way of storing a row. Stateless; a payload is read straight into an array of `dtype` and `shape`, unless
    there is a `packing`."""

    @property
    def packing(self) -> Packing | None:
        """None where a payload is the coded array as it lies in memory."""
        ...

    @property
    def name(self) -> str: ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of coded arrays, and of what other software sees: bfloat16 shows as uint16, its bit patterns."""
        ...

    @property
    def fill_value(self) -> str | int:
        """What a zarr reader sees where a row has no payload: NaN, or what no payload holds."""
        ...

    @property
    def extra_rows(self) -> int:
        """Rows of a coded array after those of its tokens; needed to decode any token."""
        ...

    def shape(self, tokens: int, width: int) -> tuple[int, ...]:
        """Of a coded array."""
        ...

    def nbytes(self, tokens: int, width: int) -> int:
        """Bytes of a coded array, which without a packing is the payload."""
        ...

    def encode(self, features: NDArray[Any]) -> NDArray[Any]:
        """Finite float32 features (N, D) to a coded array; raises CodecError for what it cannot hold."""
        ...

    def decode(self, coded: NDArray[Any]) -> NDArray[Any]:
        """Coded arrays (..., rows, columns) to features (..., N, D): float16 from float16, else float32."""
        ...

    def is_valid(self, coded: NDArray[Any]) -> bool:
        """Whether a coded array holds finite values only."""
        ...


class _ArrayCodec:
    """Values of one dtype, stored as they lie in memory."""

    extra_rows = 0
    packing: Packing | None = None

    def __init__(self, name: str, dtype: str, fill_value: str | int, exponent: int) -> None:
        """`exponent` is the mask of the exponent's bits: all of them set means infinite or NaN."""
        self.name = name
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self.fill_value = fill_value
        self._bits: np.dtype[Any] = np.dtype(f"<u{self.dtype.itemsize}")
        self._exponent = self._bits.type(exponent)

    def shape(self, tokens: int, width: int) -> tuple[int, int]:
        return tokens, width

    def nbytes(self, tokens: int, width: int) -> int:
        return tokens * width * self.dtype.itemsize

    def encode(self, features: NDArray[Any]) -> NDArray[Any]:
        _require_features(self.name, features)
        coded = self._convert(features)
        if not self.is_valid(coded):
            raise CodecError(
                f"codec {self.name} cannot hold the features: {_non_finite(self.decode(coded))} when coded; "
                f"its range is too small, set store.codec to {'float32' if self.name == 'bfloat16' else 'bfloat16'}"
            )
        return coded

    def decode(self, coded: NDArray[Any]) -> NDArray[Any]:
        return coded

    def is_valid(self, coded: NDArray[Any]) -> bool:
        # Integer arithmetic: several times as fast as isfinite of half-precision values.
        return not ((coded.view(self._bits) & self._exponent) == self._exponent).any()

    def _convert(self, features: NDArray[np.float32]) -> NDArray[Any]:
        with np.errstate(over="ignore"):  # reported by name in encode
            return np.ascontiguousarray(features, self.dtype)


class _BFloat16(_ArrayCodec):
    """The upper half of a float32, as uint16: numpy has no bfloat16 of its own."""

    def decode(self, coded: NDArray[Any]) -> NDArray[np.float32]:
        return (coded.astype(np.uint32) << 16).view(np.float32)

    def _convert(self, features: NDArray[np.float32]) -> NDArray[Any]:
        bits = np.ascontiguousarray(features).view(np.uint32)
        # Round to nearest even: half a unit, less one where the kept part is even.
        return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)


class _Int8:
    """x = q * scale of its token * 2^exponent of its channel.

    A coded array has N + 1 rows of D + 4 bytes: a row for each token with its D integers and its scale, and a last one
    with the D exponents and four zero bytes.
    """

    name = "int8"
    dtype: np.dtype[Any] = np.dtype(np.int8)
    fill_value = -128
    extra_rows = 1
    packing: Packing | None = None

    def shape(self, tokens: int, width: int) -> tuple[int, int]:
        return tokens + self.extra_rows, width + INT8_SCALE_BYTES

    def nbytes(self, tokens: int, width: int) -> int:
        rows, columns = self.shape(tokens, width)
        return rows * columns

    def encode(self, features: NDArray[Any]) -> NDArray[np.int8]:
        _require_features(self.name, features)
        tokens, width = features.shape
        exponents = _channel_exponents(features)
        levelled = np.ldexp(features, -exponents)
        scales = (np.abs(levelled).max(axis=1, initial=0.0) / np.float32(INT8_STEPS)).astype(np.float32)
        # A token of zeros has scale zero and integers zero.
        steps = np.rint(levelled / np.where(scales > 0, scales, 1)[:, None])
        coded = np.zeros(self.shape(tokens, width), np.int8)
        coded[:tokens, :width] = np.clip(steps, -INT8_STEPS, INT8_STEPS)
        coded[:tokens, width:] = scales.view(np.int8).reshape(tokens, INT8_SCALE_BYTES)
        coded[tokens, :width] = exponents
        return coded

    def decode(self, coded: NDArray[Any]) -> NDArray[np.float32]:
        width = coded.shape[-1] - INT8_SCALE_BYTES
        scales = np.ascontiguousarray(coded[..., :-1, width:]).view(np.float32)
        features: NDArray[np.float32] = coded[..., :-1, :width] * scales
        features *= np.ldexp(np.float32(1), coded[..., -1:, :width].astype(np.int32))
        return features

    def is_valid(self, coded: NDArray[Any]) -> bool:
        width = coded.shape[-1] - INT8_SCALE_BYTES
        scales = np.ascontiguousarray(coded[..., :-1, width:]).view(np.float32)
        return bool(
            (np.isfinite(scales) & (scales >= 0)).all()
            and (coded[..., :-1, :width] >= -INT8_STEPS).all()
            and (np.abs(coded[..., -1, :width].astype(np.int16)) <= INT8_EXPONENTS[1]).all()
            and not coded[..., -1, width:].any()
        )


def _channel_exponents(features: NDArray[np.float32]) -> NDArray[np.int32]:
    """For each channel the power of two next to the root mean square of its tokens; 0 for a channel of zeros."""
    norms = np.sqrt(np.einsum("nd,nd->d", features, features, dtype=np.float64))
    # Halving the exponent of the mean square rounds log2 of its root, ties upwards, without a rounding of its own.
    exponents = np.frexp(norms * norms / max(len(features), 1))[1]
    nearest = np.where(norms > 0, exponents >> 1, 0)
    return np.clip(nearest, *INT8_EXPONENTS).astype(np.int32)


def _require_features(codec: str, features: NDArray[Any]) -> None:
    if features.dtype != np.float32 or features.ndim != 2:
        raise CodecError(
            f"codec {codec} takes features (tokens, width) in float32, not {features.dtype} {features.shape}"
        )
    if not np.isfinite(features).all():
        raise CodecError(
            f"the features hold {_non_finite(features)}: the teacher overflowed or its weights are damaged; "
            "run it with precision: float32"
        )


def _non_finite(values: NDArray[Any]) -> str:
    where = np.argwhere(~np.isfinite(values))
    token, channel = where[0]
    return f"{len(where)} values that are not finite, the first at token {token}, channel {channel}"


CODECS: Final[dict[str, Codec]] = {
    "float32": _ArrayCodec("float32", "<f4", "NaN", 0x7F800000),
    "float16": _ArrayCodec("float16", "<f2", "NaN", 0x7C00),
    "bfloat16": _BFloat16("bfloat16", "<u2", BFLOAT16_NAN, 0x7F80),
    "int8": _Int8(),
}
"""Those that need nothing but their name. A column's codec may also be one of clips, named by its settings (see
`jpeg`), or one in a basis that was learnt (see `klt`)."""


def get_codec(name: str) -> Codec:
    """The codec of that name; an unknown one is an error that lists the known."""
    if name in CODECS:
        return CODECS[name]
    for kind in (JpegCodec, KltCodec):
        if (found := kind.named(name)) is not None:
            return found
    raise CodecError(f"codec {name!r} is unknown; known: {', '.join(CODECS)}, klt, and jpeg-95-444 for clips")


# ---- what coding costs -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CodingError:
    """How far a row's decoded features are from what was encoded; rounded to what other machines reproduce."""

    relative_error: float
    """L2 norm of the difference over that of the features."""
    cosine_min: float
    """Of the cosines between decoded and original token vectors, the smallest."""
    cosine_mean: float
    max_abs_error: float

    @classmethod
    def of(cls, relative: float, most_missing: float, mean_missing: float, max_abs: float) -> CodingError:
        """From full precision; a cosine is given by what it lacks of 1, where it has all its digits."""
        return cls(_rounded(relative), round(1 - most_missing, 9), round(1 - mean_missing, 9), _rounded(max_abs))


def measure_error(features: NDArray[np.float32], decoded: NDArray[Any]) -> CodingError:
    """Compare one row (N, D) with what its payload decodes to."""
    difference = decoded.astype(np.float32) - features
    if not difference.any():
        return CodingError(0.0, 1.0, 1.0, 0.0)
    pairs = (features, features), (difference, difference), (difference, features)
    with np.errstate(over="ignore", invalid="ignore"):
        squared, moved, along = (np.einsum("nd,nd->n", *pair).astype(np.float64) for pair in pairs)
    if not np.isfinite(squared).all():  # float32 cannot hold the squares of such large features
        squared, moved, along = (np.einsum("nd,nd->n", *pair, dtype=np.float64) for pair in pairs)
    before, after = np.sqrt(squared), np.sqrt(np.maximum(squared + 2 * along + moved, 0))
    # 1 - cos = (|e|^2 - (|y| - |x|)^2) / (2 |x| |y|): exact for small errors, where cos itself has lost its digits.
    grown = (2 * along + moved) / np.maximum(before + after, np.finfo(np.float64).tiny)
    product = 2 * before * after
    missing = np.where(product > 0, (moved - grown**2) / np.where(product > 0, product, 1), moved > 0)
    relative = np.sqrt(moved.sum() / max(squared.sum(), np.finfo(np.float64).tiny))
    return CodingError.of(float(relative), float(missing.max()), float(missing.mean()), float(np.abs(difference).max()))


def _rounded(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.3e}")
