"""What a decode cache gains: the same frames read from the originals and from the cache, in turn, in one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from mvd_offline.video.cache import Cache
from mvd_offline.video.catalog import Catalog, Video
from mvd_offline.video.decode import decode

FRAMES, SPACING = 16, 4


@dataclass(frozen=True)
class ClipTimes:
    """Medians over videos of the time that one thread takes for a clip, the files being in the page cache.

    `speedup` is original over cached, video by video: median, lowest and highest.
    """

    videos: int
    original_ms: float
    cached_ms: float
    speedup: tuple[float, float, float]


def time_clips(source: Catalog, cache: Cache, *, videos: int = 8, repeats: int = 3) -> ClipTimes:
    """Read 16 frames at spacing 4 from the middle of some videos, spread over the catalog.

    Raises:
        VideoError: one of them cannot be read any more.
    """
    rows = [row for row in cache.rows if row.ok]
    rows = rows[:: -(-len(rows) // videos)]
    new = Catalog.read(cache.catalog_path)
    pairs = [(_clip(source, source.by_id[row.video_id]), _clip(new, new.by_id[row.video_id])) for row in rows]
    times = [_in_turn(pair, repeats) for pair in pairs]
    ratios = [original / cached for original, cached in times]
    return ClipTimes(
        videos=len(rows),
        original_ms=1000 * statistics.median(original for original, _ in times),
        cached_ms=1000 * statistics.median(cached for _, cached in times),
        speedup=(statistics.median(ratios), min(ratios), max(ratios)),
    )


@dataclass(frozen=True)
class _Clip:
    catalog: Catalog
    video: Video
    indices: tuple[int, ...]

    def read(self) -> float:
        """Seconds."""
        began = time.perf_counter()
        decode(self.catalog.root / self.video.path, self.indices, reader=self.video.reader)
        return time.perf_counter() - began


def _clip(catalog: Catalog, video: Video) -> _Clip:
    first = max(0, (video.frames - FRAMES * SPACING) // 2)
    last = video.frames - 1
    return _Clip(catalog, video, tuple(min(first + SPACING * step, last) for step in range(FRAMES)))


def _in_turn(pair: Sequence[_Clip], repeats: int) -> tuple[float, float]:
    """Median seconds of each; the first reading of each does not count."""
    taken = [[clip.read() for clip in pair] for _ in range(repeats + 1)][1:]
    original, cached = (statistics.median(times) for times in zip(*taken, strict=True))
    return original, cached
