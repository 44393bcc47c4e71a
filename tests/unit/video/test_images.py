"""Images are videos of one frame: exact pixels, or a reason, never zeros."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mvd_offline.errors import VideoError
from mvd_offline.video.catalog import scan
from mvd_offline.video.crops import CropBox
from mvd_offline.video.decode import VideoInfo, decode, probe
from mvd_offline.video.images import MAX_PIXELS, decode_image
from mvd_offline.video.render import View, render


def noise(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def save(path: Path, image: Image.Image, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "ppm", "tif", "webp"])
def test_pixels_of_lossless_formats_come_back_as_they_were(suffix: str, tmp_path: Path) -> None:
    options = {"lossless": True} if suffix == "webp" else {}
    path = save(tmp_path / f"a.{suffix}", noise(), **options)
    assert np.array_equal(decode_image(path), np.asarray(noise()))


def test_a_jpeg_is_what_pillow_makes_of_it_whatever_its_name_says(tmp_path: Path) -> None:
    path = save(tmp_path / "a.JPEG", noise(), format="jpeg")
    assert np.array_equal(decode_image(path), np.asarray(Image.open(path)))
    png = save(tmp_path / "b.jpg", noise(), format="png")
    assert np.array_equal(decode_image(png), np.asarray(noise()))


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGBA", "LA", "CMYK"])
def test_other_modes_are_converted_to_rgb_as_torchvision_does(mode: str, tmp_path: Path) -> None:
    image = noise().convert(mode)
    path = save(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"), image)
    assert np.array_equal(decode_image(path), np.asarray(image.convert("RGB")))


def test_a_rotation_mark_is_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    path = save(tmp_path / "a.png", noise(), exif=exif)
    assert Image.open(path).getexif()[0x0112] == 6
    assert np.array_equal(decode_image(path), np.asarray(noise()))


def test_of_an_animation_the_first_picture_counts(tmp_path: Path) -> None:
    others = [noise(seed=1), noise(seed=2)]
    path = save(tmp_path / "a.webp", noise(), save_all=True, append_images=others, lossless=True)
    assert probe(path).frames == 1
    assert np.array_equal(decode_image(path), np.asarray(noise()))


def test_a_probe_tells_size_one_frame_and_the_reader(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", noise(41, 23))
    assert probe(path) == VideoInfo(frames=1, fps=0.0, width=41, height=23, decoder="pillow")


def test_one_frame_is_read_as_often_as_asked_and_no_other(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", noise())
    decoded = decode(path, (0, 0, 0))
    assert decoded.decoder.startswith("pillow ")
    assert np.array_equal(decoded.frames, np.stack([np.asarray(noise())] * 3))
    with pytest.raises(VideoError, match="frame 1: an image has one frame"):
        decode(path, (0, 1))


def test_a_view_of_an_image_is_cropped_resized_and_flipped_by_the_one_renderer(tmp_path: Path) -> None:
    save(tmp_path / "c/a.png", noise())
    (video,) = scan(tmp_path, workers=1).videos
    view = View(
        view_id=0, shard=0, group=0, video_id=video.video_id, path=video.path, label=video.label,
        frame_indices=(0,), crop=CropBox(3, 5, 20, 12), flip=True, width=video.width, height=video.height,
        frames=1, status="ok", detail="", decoder=video.reader,
    )  # fmt: skip
    cut = noise().crop((3, 5, 23, 17))
    for resample, way in (
        ("bilinear_antialias", Image.Resampling.BILINEAR),
        ("bicubic_antialias", Image.Resampling.BICUBIC),
    ):
        pixels = render(view, tmp_path, 16, resample=resample).pixels  # type: ignore[arg-type]
        assert np.array_equal(pixels, np.asarray(cut.resize((16, 16), way))[None, :, ::-1])


# ---- what cannot be read -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "bmp"])
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.97])
def test_an_image_that_is_cut_off_is_an_error_never_grey(kind: str, kept: float, tmp_path: Path) -> None:
    whole = io.BytesIO()
    noise(64, 64).save(whole, format=kind)
    path = tmp_path / "a.jpg"
    path.write_bytes(whole.getvalue()[: int(kept * len(whole.getvalue()))])
    with pytest.raises(VideoError) as caught:
        decode_image(path)
    assert caught.value.status == "unreadable"
    assert " at 0x" not in caught.value.reason


@pytest.mark.parametrize("width", [9_500, 20_000], ids=["above Pillow's warning", "above Pillow's limit"])
def test_a_decompression_bomb_is_not_decoded(width: int, tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.new("1", (width, 9_500)))
    assert path.stat().st_size < 100_000
    assert width * 9_500 > MAX_PIXELS
    with pytest.raises(VideoError, match=r"more than 89,478,485.* not decoded"):
        decode_image(path)


def test_deep_pixels_are_refused_rather_than_cut_to_eight_bits(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(np.full((4, 4), 40_000, np.uint16)))
    with pytest.raises(VideoError, match="more than 8 bits"):
        decode_image(path)


def test_a_colour_image_of_sixteen_bits_is_refused_too(tmp_path: Path) -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\x01\xff" * 6) * 2)
    path = tmp_path / "deep.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    with pytest.raises(VideoError, match="more than 8 bits"):
        decode_image(path)


def test_what_is_no_image_names_the_formats(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")  # would run ghostscript
    with pytest.raises(VideoError, match=r"its content is none of JPEG, PNG.*\(tried pillow"):
        decode_image(tmp_path / "a.png")
    with pytest.raises(VideoError, match="no such file") as caught:
        decode_image(tmp_path / "b.png")
    assert caught.value.status == "missing"
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(VideoError, match="not a regular file"):
        decode_image(tmp_path / "pipe.png")


def test_a_scan_records_what_is_wrong_and_goes_on(tmp_path: Path) -> None:
    save(tmp_path / "a/good.png", noise())
    save(tmp_path / "b/bomb.png", Image.new("1", (9_500, 9_500)))
    (tmp_path / "b/cut.jpg").write_bytes(save(tmp_path / "whole.png", noise()).read_bytes()[:500])
    (tmp_path / "whole.png").unlink()
    found = scan(tmp_path, workers=1)
    assert {video.video_id: (video.status, video.label) for video in found.videos} == {
        "a/good.png": ("ok", 0),
        "b/bomb.png": ("unreadable", 1),
        "b/cut.jpg": ("unreadable", 1),
    }
    assert (found.by_id["a/good.png"].reader, found.by_id["b/cut.jpg"].reader) == ("pillow", None)
