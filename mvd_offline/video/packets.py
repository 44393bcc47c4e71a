"""A video's packets, read without decoding: how many frames there are, and whether seeking by number is exact."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from mvd_offline.errors import VideoError


@dataclass(frozen=True)
class PacketIndex:
    """Frames that will be shown, frames per second (0.0 when unknown), and decord's trustworthiness."""

    frames: int
    fps: float
    seeks_exactly: bool


def read_packet_index(path: Path) -> PacketIndex:
    """Demuxes the file (5 to 10 ms for a 10 second video); remembered per process until the file changes."""
    facts = os.stat(path)
    return _read(path, facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=65536)
def _read(path: Path, size: int, mtime_ns: int) -> PacketIndex:
    import av

    tried = f"pyav {av.__version__}"
    try:
        with open_best_stream(path) as (container, stream):
            packets = [(p.pts, p.is_keyframe, p.is_discard) for p in container.demux(stream) if p.size]
            fps = float(stream.average_rate or stream.guessed_rate or 0.0)
    except av.FFmpegError as error:
        raise VideoError(str(path), (error.strerror or "not readable").rstrip(". "), decoder=tried) from None
    frames = sum(not discard for _, _, discard in packets)
    if frames == 0:
        raise VideoError(str(path), "no frame in its video stream", decoder=tried, status="too_short")
    return PacketIndex(frames, fps, _seeks_exactly(packets))


@contextmanager
def open_best_stream(path: Path) -> Iterator[tuple[Any, Any]]:
    """PyAV's container and its best video stream, as ffmpeg ranks them; a VideoError where there is none to decode."""
    import av

    # Titles in odd encodings are no reason to refuse a video.
    with av.open(str(path), metadata_errors="ignore") as container:
        stream = container.streams.best("video")
        if stream is None or stream.codec_context is None:
            reason = "no video stream" if stream is None else "no decoder for its video codec"
            raise VideoError(str(path), reason, decoder=f"pyav {av.__version__}")
        yield container, stream


def _seeks_exactly(packets: list[tuple[int | None, bool, bool]]) -> bool:
    """Whether each keyframe's place in decoding order is its place in display order, and every packet is shown."""
    if any(discard for _, _, discard in packets):
        return False
    keyframes = [position for position, (_, key, _) in enumerate(packets) if key]
    if keyframes == [0]:
        return True  # nothing to seek to
    times = [pts for pts, _, _ in packets if pts is not None]
    if not keyframes or keyframes[0] != 0 or len(set(times)) < len(packets):
        return False
    rank = {time: position for position, time in enumerate(sorted(times))}
    return all(rank[times[position]] == position for position in keyframes)
