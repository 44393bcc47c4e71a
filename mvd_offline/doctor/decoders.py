"""Decoders: a small video and a small image, made here and read back by every reader."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

from mvd_offline.doctor.findings import Finding, guarded

_FRAMES, _SIDE = 12, 64
_INSTALL: Final = "pip install --force-reinstall --no-deps {}."

# What people's videos are coded in, and the names of FFmpeg's decoders of it.
_CODECS: Final = {"h264": ("h264",), "hevc": ("hevc",), "vp9": ("vp9", "libvpx-vp9"), "av1": ("libdav1d", "av1")}


def findings() -> list[Finding]:
    with tempfile.TemporaryDirectory(prefix="mvd-offline-doctor-") as folder:
        video = Path(folder) / "video.mp4"
        do = f"{_INSTALL.format('av')} Generated videos and `videos cache --format h264` need its libx264."
        found = guarded("libx264", partial(_make, video), "warning", do)
        if video.is_file() and found[-1].state == "ok":
            found += guarded("PyAV", partial(_read_by_pyav, video), "missing", _INSTALL.format("av"))
            found += guarded("decord", partial(_read_by_decord, video), "missing", _INSTALL.format("decord"))
    found += guarded("codecs", _codecs, "missing", _INSTALL.format("av"))
    return found + guarded("JPEG", _jpeg, "missing", _INSTALL.format("simplejpeg"))


def _make(path: Path) -> Iterator[Finding]:
    import numpy as np

    from mvd_offline.video.synthetic import encode

    encode(path, np.full((_FRAMES, _SIDE, _SIDE, 3), 128, np.uint8), 24)
    yield Finding("libx264", "ok", "makes H.264 videos")


def _read_by_pyav(path: Path) -> Iterator[Finding]:
    import av

    with av.open(str(path)) as container:
        shapes = [frame.to_ndarray(format="rgb24").shape for frame in container.decode(video=0)]
    yield _judged("PyAV", f"{av.__version__} with FFmpeg {av.ffmpeg_version_info}", shapes)


def _read_by_decord(path: Path) -> Iterator[Finding]:
    import decord

    reader = decord.VideoReader(str(path), num_threads=1)
    yield _judged("decord", decord.__version__, [reader[index].asnumpy().shape for index in range(len(reader))])


def _judged(what: str, version: str, shapes: list[tuple[int, ...]]) -> Finding:
    if shapes == [(_SIDE, _SIDE, 3)] * _FRAMES:
        return Finding(what, "ok", f"{version} decodes H.264: {_FRAMES} of {_FRAMES} frames")
    found = f"{version} gave {len(shapes)} of {_FRAMES} frames of an H.264 video"
    return Finding(what, "missing", found, f"Install {what} again.")


def _codecs() -> Iterator[Finding]:
    from av.codec import codecs_available

    lacking = [codec for codec, names in _CODECS.items() if not {*names} & {*codecs_available}]
    if lacking:
        do = "Videos in these are recorded as unreadable: install a PyAV whose FFmpeg has them."
        yield Finding("codecs", "warning", f"PyAV has no decoder of {', '.join(lacking)}", do)
    else:
        yield Finding("codecs", "ok", f"PyAV decodes {', '.join(_CODECS)}")


def _jpeg() -> Iterator[Finding]:
    import numpy as np
    import simplejpeg

    grey = np.full((_SIDE, _SIDE, 3), 128, np.uint8)
    back = simplejpeg.decode_jpeg(simplejpeg.encode_jpeg(grey))
    if back.shape == grey.shape and int(np.abs(back.astype(int) - 128).max()) <= 2:
        yield Finding("JPEG", "ok", "simplejpeg writes and reads")
    else:
        yield Finding("JPEG", "missing", "simplejpeg reads another image than it wrote", _INSTALL.format("simplejpeg"))
