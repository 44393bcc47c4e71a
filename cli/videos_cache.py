"""`mvd-offline videos cache` and `videos verify`: videos written anew for fast reading, and checked."""

from __future__ import annotations

import os
import shlex
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mvd_offline.cli.common import JsonOption, human_bytes, print_json, print_table, say_next

if TYPE_CHECKING:
    from mvd_offline.progress import WorkProgress
    from mvd_offline.video.cache import Cache
    from mvd_offline.video.cache_timing import ClipTimes
    from mvd_offline.video.catalog import Catalog

_MOST_SHOWN = 50


class CachedFormat(StrEnum):
    """How the videos of a cache are coded."""

    jpeg = "jpeg"
    h264 = "h264"


WorkersOption = Annotated[int, typer.Option("--workers", min=1, help="Processes.")]
TimeoutOption = Annotated[float, typer.Option("--timeout-seconds", help="Time limit of one video.")]


def cache(
    catalog: Annotated[Path, typer.Argument(help="The catalog of `mvd-offline videos scan`.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="Folder to make, or to go on with.", show_default=False)],
    form: Annotated[
        CachedFormat,
        typer.Option("--format", help="jpeg reads fastest; h264 (keyframes only) takes fewer bytes."),
    ] = CachedFormat.jpeg,
    short_side: Annotated[int, typer.Option("--short-side", help="Of the frames, pixels; none is enlarged.")] = 256,
    quality: Annotated[
        int | None,
        typer.Option(
            "--quality",
            help="JPEG's quantiser, 1 to 31 (default 3), or H.264's crf, 0 to 40 (default 16); lower is finer.",
            show_default=False,
        ),
    ] = None,
    timeout_seconds: TimeoutOption = 600.0,
    workers: WorkersOption = os.cpu_count() or 1,
    as_json: JsonOption = False,
) -> None:
    """Write each video anew so that any frame of it decodes alone, and a catalog of the new files.

    Every frame is kept under its number. Each file is read back before it counts; run it again to go on after a stop.
    Fine-tuning and evaluation then read the new catalog, OUT/catalog.parquet. A store is for the pixels that its views
    were planned on: plan and extract it on the catalog that the training will read.
    """
    from mvd_offline.progress import WorkProgress
    from mvd_offline.video.cache import write_cache
    from mvd_offline.video.catalog import Catalog
    from mvd_offline.video.transcode import Settings

    source, settings = Catalog.read(catalog), Settings.checked(form.value, short_side, quality)
    with WorkProgress("cache", None, unit="videos", enabled=not as_json) as progress:
        made = write_cache(
            source,
            out,
            settings,
            workers=workers,
            timeout_seconds=timeout_seconds,
            on_progress=partial(_reach, progress),
        )
    _report(source, made, as_json)


def verify(
    folder: Annotated[Path, typer.Argument(help="Folder of `mvd-offline videos cache`.", show_default=False)],
    timeout_seconds: TimeoutOption = 600.0,
    workers: WorkersOption = os.cpu_count() or 1,
    as_json: JsonOption = False,
) -> None:
    """Decode every frame of a cache again; exit status 1 when a file is changed, missing or foreign."""
    from mvd_offline.progress import WorkProgress
    from mvd_offline.video.cache_check import verify_cache

    with WorkProgress("verify", None, unit="videos", enabled=not as_json) as progress:
        findings = verify_cache(
            folder, workers=workers, timeout_seconds=timeout_seconds, on_progress=partial(_reach, progress)
        )
    if as_json:
        print_json({"folder": folder, "ok": not findings, "findings": findings})
    elif findings:
        _print_problems([(finding.path, finding.what) for finding in findings], ("file", "what is wrong"))
        count = f"{len(findings)} finding{'s' if len(findings) > 1 else ''}"
        typer.echo(
            f"{count}. Remove the files that are changed or foreign, then run the `mvd-offline videos cache` that made "
            f"{folder} again: it writes what is missing."
        )
    else:
        typer.echo(f"{folder}: every file is what was written, and decodes to the same pixels")
    if findings:
        raise typer.Exit(1)


def _report(source: Catalog, made: Cache, as_json: bool) -> None:
    written = [row for row in made.rows if row.ok]
    unreadable = [video for video in source.videos if video.status != "ok"]
    problems = [(video.video_id, video.status, video.detail) for video in unreadable]
    problems += [(row.video_id, row.status, row.detail) for row in made.rows if not row.ok]
    before, after = sum(row.source_size for row in written), sum(row.size for row in written)
    times = _timed(source, made) if written else "there is no video to time"
    if as_json:
        print_json(
            {
                "catalog": made.catalog_path,
                "videos": len(written),
                "problems": [dict(zip(("video_id", "status", "detail"), row, strict=True)) for row in problems],
                "bytes_before": before,
                "bytes_after": after,
                "psnr_db": {row.video_id: row.psnr_db for row in written},
                "times": times if isinstance(times, str) else asdict(times),
            }
        )
        return
    if problems:
        _print_problems(problems, ("video", "status", "what is wrong"))
    typer.echo(f"{len(written)} videos written, {len(problems)} cannot be read")
    if written:
        worst = min(written, key=lambda row: row.psnr_db)
        middle = statistics.median(row.psnr_db for row in written)
        typer.echo(
            f"PSNR against the resized originals: median {middle:.1f} dB, lowest {worst.psnr_db:.1f} dB "
            f"({worst.video_id})"
        )
        typer.echo(f"bytes: {human_bytes(before)} before, {human_bytes(after)} now, {after / before:.2g} x")
    typer.echo(f"catalog: {made.catalog_path}")
    typer.echo(times if isinstance(times, str) else _in_words(times))
    if written:
        say_next(f"mvd-offline plan RECIPE --videos {shlex.quote(str(made.catalog_path))} --store DIR")


def _timed(source: Catalog, made: Cache) -> ClipTimes | str:
    """The times, or why there are none."""
    from mvd_offline.errors import VideoError
    from mvd_offline.video.cache_timing import time_clips

    try:
        return time_clips(source, made)
    except VideoError as error:
        return f"not timed: {error}"


def _in_words(times: ClipTimes) -> str:
    middle, low, high = times.speedup
    verdict = "" if middle >= 1.2 else "; here the cache does not pay: use the originals"
    return (
        f"16 frames at spacing 4, one thread, files in memory, {times.videos} videos in turn: "
        f"{times.original_ms:.3g} ms from the originals, {times.cached_ms:.3g} ms from the cache (medians); "
        f"video by video {middle:.2g} x faster ({low:.2g} to {high:.2g}){verdict}"
    )


def _print_problems(rows: Sequence[tuple[str, ...]], columns: tuple[str, ...]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(*columns, box=None, pad_edge=False)
    for row in rows[:_MOST_SHOWN]:
        table.add_row(*map(escape, row))
    print_table(table)
    if len(rows) > _MOST_SHOWN:
        typer.echo(f"... and {len(rows) - _MOST_SHOWN} more; --json lists all")
    typer.echo("")


def _reach(progress: WorkProgress, done: int, total: int) -> None:
    progress.reach(done, "", total=total)
