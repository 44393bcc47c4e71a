"""Reading frames: decord where its random access is exact, PyAV elsewhere, Pillow for images; each on one thread.

decord addresses frames by number but seeks to a keyframe by the keyframe's place in *decoding* order. Where that is not
its place in display order (open groups of pictures, edit lists, AVI with B-frames) it returns another frame without a
word, so such files are read by PyAV. Where both readers are exact, their pixels are identical bit for bit. MP4 files of
keyframes alone are read by PyAV as well, which there decodes just the frames that are asked for.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mvd_offline.errors import VideoError
from mvd_offline.video.files import check_regular, is_image
from mvd_offline.video.images import PILLOW, decode_image
from mvd_offline.video.packets import PYAV, PacketIndex, read_packet_index
from mvd_offline.video.pyav_reader import count_with_pyav, decode_with_pyav

Reader = Literal["decord", "pyav", "pillow"]
READERS: tuple[Reader, ...] = ("decord", "pyav", "pillow")


@dataclass(frozen=True)
class VideoInfo:
    """What a probe found: size in pixels as displayed, after rotation; the reader that is exact for this file."""

    frames: int
    fps: float
    width: int
    height: int
    decoder: Reader


@dataclass(frozen=True)
class Decoded:
    """RGB frames, uint8 (T, H, W, 3), and who decoded them: `"decord 0.6.0"`, `"pyav 18.1.0"`, `"pillow 13.0.0"`."""

    frames: NDArray[np.uint8]
    decoder: str

    def __repr__(self) -> str:
        return f"Decoded(frames=uint8 {self.frames.shape}, decoder={self.decoder!r})"


@cache
def decoder_version(reader: Reader) -> str:
    """`"decord 0.6.0"`, `"pyav 18.1.0"`, `"pillow 13.0.0"`."""
    if reader != "decord":
        return PYAV if reader == "pyav" else PILLOW
    for package in ("decord", "eva-decord"):
        try:
            return f"{package} {metadata.version(package)}"
        except metadata.PackageNotFoundError:
            continue
    return "decord"


def probe(path: str | Path) -> VideoInfo:
    """Facts of a video, from its packets and a decode of its first and last frame; of an image, from its decode.

    Raises:
        VideoError: missing, no video in it, or a frame that does not decode.
    """
    path = Path(path)
    if is_image(path):
        height, width = decode_image(path).shape[:2]
        return VideoInfo(frames=1, fps=0.0, width=width, height=height, decoder="pillow")
    check_regular(path)
    index = read_packet_index(path)
    reader: Reader = "decord" if _suits_decord(index) and _decord_agrees(path, index) else "pyav"
    frames = index.frames
    try:
        ends = decode(path, (0, frames - 1), reader=reader)
    except VideoError:
        # Some containers (XviD in AVI) hold packets that show no frame: count what really comes out.
        frames = _frames_that_come_out(path)
        if not 0 < frames < index.frames:
            raise
        ends = decode(path, (0, frames - 1), reader="pyav")
    height, width = ends.frames.shape[1:3]
    used: Reader = "pyav" if ends.decoder == decoder_version("pyav") else "decord"
    return VideoInfo(frames=frames, fps=index.fps, width=width, height=height, decoder=used)


def _frames_that_come_out(path: Path) -> int:
    """0 for a video that does not decode to its end: the error at hand then says more."""
    try:
        return count_with_pyav(path)
    except VideoError:
        return 0


def decode(path: str | Path, indices: Sequence[int], *, reader: Reader | None = None) -> Decoded:
    """Frames by number, in the order asked for; a repeated number is decoded once.

    Args:
        path: the file, or the address of an image in a tar (`files.TarMember`).
        indices: frame numbers in display order, from 0.
        reader: who a probe found to be exact for this file; None finds out, at the cost of reading the packets.

    Raises:
        VideoError: missing, not a video, or a frame that neither reader can decode.
    """
    path = Path(path)
    wanted, inverse = np.unique(np.asarray(indices, np.int64), return_inverse=True)
    if wanted.size == 0 or wanted[0] < 0:
        raise VideoError(str(path), f"cannot decode frames {list(indices)}: give at least one, none negative")
    if reader == "pillow" or (reader is None and is_image(path)):
        return _decode_image(path, wanted, inverse)
    check_regular(path)
    if reader is None:
        reader = "decord" if _suits_decord(read_packet_index(path)) else "pyav"
    failure: VideoError | None = None
    if reader == "decord":
        result = _decode_with_decord(path, wanted)
        if not isinstance(result, VideoError):
            return Decoded(_in_order(result, inverse), decoder_version("decord"))
        failure = result
    try:
        frames = decode_with_pyav(path, wanted)
    except VideoError as error:
        raise (error if failure is None else _both(failure, error)) from None
    return Decoded(_in_order(frames, inverse), decoder_version("pyav"))


# ---- decord --------------------------------------------------------------------------------------------------------


def _decode_with_decord(path: Path, wanted: NDArray[np.int64]) -> NDArray[np.uint8] | VideoError:
    """Returns its error, without the traceback that would keep decord's reader, its file and its thread alive."""
    decord = _decord()
    reader = None
    try:
        reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
        return reader.get_batch(wanted.tolist()).asnumpy()
    except (decord.DECORDError, RuntimeError, IndexError, AssertionError, StopIteration) as error:
        return VideoError(str(path), clean_reason(str(error), path), decoder=decoder_version("decord"))
    finally:
        del reader  # closes the file now, not at some later collection


def _suits_decord(index: PacketIndex) -> bool:
    # After each of its seeks decord decodes ahead: a clip of a video of keyframes costs it twice PyAV's processor time.
    return index.seeks_exactly and not index.stands_alone


def _decord_agrees(path: Path, index: PacketIndex) -> bool:
    decord = _decord()
    try:
        return len(decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)) == index.frames
    except (decord.DECORDError, RuntimeError, AssertionError):
        return False


@cache
def _decord() -> Any:
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    return decord


# ---- images --------------------------------------------------------------------------------------------------------


def _decode_image(path: Path, wanted: NDArray[np.int64], inverse: NDArray[np.intp]) -> Decoded:
    if wanted[-1] > 0:
        raise VideoError(str(path), "an image has one frame", frame=int(wanted[-1]), decoder=PILLOW)
    return Decoded(_in_order(decode_image(path)[None], inverse), PILLOW)


# ---- all ----------------------------------------------------------------------------------------------------------


def clean_reason(message: str, path: Path) -> str:
    """A decoder's message as one line without source locations, clock times or folders of this machine."""
    text = message.strip().splitlines()[0] if message.strip() else "unknown error"
    text = re.sub(r"\[\d\d:\d\d:\d\d\] \S+:\d+: ", "", text)
    text = re.sub(r"^Check failed: .*?\([^()]* vs\. [^()]*\)\s*(?=\S)", "", text)
    text = text.replace(str(path), path.name).removeprefix("ERROR ")
    return text.rstrip(". ")


def _in_order(frames: NDArray[np.uint8], inverse: NDArray[np.intp]) -> NDArray[np.uint8]:
    if len(inverse) == len(frames) and (inverse == np.arange(len(frames))).all():
        return np.ascontiguousarray(frames)
    return frames[inverse]


def _both(first: VideoError, second: VideoError) -> VideoError:
    reasons = [f"{error.decoder.split()[0]}: {error.reason}" for error in (first, second)]
    return VideoError(first.path, "; ".join(reasons), frame=second.frame, decoder=f"{first.decoder}, {second.decoder}")
