"""One video written anew so that each of its frames decodes alone: every frame kept, smaller, checked before it counts.

The file is MP4 with JPEG frames or with H.264 of keyframes only. Its bytes are a function of the source's pixels and of
the settings (with the same libraries): one thread, no clock.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import numpy as np
import xxhash
from numpy.typing import NDArray
from PIL import Image

from mvd_offline.errors import UsageError, VideoError
from mvd_offline.shards.atomic import make_folder, temporary_file
from mvd_offline.video.catalog import Video
from mvd_offline.video.decode import Reader, clean_reason, decode, decoder_version, probe
from mvd_offline.video.files import file_sha256
from mvd_offline.video.packets import PYAV
from mvd_offline.video.pyav_reader import all_frames_with_pyav

Format = Literal["jpeg", "h264"]

EQUAL_PSNR = 99.0
"""What stands for the PSNR of equal pixels, which has no number."""

_QUALITY: Mapping[Format, tuple[int, int, int]] = {"jpeg": (3, 1, 31), "h264": (16, 0, 40)}  # default, finest, coarsest
_FRAMES_AT_ONCE = 32
_SAMPLES = 4
# Frames a second of a video that does not say, or says what no camera does.
_UNKNOWN_RATE, _HIGHEST_RATE = 25, 1000


@dataclass(frozen=True)
class Settings:
    """How videos are written.

    Attributes:
        format: `jpeg` decodes fastest, `h264` takes fewer bytes.
        short_side: of the frames in pixels; smaller videos keep their size.
        quality: JPEG's quantiser (1 to 31) or H.264's crf (0 to 40); lower is finer and larger.
    """

    format: Format
    short_side: int
    quality: int

    @classmethod
    def checked(cls, format: str = "jpeg", short_side: int = 256, quality: int | None = None) -> Settings:
        """The settings with the format's own quality where none is given.

        Raises:
            UsageError: a value that is not allowed.
        """
        known = next((name for name in get_args(Format) if name == format), None)
        if known is None:
            raise UsageError(f"format {format!r} is unknown; allowed: {', '.join(get_args(Format))}")
        usual, finest, coarsest = _QUALITY[known]
        quality = usual if quality is None else quality
        if not finest <= quality <= coarsest:
            raise UsageError(f"quality is {quality}; allowed for {known}: {finest} (finest) to {coarsest}")
        if short_side < 16:
            raise UsageError(f"short_side is {short_side} pixels; allowed: 16 or more")
        return cls(known, short_side, quality)

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height that frames get: even, as half the colours' resolution needs, and never enlarged."""
        short = min(width, height)
        if short <= self.short_side:
            return max(2, width // 2 * 2), max(2, height // 2 * 2)
        scale = self.short_side / short
        return round(width * scale / 2) * 2, round(height * scale / 2) * 2


@dataclass(frozen=True)
class Written:
    """Facts of a file that was written and read back.

    Attributes:
        pixels: xxh3_64 of all its decoded frames in order, 16 hexadecimal digits.
        psnr_db: of some of its frames against the source's, resized; `EQUAL_PSNR` where they are equal.
    """

    frames: int
    fps: float
    width: int
    height: int
    reader: Reader
    decoder: str
    size: int
    sha256: str
    pixels: str
    psnr_db: float


def transcode(video: Video, source: Path, target: Path, settings: Settings) -> Written:
    """Write `target`, whole and checked or not at all.

    Args:
        video: what the catalog says of the source.
        source: its file.
        target: its folder is made.

    Raises:
        VideoError: the source is not the file of the catalog, does not decode to its end, or cannot be encoded.
        OSError: the target cannot be written.
    """
    if file_sha256(source) != video.sha256:
        raise VideoError(video.path, "the file is not the one that was scanned (its SHA-256 differs): scan again")
    sample = dict.fromkeys(np.linspace(0, video.frames - 1, min(_SAMPLES, video.frames)).round().astype(int).tolist())
    size = settings.size(video.width, video.height)
    make_folder(target.parent)
    with temporary_file(target) as temporary:
        kept: dict[int, NDArray[np.uint8]] = {}
        count = _encode(temporary.stream, _resized(source, video, size, sample, kept), size, video, settings)
        if count != video.frames:
            raise VideoError(video.path, f"{count} frames come out, and the scan counted {video.frames}: scan again")
        temporary.flush_to_disk()
        written = _read_back(temporary.path, video, size, kept)
        temporary.publish()
    return written


def hash_of_frames(path: Path, frames: int, reader: Reader | None) -> str:
    """xxh3_64 of all decoded frames in order, as `render.pixel_hash` would give it for them all at once.

    Raises:
        VideoError: fewer frames than that, or one that does not decode.
    """
    digest = xxhash.xxh3_64()
    for first in range(0, frames, _FRAMES_AT_ONCE):
        numbers = range(first, min(first + _FRAMES_AT_ONCE, frames))
        digest.update(decode(path, numbers, reader=reader).frames.data)
    return digest.hexdigest()


# ---- writing -------------------------------------------------------------------------------------------------------


def _resized(
    source: Path, video: Video, size: tuple[int, int], sample: Mapping[int, Any], kept: dict[int, NDArray[np.uint8]]
) -> Iterator[NDArray[np.uint8]]:
    """The source's frames in their new size; those of the sample are also kept."""
    for number, frame in enumerate(all_frames_with_pyav(source)):
        if frame.shape[:2] != (video.height, video.width):
            found = f"{frame.shape[1]} x {frame.shape[0]} pixels, and the scan saw {video.width} x {video.height}"
            raise VideoError(video.path, f"the frame has {found}: scan again", frame=number, decoder=PYAV)
        small = _resize(frame, size)
        if number in sample:
            kept[number] = small
        yield small


def _resize(frame: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    if frame.shape[1::-1] == size:
        return np.ascontiguousarray(frame)
    return np.asarray(Image.fromarray(np.ascontiguousarray(frame)).resize(size, Image.Resampling.BICUBIC))


def _encode(
    out: BinaryIO, frames: Iterator[NDArray[np.uint8]], size: tuple[int, int], video: Video, settings: Settings
) -> int:
    """Returns how many frames there were."""
    import av

    count = 0
    try:
        with av.open(out, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
            stream = _add_stream(container, size, video.fps, settings)
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
                count += 1
            container.mux(stream.encode(None))
    except av.FFmpegError as error:
        raise VideoError(video.path, f"cannot be written as {settings.format}: {error.strerror}") from None
    return count


def _add_stream(container: Any, size: tuple[int, int], fps: float, settings: Settings) -> Any:
    quality = str(settings.quality)
    if settings.format == "jpeg":
        codec, layout, options = "mjpeg", "yuvj420p", {"qmin": quality, "qmax": quality}
    else:
        codec, layout, options = "libx264", "yuv420p", {"preset": "medium", "crf": quality, "g": "1", "bf": "0"}
    rate = Fraction(fps).limit_denominator(1001) if 0 < fps <= _HIGHEST_RATE else Fraction(_UNKNOWN_RATE)
    stream = container.add_stream(codec, rate=rate or _UNKNOWN_RATE, options=options | {"threads": "1"})
    stream.width, stream.height = size
    stream.pix_fmt = layout
    stream.codec_context.thread_count = 1
    return stream


# ---- checking ------------------------------------------------------------------------------------------------------


def _read_back(path: Path, video: Video, size: tuple[int, int], kept: Mapping[int, NDArray[np.uint8]]) -> Written:
    """Decodes the whole file, by number and from the start, and holds some frames against what was encoded."""
    try:
        info = probe(path)
        pixels = hash_of_frames(path, info.frames, info.decoder)
        in_order = xxhash.xxh3_64()
        for frame in all_frames_with_pyav(path):
            in_order.update(np.ascontiguousarray(frame).data)
        back = decode(path, list(kept), reader=info.decoder)
    except VideoError as error:
        reason = f"what was written does not decode: {clean_reason(error.reason, path)}"
        raise VideoError(video.path, reason, frame=error.frame, decoder=error.decoder) from None
    if (info.frames, info.width, info.height) != (video.frames, *size):
        found = f"{info.frames} frames of {info.width} x {info.height} pixels"
        wanted = f"{video.frames} of {size[0]} x {size[1]}"
        raise VideoError(video.path, f"what was written has {found} instead of {wanted}", decoder=back.decoder)
    if in_order.hexdigest() != pixels:
        reason = "what was written gives other frames by number than from the start"
        raise VideoError(video.path, reason, decoder=back.decoder)
    return Written(
        frames=info.frames,
        fps=info.fps,
        width=info.width,
        height=info.height,
        reader=info.decoder,
        decoder=decoder_version(info.decoder),
        size=path.stat().st_size,
        sha256=file_sha256(path),
        pixels=pixels,
        psnr_db=_psnr(back.frames, np.stack(list(kept.values()))),
    )


def _psnr(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    error = float(np.mean((one.astype(np.float32) - other) ** 2))
    return min(EQUAL_PSNR, round(float(10 * np.log10(255**2 / error)), 2)) if error else EQUAL_PSNR
