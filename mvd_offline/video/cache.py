"""A decode cache: a folder with every readable video of a catalog written anew for fast reading, and a catalog of them.

```
cache.json         the settings, fixed when the folder is made
videos/...         one MP4 for each readable video: the path that it has in its catalog, and `.jpeg.mp4`
ledger.parquet     for each of them: hashes of the source, of the file and of its decoded frames, and the PSNR
catalog.parquet    the catalog for plan, distill, finetune and evaluate, with a row for every video
progress.jsonl     rows of the ledger while the work goes on
```

A file appears whole and checked. Killed anywhere and run again, the finished folder is byte for byte the same.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from mvd_offline.errors import UsageError, VideoError
from mvd_offline.shards.atomic import clean_folder, folder_lock, make_folder, publish_bytes
from mvd_offline.video.cache_ledger import LEDGER_FILE, PROGRESS_FILE, CacheRow, finish, known_rows, note, read_ledger
from mvd_offline.video.catalog import Catalog, Video
from mvd_offline.video.transcode import Settings, transcode
from mvd_offline.video.workers import DecodePool

CACHE_VERSION = 1
SETTINGS_FILE, CATALOG_FILE, VIDEOS_FOLDER = "cache.json", "catalog.parquet", "videos"


@dataclass(frozen=True)
class Cache:
    """A finished cache: its folder, and its ledger in the order of video ids."""

    folder: Path
    rows: tuple[CacheRow, ...]

    @property
    def catalog_path(self) -> Path:
        return self.folder / CATALOG_FILE

    @property
    def videos(self) -> Path:
        """The folder that the rows' paths start from."""
        return self.folder / VIDEOS_FOLDER


def write_cache(
    catalog: Catalog,
    folder: Path,
    settings: Settings,
    *,
    workers: int,
    timeout_seconds: float,
    on_progress: Callable[[int, int], None] | None = None,
) -> Cache:
    """Make the cache, or what is missing of it. Videos that cannot be read keep a row with their status.

    Args:
        workers: processes.
        timeout_seconds: a video that takes longer gets the status `timeout`; another run tries it again.
        on_progress: called with (videos done, videos to write).

    Raises:
        UsageError: the folder holds something else or a cache of other settings; the catalog has nothing to write.
        OSError: the folder cannot be written, such as for want of space; run again to go on.
    """
    if workers < 1 or timeout_seconds <= 0:
        raise UsageError(f"workers is {workers}, timeout_seconds {timeout_seconds:g}; allowed: at least 1, above 0")
    targets = _targets(catalog, settings)
    folder = Path(os.path.abspath(folder))
    make_folder(folder)
    with folder_lock(folder):
        _fix_settings(folder, settings)
        found = {row.video_id: row for row in known_rows(folder)}
        found = {name: row for name, row in found.items() if _is_good(folder, row, catalog, targets)}
        todo = {name: path for name, path in targets.items() if name not in found}
        try:
            _clean(folder)
            with (folder / PROGRESS_FILE).open("a", encoding="utf-8") as progress:
                progress.write("\n")  # ends a line that a kill cut off
                rows = _written(catalog, todo, folder / VIDEOS_FOLDER, settings, workers, timeout_seconds)
                for done, row in enumerate(rows, start=1):
                    note(progress, row)
                    found[row.video_id] = row
                    if on_progress:
                        on_progress(done, len(todo))
        finally:
            _clean(folder)  # what stopped processes left
        cache = Cache(folder, tuple(found[name] for name in sorted(targets)))
        catalog_of(cache, catalog).write(cache.catalog_path)
        finish(folder, cache.rows)
    return cache


def open_cache(folder: Path) -> Cache:
    """A finished cache.

    Raises:
        UsageError: the folder holds none, or one that is not finished.
    """
    folder = Path(os.path.abspath(folder))
    if not (folder / SETTINGS_FILE).is_file():
        raise UsageError(f"{folder} holds no decode cache (no {SETTINGS_FILE}); `mvd-offline videos cache` makes one")
    if (folder / PROGRESS_FILE).exists() or not (folder / LEDGER_FILE).is_file():
        raise UsageError(f"{folder} is not finished; run the `mvd-offline videos cache` that began it again")
    return Cache(folder, read_ledger(folder))


def catalog_of(cache: Cache, source: Catalog) -> Catalog:
    """The source's catalog with the new files; a video that could not be written has its status and no file."""
    rows = {row.video_id: row for row in cache.rows}
    videos = [_in_catalog(video, rows[video.video_id]) if video.video_id in rows else video for video in source.videos]
    return Catalog(tuple(videos), cache.videos, source.classes)


