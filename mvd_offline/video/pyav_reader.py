"""Frames by number with PyAV, on one thread: exact for any file, faster where timestamps allow a seek."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mvd_offline.errors import VideoError
from mvd_offline.video.keyframes import indexed_keyframes
from mvd_offline.video.packets import PYAV, display_ranks, list_packets, open_best_stream

NumberedFrames: TypeAlias = Generator[tuple[int, Any], None, None]


def decode_with_pyav(path: Path, wanted: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The frames `wanted` (ascending, each once): uint8 (T, H, W, 3).

    Raises:
        VideoError: naming the frame that failed.
    """
    found: list[NDArray[np.uint8]] = []
    # A seek into the middle may fail where reading from the start does not.
    with suppress(VideoError):
        found = _collect(path, wanted, indexed_keyframes(path, wanted))
    if len(found) < len(wanted):
        with suppress(VideoError):
            found = _collect(path, wanted, _frames_after_seek(path, int(wanted[0])))
    if len(found) < len(wanted):
        found = _collect(path, wanted, _frames_from_start(path))
    if len(found) < len(wanted):
        missing = int(wanted[len(found)])
        raise VideoError(str(path), "the video ends before this frame", frame=missing, decoder=PYAV)
    if len({frame.shape for frame in found}) > 1:
        raise VideoError(str(path), "the frame size changes within the video", decoder=PYAV)
    return np.stack(found)


def count_with_pyav(path: Path) -> int:
    """Frames that come out of the whole video; raises VideoError where one does not decode."""
    return sum(1 for _ in _frames_from_start(path))


def all_frames_with_pyav(path: Path) -> Generator[NDArray[np.uint8], None, None]:
    """Every frame from the first to the last, uint8 (H, W, 3), one at a time.

    Raises:
        VideoError: naming the first frame that does not decode.
    """
    with closing(_frames_from_start(path)) as numbered:
        for number, frame in numbered:
            if frame.is_corrupt:
                raise VideoError(str(path), "the frame is damaged", frame=number, decoder=PYAV)
            yield _upright(frame)


def _collect(path: Path, wanted: NDArray[np.int64], numbered: NumberedFrames) -> list[NDArray[np.uint8]]:
    remaining, last = set(wanted.tolist()), int(wanted[-1])
    found: list[NDArray[np.uint8]] = []
    with closing(numbered):
        for number, frame in numbered:
            if number in remaining:
                if frame.is_corrupt:
                    raise VideoError(str(path), "the frame is damaged", frame=number, decoder=PYAV)
                found.append(_upright(frame))
            if number >= last:
                break
    return found


def _frames_from_start(path: Path) -> NumberedFrames:
    number = -1
    try:
        with open_best_stream(path) as (container, stream):
            for number, frame in enumerate(container.decode(stream)):
                yield number, frame
    except VideoError as error:
        raise VideoError(str(path), error.reason, frame=number + 1, decoder=PYAV) from None


def _frames_after_seek(path: Path, first: int) -> NumberedFrames:
    """Frames from the last keyframe that is shown at or before frame `first`; nothing where timestamps do not tell."""
    with open_best_stream(path) as (container, stream):
        packets = list_packets(container, stream)
        ranks = display_ranks(packets)
        if ranks is None:
            return
        rank_of = {packet.pts: rank for packet, rank in zip(packets, ranks, strict=True)}
        keyframes = [packet.pts for packet in packets if packet.keyframe and rank_of[packet.pts] <= first]
        if not keyframes:
            return
        start = max(keyframes, key=lambda pts: rank_of[pts])
        container.seek(start, stream=stream, backward=True)
        expected = rank_of[start]
        for frame in container.decode(stream):
            number = rank_of.get(frame.pts, -1)
            # Frames shown before the keyframe may lean on frames that were skipped; none of them is wanted.
            if number < rank_of[start]:
                continue
            if number != expected:
                return  # the seek went too far, or the timestamps are not to be trusted
            yield number, frame
            expected += 1


def _upright(frame: Any) -> NDArray[np.uint8]:
    # rotation is counter-clockwise, in degrees, as the display matrix has it; decord applies it by itself.
    pixels = frame.to_ndarray(format="rgb24")
    quarter_turns = round(frame.rotation / 90) % 4
    return np.rot90(pixels, quarter_turns) if quarter_turns else pixels
