"""How the features of one view become bytes, and back.

A payload is the features in token order, channels innermost, little-endian, nothing around it: `tokens * width` values.
Rounding is to nearest, ties to even. Worst relative error of a value (away from float16's smallest values):

| codec    | bytes | worst relative error | range                                                     |
|----------|-------|----------------------|-----------------------------------------------------------|
| float32  | 4     | 0 (exact)            | 3.4e38                                                    |
| float16  | 2     | 4.9e-4 (2^-11)       | 65504; below 6.1e-5 the absolute error is at most 3.0e-8  |
| bfloat16 | 2     | 3.9e-3 (2^-8)        | 3.4e38                                                    |
"""

from __future__ import annotations

import sys
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from mvd_offline.shards.errors import CodecError

if sys.byteorder != "little":
    raise ImportError("mvd_offline.shards stores little-endian values and runs on little-endian machines only")

BFLOAT16_NAN: Final = 0x7FC0


class Codec(Protocol):
    """One way of storing features. Stateless; a payload is read straight into an array of `dtype`."""

    @property
    def name(self) -> str: ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of decoded arrays, and of the zarr array: float32, float16, or uint16 for bfloat16 bit patterns."""
        ...

    @property
    def fill_value(self) -> str | int:
        """What a zarr reader sees where a row has no payload: NaN."""
        ...

    def encode(self, features: NDArray[Any]) -> bytes:
        """Features (N, D) to bytes; raises CodecError for values that it cannot hold.

        Takes float32, or what is in `dtype` already: a GPU rounds to half precision (to nearest even, the same bits)
        far faster than numpy, and halves what is copied from it.
        """
        ...

    def decode(self, payload: bytes | memoryview, tokens: int, width: int) -> NDArray[Any]:
        """Bytes to (N, D) in `dtype`; a read-only view of the payload."""
        ...

    def to_float32(self, array: NDArray[Any]) -> NDArray[np.float32]:
        """Decoded values of any shape as float32."""
        ...

    def all_finite(self, array: NDArray[Any]) -> bool:
        """Whether no decoded value is infinite or NaN."""
        ...

    def nbytes(self, tokens: int, width: int) -> int:
        """Bytes of one payload."""
        ...


class _ArrayCodec:
    """Values of one dtype, stored as they lie in memory."""

    def __init__(self, name: str, dtype: str, fill_value: str | int, exponent: int) -> None:
        """`exponent` is the mask of the exponent's bits: all of them set means infinite or NaN."""
        self.name = name
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self.fill_value = fill_value
        self._bits: np.dtype[Any] = np.dtype(f"<u{self.dtype.itemsize}")
        self._exponent = self._bits.type(exponent)

    def encode(self, features: NDArray[Any]) -> bytes:
        if features.dtype not in (np.float32, self.dtype) or features.ndim != 2:
            raise CodecError(
                f"codec {self.name} takes features (tokens, width) in float32 or {self.dtype}, "
                f"not {features.dtype} {features.shape}"
            )
        if features.dtype == np.float32 and not np.isfinite(features).all():
            raise CodecError(
                f"the features hold {_non_finite(features)}: the teacher overflowed or its weights are damaged; "
                "run it with precision: float32"
            )
        stored = features if features.dtype == self.dtype else self._convert(features)
        if not self.all_finite(stored):
            raise CodecError(
                f"codec {self.name} cannot hold the features: {_non_finite(self.to_float32(stored))} when coded; "
                f"its range is too small, set store.codec to {'float32' if self.name == 'bfloat16' else 'bfloat16'}"
            )
        return stored.tobytes()

    def decode(self, payload: bytes | memoryview, tokens: int, width: int) -> NDArray[Any]:
        if len(payload) != self.nbytes(tokens, width):
            raise CodecError(
                f"a {self.name} payload of {tokens} tokens x {width} channels has {self.nbytes(tokens, width)} bytes, "
                f"not {len(payload)}"
            )
        return np.frombuffer(payload, self.dtype).reshape(tokens, width)

    def to_float32(self, array: NDArray[Any]) -> NDArray[np.float32]:
        return array.astype(np.float32)

    def all_finite(self, array: NDArray[Any]) -> bool:
        # Integer arithmetic: several times as fast as isfinite of half-precision values.
        return not ((array.view(self._bits) & self._exponent) == self._exponent).any()

    def nbytes(self, tokens: int, width: int) -> int:
        return tokens * width * self.dtype.itemsize

    def _convert(self, features: NDArray[np.float32]) -> NDArray[Any]:
        with np.errstate(over="ignore"):  # reported by name in encode
            return np.ascontiguousarray(features, self.dtype)


class _BFloat16(_ArrayCodec):
    """The upper half of a float32, as uint16: numpy has no bfloat16 of its own."""

    def to_float32(self, array: NDArray[Any]) -> NDArray[np.float32]:
        return (array.astype(np.uint32) << 16).view(np.float32)

    def _convert(self, features: NDArray[np.float32]) -> NDArray[Any]:
        bits = np.ascontiguousarray(features).view(np.uint32)
        # Round to nearest even: half a unit, less one where the kept part is even.
        return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)


def _non_finite(values: NDArray[np.float32]) -> str:
    where = np.argwhere(~np.isfinite(values))
    token, channel = where[0]
    return f"{len(where)} values that are not finite, the first at token {token}, channel {channel}"


CODECS: Final[dict[str, Codec]] = {
    "float32": _ArrayCodec("float32", "<f4", "NaN", 0x7F800000),
    "float16": _ArrayCodec("float16", "<f2", "NaN", 0x7C00),
    "bfloat16": _BFloat16("bfloat16", "<u2", BFLOAT16_NAN, 0x7F80),
}


def get_codec(name: str) -> Codec:
    """The codec of that name; an unknown one is an error that lists the known."""
    try:
        return CODECS[name]
    except KeyError:
        raise CodecError(f"codec {name!r} is unknown; known: {', '.join(CODECS)}") from None
