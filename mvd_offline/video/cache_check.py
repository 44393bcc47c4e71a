"""A decode cache decoded again: what of it is no longer what was written."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from mvd_offline.errors import UsageError, VideoError
from mvd_offline.video.cache import CATALOG_FILE, Cache, catalog_of, open_cache
from mvd_offline.video.cache_ledger import CacheRow
from mvd_offline.video.catalog import Catalog
from mvd_offline.video.decode import READERS, decoder_version
from mvd_offline.video.files import file_sha256
from mvd_offline.video.transcode import hash_of_frames
from mvd_offline.video.workers import DecodePool


@dataclass(frozen=True)
class Finding:
    """A file of a cache, relative to its folder, and what is wrong with it."""

    path: str
    what: str


def verify_cache(
    folder: Path, *, workers: int, timeout_seconds: float, on_progress: Callable[[int, int], None] | None = None
) -> tuple[Finding, ...]:
    """Decode every frame of every file; findings in the order of paths.

    Raises:
        UsageError: the folder holds no cache, or one that is not finished.
    """
    cache = open_cache(folder)
    rows = [row for row in cache.rows if row.ok]
    findings = [*_foreign(cache), *_catalog_findings(cache)]
    for done, (row, what) in enumerate(_looked_at(cache, rows, workers, timeout_seconds), start=1):
        if what:
            findings.append(Finding(f"{cache.videos.name}/{row.path}", what))
        if on_progress:
            on_progress(done, len(rows))
    return tuple(sorted(findings, key=lambda finding: finding.path))


def _looked_at(
    cache: Cache, rows: list[CacheRow], workers: int, timeout_seconds: float
) -> Iterator[tuple[CacheRow, str]]:
    """Rows in the order of completion, each with what is wrong with its file."""
    if not rows:
        return
    running: dict[Future[str], CacheRow] = {}
    upcoming = iter(rows)
    with DecodePool(min(workers, len(rows)), timeout_seconds) as pool:
        while True:
            while len(running) < 4 * workers and (row := next(upcoming, None)):
                running[pool.submit(_look, cache.videos / row.path, row)] = row
            if not running:
                return
            for future in pool.wait(running):
                row = running.pop(future)
                try:
                    yield row, pool.result(future, row.path)
                except VideoError as error:
                    yield row, error.reason


def _look(path: Path, row: CacheRow) -> str:
    """Empty where all is well; runs in another process."""
    if not path.is_file():
        return "missing"
    if path.stat().st_size != row.size or file_sha256(path) != row.sha256:
        return "changed: these are not the bytes that were written"
    reader = next(reader for reader in READERS if reader == row.reader)
    try:
        pixels = hash_of_frames(path, row.frames, reader)
    except VideoError as error:
        return f"does not decode: {error.reason}"
    if pixels != row.pixels:
        return (
            f"decodes to other pixels: hash {pixels} with {decoder_version(reader)} here, {row.pixels} with "
            f"{row.decoder} when it was written"
        )
    return ""


def _foreign(cache: Cache) -> Iterator[Finding]:
    known = {row.path for row in cache.rows if row.ok}
    for place, _, names in os.walk(cache.videos):
        for name in names:
            path = (Path(place) / name).relative_to(cache.videos).as_posix()
            if path not in known:
                yield Finding(f"{cache.videos.name}/{path}", "foreign: the ledger does not know it")


def _catalog_findings(cache: Cache) -> Iterator[Finding]:
    try:
        catalog = Catalog.read(cache.catalog_path)
    except UsageError as error:
        yield Finding(CATALOG_FILE, str(error))
        return
    known = {row.video_id for row in cache.rows}
    readable = {video.video_id for video in catalog.videos if video.status == "ok"}
    if catalog.root != cache.videos:
        yield Finding(CATALOG_FILE, f"its videos are said to be in {catalog.root}: the cache was moved")
    elif not readable <= known <= catalog.by_id.keys() or catalog_of(cache, catalog) != catalog:
        yield Finding(CATALOG_FILE, "changed: it is not what the ledger says")
