"""Clips as JPEGs: codec `jpeg-QUALITY-SUBSAMPLING`, such as `jpeg-95-444`.

A payload is, little-endian, the length of each of the T frames (uint32), and then the frames, one baseline JPEG each.
What a row holds is what the JPEGs decode to: uint8 (T, S, S, 3) RGB, by the exact integer transform of libjpeg, which
gives the same pixels everywhere.
"""

from __future__ import annotations

import io
import math
import re
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, features

from mvd_offline.shards.errors import CodecError

Subsampling: TypeAlias = Literal["444", "422", "420"]
_SUBSAMPLINGS: Final[dict[str, int]] = {"444": 0, "422": 1, "420": 2}  # as Pillow numbers them
_NAME: Final = re.compile(r"jpeg-(100|[1-9][0-9]?)-(444|422|420)")
_COLOURS: Final = ("YCbCr", "RGB")
_LENGTH: Final = np.dtype("<u4")


class JpegCodec:
    """Frames of one size; see the module. `tokens` are frames here, and `width` is their side in pixels."""

    dtype: np.dtype[Any] = np.dtype(np.uint8)
    fill_value = ""
    extra_rows = 0

    def __init__(self, quality: int, subsampling: Subsampling) -> None:
        self.name = f"jpeg-{quality}-{subsampling}"
        self.packing = JpegPacking(quality, subsampling)

    @classmethod
    def named(cls, name: str) -> JpegCodec | None:
        """The codec of that name; None for a name of another kind."""
        found = _NAME.fullmatch(name)
        return None if found is None else cls(int(found[1]), found[2])  # type: ignore[arg-type]

    def shape(self, tokens: int, width: int) -> tuple[int, ...]:
        return tokens, width, width, 3

    def nbytes(self, tokens: int, width: int) -> int:
        return tokens * width * width * 3

    def encode(self, features: NDArray[Any]) -> NDArray[np.uint8]:
        """What is stored of a clip, uint8 (T, S, S, 3)."""
        out = np.empty_like(features)
        self.packing.unpack(memoryview(self.packing.pack(features)), out)
        return out

    def decode(self, coded: NDArray[Any]) -> NDArray[Any]:
        return coded

    def is_valid(self, coded: NDArray[Any]) -> bool:
        return True


class JpegPacking:
    """Frames to JPEGs and back."""

    def __init__(self, quality: int, subsampling: Subsampling) -> None:
        self._options = {"quality": quality, "subsampling": _SUBSAMPLINGS[subsampling]}

    def pack(self, values: NDArray[Any]) -> bytes:
        """A clip, uint8 (T, S, S, 3) RGB."""
        if values.dtype != np.uint8 or values.ndim != 4 or values.shape[3] != 3:
            raise CodecError(f"JPEGs are made of uint8 (T, S, S, 3), not {values.dtype} {values.shape}")
        frames = [_encode(frame, self._options) for frame in np.ascontiguousarray(values)]
        return b"".join([np.array([len(frame) for frame in frames], _LENGTH).tobytes(), *frames])

    def unpack(self, payload: memoryview, out: NDArray[Any]) -> None:
        for frame, target in zip(split_frames(payload, len(out)), out, strict=True):
            _decode(frame, target)


def split_frames(payload: memoryview, count: int) -> list[memoryview]:
    """The JPEG files in a payload.

    Raises:
        CodecError: they are not `count`, or do not fill it.
    """
    head = count * _LENGTH.itemsize
    lengths = np.frombuffer(payload[:head], _LENGTH) if len(payload) >= head else np.zeros(0, _LENGTH)
    ends = head + np.cumsum(lengths.astype(np.int64))
    if len(lengths) != count or ends[-1] != len(payload):
        raise CodecError(f"the payload of {len(payload)} bytes does not hold {count} frames")
    return [payload[end - length : end] for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)]


def psnr(relative_error: float) -> float:
    """Peak signal-to-noise ratio of a baked clip, in dB; infinite where nothing was lost.

    Args:
        relative_error: of its record: the root mean square difference of its pixels as a share of 255.
    """
    return -20 * math.log10(relative_error) if relative_error > 0 else math.inf


def jpeg_version() -> str:
    """The library that encodes, with its version: it decides the bytes."""
    turbo = features.version_feature("libjpeg_turbo")
    return f"libjpeg-turbo {turbo}" if turbo else f"libjpeg {features.version_codec('jpg')}"


def _encode(frame: NDArray[np.uint8], options: dict[str, int]) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(frame).save(sink, "JPEG", **options)
    return sink.getvalue()


def check_size(frame: memoryview, height: int, width: int) -> None:
    """Look at a JPEG's header, before anything is decoded: it may claim any size.

    Raises:
        CodecError: it is none, or of another size, or not in colours.
    """
    try:
        found = simplejpeg.decode_jpeg_header(frame)
    except ValueError as error:
        raise _unreadable(error) from None
    if found[:2] != (height, width) or found[2] not in _COLOURS:
        raise CodecError(f"a frame is {found[2]}, {found[1]} x {found[0]}, not colours, {width} x {height}")


def _decode(frame: memoryview, out: NDArray[np.uint8]) -> None:
    check_size(frame, *out.shape[:2])
    try:
        # Twice as fast as Pillow, which decodes into memory of its own first.
        simplejpeg.decode_jpeg(frame, buffer=out)
    except ValueError as error:
        raise _unreadable(error) from None


def _unreadable(error: ValueError) -> CodecError:
    return CodecError(f"a frame is no JPEG that can be read ({error})")
