"""A video's packets, read without decoding: how many frames there are, and whether seeking by number is exact."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from mvd_offline.errors import VideoError

PYAV = f"pyav {metadata.version('av')}"
"""The decoder's name in errors and ledgers."""

_MP4 = "mov,mp4,m4a,3gp,3g2,mj2"
_TIMED_CONTAINERS = (_MP4, "matroska,webm")


@dataclass(frozen=True)
class PacketIndex:
    """Frames that will be shown, frames per second (0.0 when unknown), and whether decord finds each by its number.

    `stands_alone`: the container's index shows that every frame is a keyframe; PyAV then reads just the wanted ones.
    decord was measured: right in MP4 and Matroska with closed groups of pictures; wrong in open groups, in MPEG
    streams (even for frame 0), in AVI with B-frames (by a group and more), and now and then in the last frame of AVI
    without them.
    """

    frames: int
    fps: float
    seeks_exactly: bool
    stands_alone: bool


def read_packet_index(path: Path) -> PacketIndex:
    """Demuxes the file (5 to 10 ms for a 10 second video); remembered per process until the file changes."""
    facts = os.stat(path)
    return _read(path, facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=65536)
def _read(path: Path, size: int, mtime_ns: int) -> PacketIndex:
    with open_best_stream(path) as (container, stream):
        stands_alone = len(keyframe_times(container, stream)) > 1
        packets = list_packets(container, stream)
        seekable = container.format.name in _TIMED_CONTAINERS
        fps = float(stream.average_rate or stream.guessed_rate or 0.0)
    frames = sum(not packet.discarded for packet in packets)
    if frames == 0:
        raise VideoError(str(path), "no frame in its video stream", decoder=PYAV, status="too_short")
    return PacketIndex(frames, fps, seekable and _seeks_exactly(packets), stands_alone)


class Packet(NamedTuple):
    """A packet in decoding order: when it is shown (None where the container does not say), and how."""

    pts: int | None
    keyframe: bool
    discarded: bool


def list_packets(container: Any, stream: Any) -> list[Packet]:
    """Every packet of the stream that holds data; leaves the container at its end."""
    # AVI and MPEG streams do not say when a packet is shown; FFmpeg's guess follows decoding order, which is the order
    # of display only where no frame is reordered.
    timed = container.format.name in _TIMED_CONTAINERS or not stream.codec_context.has_b_frames
    packets = (packet for packet in container.demux(stream) if packet.size)
    return [Packet(packet.pts if timed else None, packet.is_keyframe, packet.is_discard) for packet in packets]


def display_ranks(packets: list[Packet]) -> list[int] | None:
    """Each packet's place in display order; None where timestamps do not tell, or where a packet is not shown."""
    times = {packet.pts for packet in packets if packet.pts is not None and not packet.discarded}
    if len(times) < len(packets):
        return None
    order = {time: rank for rank, time in enumerate(sorted(times))}
    return [order[packet.pts] for packet in packets if packet.pts is not None]


def keyframe_times(container: Any, stream: Any) -> list[int]:
    """When each frame is shown, in order, by the container's index alone; empty unless all are keyframes."""
    # MP4 alone has its index at hand before a packet is read. Older PyAV does not show it.
    entries = getattr(stream, "index_entries", ()) if container.format.name == _MP4 else ()
    times: list[int] = []
    for entry in entries:
        if not entry.is_keyframe or entry.is_discard or entry.size < 1:
            return []
        times.append(entry.timestamp)
    return times if all(one < other for one, other in pairwise(times)) else []


@contextmanager
def open_best_stream(path: Path) -> Iterator[tuple[Any, Any]]:
    """PyAV's container and its best video stream, as ffmpeg ranks them. FFmpeg's errors come out as `VideoError`."""
    import av

    try:
        # Titles in odd encodings are no reason to refuse a video.
        with av.open(str(path), metadata_errors="ignore") as container:
            stream = container.streams.best("video")
            if stream is None or stream.codec_context is None:
                reason = "no video stream" if stream is None else "no decoder for its video codec"
                raise VideoError(str(path), reason, decoder=PYAV)
            stream.codec_context.thread_count = 1
            yield container, stream
    except av.FFmpegError as error:
        raise VideoError(str(path), (error.strerror or "not readable").rstrip(". "), decoder=PYAV) from None


def _seeks_exactly(packets: list[Packet]) -> bool:
    """Whether each keyframe's place in decoding order is its place in display order, and every packet is shown."""
    keyframes = [position for position, packet in enumerate(packets) if packet.keyframe]
    if keyframes == [0] and not any(packet.discarded for packet in packets):
        return True  # nothing to seek to
    ranks = display_ranks(packets)
    return ranks is not None and keyframes[:1] == [0] and all(ranks[position] == position for position in keyframes)
