"""Clips as JPEGs: what is stored, what it unpacks to, and what is refused."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mvd_offline.shards.codecs import get_codec
from mvd_offline.shards.errors import CodecError
from mvd_offline.shards.jpeg import JpegCodec, psnr, split_frames

FRAMES, SIDE = 3, 24


def clip() -> NDArray[np.uint8]:
    """Smooth colours, of which a JPEG keeps nearly everything."""
    x, y = np.meshgrid(np.arange(SIDE), np.arange(SIDE))
    frames = [np.stack([x * 8, y * 8, (x + y) * 4 + 20 * t], axis=-1) for t in range(FRAMES)]
    return np.stack(frames).astype(np.uint8)


def unpacked(codec: JpegCodec, payload: bytes) -> NDArray[np.uint8]:
    out = np.zeros(codec.shape(FRAMES, SIDE), np.uint8)
    codec.packing.unpack(memoryview(payload), out)
    return out


@pytest.mark.parametrize("name", ["jpeg-95-444", "jpeg-80-422", "jpeg-100-420"])
def test_a_payload_is_the_frames_as_files_and_holds_what_they_decode_to(name: str) -> None:
    codec = get_codec(name)
    assert isinstance(codec, JpegCodec)
    payload = codec.packing.pack(clip())

    lengths = struct.unpack(f"<{FRAMES}I", payload[: 4 * FRAMES])
    files = [bytes(frame) for frame in split_frames(memoryview(payload), FRAMES)]
    assert [len(file) for file in files] == list(lengths)
    assert payload[4 * FRAMES :] == b"".join(files)
    decoded = np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files])
    np.testing.assert_array_equal(unpacked(codec, payload), decoded)
    np.testing.assert_array_equal(codec.encode(clip()), decoded)


def test_quality_and_subsampling_are_those_of_the_name() -> None:
    def size(name: str) -> int:
        codec = get_codec(name)
        assert codec.packing is not None
        return len(codec.packing.pack(clip()))

    assert size("jpeg-95-444") > size("jpeg-95-420")
    assert size("jpeg-95-444") > size("jpeg-50-444")
    kept = get_codec("jpeg-95-444").encode(clip()).astype(float)
    assert psnr(float(np.sqrt(np.square(kept - clip()).mean()) / 255)) > 40


@pytest.mark.parametrize("name", ["jpeg", "jpeg-0-444", "jpeg-101-444", "jpeg-95-411", "jpeg-095-444", "jpeg-95-444 "])
def test_other_names_are_no_codecs(name: str) -> None:
    with pytest.raises(CodecError, match="unknown"):
        get_codec(name)


def as_payload(*files: bytes) -> bytes:
    return struct.pack(f"<{len(files)}I", *map(len, files)) + b"".join(files)


def as_file(kind: str, size: tuple[int, int] = (SIDE, SIDE), mode: str = "RGB") -> bytes:
    sink = io.BytesIO()
    Image.new(mode, size).save(sink, kind)
    return sink.getvalue()


GOOD = as_file("JPEG")


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "does not hold 3 frames"),
        (as_payload(GOOD, GOOD, GOOD)[:-1], "does not hold 3 frames"),
        (as_payload(GOOD, GOOD, GOOD) + b"x", "does not hold 3 frames"),
        (as_payload(GOOD, GOOD), "does not hold 3 frames"),
        (struct.pack("<3I", 2**32 - 1, 2**32 - 1, 2**32 - 1) + GOOD, "does not hold 3 frames"),
        (as_payload(GOOD, as_file("PNG"), GOOD), "no JPEG"),
        (as_payload(GOOD, b"", GOOD), "no JPEG"),
        (as_payload(GOOD, GOOD[: len(GOOD) // 2], GOOD), "no JPEG"),
        (as_payload(GOOD, GOOD, as_file("JPEG", (SIDE, SIDE + 1))), "^a frame is YCbCr, 24 x 25, not colours, 24 x 24"),
        (as_payload(GOOD, GOOD, as_file("JPEG", mode="L")), "^a frame is Gray"),
        (as_payload(GOOD, GOOD, as_file("JPEG", mode="CMYK")), "^a frame is CMYK"),
    ],
)
def test_what_is_no_payload_of_its_own_is_refused(payload: bytes, message: str) -> None:
    with pytest.raises(CodecError, match=message):
        unpacked(JpegCodec(95, "444"), payload)


@pytest.mark.parametrize("values", [clip().astype(np.float32), clip()[..., :1], clip()[0]])
def test_only_clips_of_bytes_are_packed(values: NDArray[np.uint8]) -> None:
    with pytest.raises(CodecError, match="JPEGs are made of uint8"):
        JpegCodec(95, "444").packing.pack(values)


def test_a_clip_that_lost_nothing_has_no_bound() -> None:
    assert psnr(0.0) == float("inf")
    assert psnr(0.1) == pytest.approx(20.0)