def _in_catalog(video: Video, row: CacheRow) -> Video:
    # No time of change: it would make the catalog differ from one run to the next.
    return replace(
        video, path=row.path, frames=row.frames, fps=row.fps, width=row.width, height=row.height, size=row.size,
        mtime_ns=0, sha256=row.sha256, status=row.status, detail=row.detail, decoder=row.reader,
    )  # fmt: skip


# ---- what is to be made --------------------------------------------------------------------------------------------


def _targets(catalog: Catalog, settings: Settings) -> dict[str, str]:
    """Path of the new file by video id, for every readable video.

    It is never the original's: a store that was planned on the originals would find other pixels under the same name.
    """
    readable = [video for video in catalog.videos if video.status == "ok"]
    if not readable:
        raise UsageError(f"the catalog has no readable video among {len(catalog.videos)}; scan the videos again")
    if images := [video.video_id for video in readable if video.reader == "pillow"]:
        raise UsageError(
            f"the catalog holds {len(images)} images, such as {images[0]}: an image decodes alone already, and a cache "
            "is for videos; scan with --media videos"
        )
    for video in readable:
        path = PurePosixPath(video.path)
        if path.is_absolute() or ".." in path.parts:
            raise UsageError(f"{video.path} leads out of the catalog's folder {catalog.root}; scan again with --root")
    return {video.video_id: f"{video.path}.{settings.format}.mp4" for video in readable}


def _fix_settings(folder: Path, settings: Settings) -> None:
    """The first run writes the settings; a later one must have the same."""
    path = folder / SETTINGS_FILE
    wanted: dict[str, Any] = {"version": CACHE_VERSION, **asdict(settings)}
    if not path.exists():
        clean_folder(folder)
        if foreign := sorted(entry.name for entry in folder.iterdir()):
            raise UsageError(f"{folder} holds other things already, such as {foreign[0]}; give an empty folder")
        publish_bytes(path, (json.dumps(wanted, indent=2) + "\n").encode())
    try:
        there = dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError):
        raise UsageError(f"{path} is damaged: remove {folder}, and make the cache again") from None
    if other := [
        f"{name} {there.get(name)}, not {value}" for name, value in wanted.items() if there.get(name) != value
    ]:
        raise UsageError(f"{folder} holds a cache with {', '.join(other)}: ask for the same, or give another folder")


def _is_good(folder: Path, row: CacheRow, catalog: Catalog, targets: Mapping[str, str]) -> bool:
    """Whether a row of an earlier run still stands: the same source, and its file is there in full length."""
    if not row.ok or targets.get(row.video_id) != row.path:
        return False
    file = folder / VIDEOS_FOLDER / row.path
    same = catalog.by_id[row.video_id].sha256 == row.source_sha256
    return same and file.is_file() and file.stat().st_size == row.size


def _clean(folder: Path) -> None:
    """Remove temporary files of processes that are gone."""
    clean_folder(folder)
    for place, _, _ in os.walk(folder / VIDEOS_FOLDER):
        clean_folder(Path(place))


# ---- making it -----------------------------------------------------------------------------------------------------


def _written(
    catalog: Catalog, todo: Mapping[str, str], videos: Path, settings: Settings, workers: int, timeout_seconds: float
) -> Iterator[CacheRow]:
    """Rows in the order of completion."""
    if not todo:
        return
    running: dict[Future[CacheRow], CacheRow] = {}
    upcoming = iter(todo.items())
    with DecodePool(min(workers, len(todo)), timeout_seconds) as pool:
        while True:
            while len(running) < 2 * workers and (entry := next(upcoming, None)):
                video = catalog.by_id[entry[0]]
                blank = CacheRow(video.video_id, entry[1], "ok", "", video.size, video.sha256)
                future = pool.submit(_write, video, catalog.root / video.path, videos / entry[1], settings, blank)
                running[future] = blank
            if not running:
                return
            for future in pool.wait(running):
                yield _collect(pool, future, running.pop(future), videos)


def _collect(pool: DecodePool, future: Future[CacheRow], blank: CacheRow, videos: Path) -> CacheRow:
    try:
        row = pool.result(future, blank.path)
    except VideoError as error:
        row = replace(blank, status=error.status, detail=error.reason)
    if not row.ok:
        (videos / row.path).unlink(missing_ok=True)  # made of an earlier file of that name
    return row


def _write(video: Video, source: Path, target: Path, settings: Settings, blank: CacheRow) -> CacheRow:
    """In a process of the pool."""
    try:
        return replace(blank, **vars(transcode(video, source, target, settings)))
    except VideoError as error:
        where = "" if error.frame is None else f"frame {error.frame}: "
        return replace(blank, status=error.status, detail=where + error.reason)
