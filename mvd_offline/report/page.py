"""The page: numbers and pictures of a store in one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvd_offline.errors import UsageError
from mvd_offline.local import resolve_root
from mvd_offline.report import figures, frame
from mvd_offline.report.gallery import Exhibit, gallery
from mvd_offline.shards.atomic import publish_bytes
from mvd_offline.shards.report import KINDS, report_numbers
from mvd_offline.shards.schema import CLIPS
from mvd_offline.shards.statistics import OUTLIER_RATIO
from mvd_offline.shards.store import open_store
from mvd_offline.video.views import Plan

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is, and how much there is."""


@dataclass(frozen=True)
class Report:
    """What was written: the page, the numbers on it, and the views of its gallery."""

    page: Path
    page_bytes: int
    views: tuple[int, ...]
    views_without_frames: tuple[int, ...]
    numbers: Mapping[str, Any]


def write_report(
    store_dir: Path,
    out: Path,
    *,
    root: Path | None = None,
    views: int = 6,
    rows: int = 256,
    seed: int = 0,
    on_progress: Progress = lambda what, done, total: None,
) -> Report:
    """Write the report of a store, finished or not. The same store, videos and arguments give the same bytes.

    Args:
        out: HTML file to write; one that is there is replaced.
        root: folder of the videos, when it is not the one remembered. Where videos are gone the page says so.
        views: how many views the gallery shows.
        rows: how many rows of each column are read for the statistics of its features.
        seed: which rows and views are drawn.

    Raises:
        UsageError: `out` cannot be a file there, or lies in the store; or `root` was given and is no folder.
        CorruptionError: a row that was drawn does not match its checksum.
    """
    if out.is_dir() or not out.parent.is_dir() or store_dir.resolve() in out.resolve().parents:
        raise UsageError(f"{out} cannot be written: give a file in a folder that exists, not in the store, as --out.")
    store = open_store(store_dir, sealed=False)
    plan = Plan.read(store.plan_path)
    videos, trouble = _find_videos(store_dir, root)
    numbers = report_numbers(
        store, rows=rows, seed=seed, on_row=lambda done, total: on_progress("reading rows", done, total)
    )
    exhibits = gallery(
        store,
        plan,
        videos,
        views=views,
        seed=seed,
        on_view=lambda done, total: on_progress("drawing views", done, total),
    )
    page = render_page(store_dir.resolve().name, numbers, exhibits, plan, trouble).encode()
    publish_bytes(out, page)
    return Report(
        page=out,
        page_bytes=len(page),
        views=tuple(exhibit.pictures.view.view_id for exhibit in exhibits),
        views_without_frames=tuple(e.pictures.view.view_id for e in exhibits if e.pictures.originals is None),
        numbers=numbers,
    )


def _find_videos(store_dir: Path, root: Path | None) -> tuple[Path | None, str]:
    """The folder of the videos, or why there is none; a folder that was asked for must be there."""
    try:
        return resolve_root(store_dir, root), ""
    except UsageError as error:
        if root is not None:
            raise
        return None, str(error)


def render_page(name: str, numbers: Mapping[str, Any], exhibits: list[Exhibit], plan: Plan, trouble: str = "") -> str:
    """The page's HTML.

    Args:
        name: what the store is called on the page.
        plan: names the views' videos.
        trouble: why no video was looked for.
    """
    teachers = [column for column in numbers["store"]["columns"] if column != CLIPS]
    return frame.render_page(
        "page.html",
        name=name,
        numbers=numbers,
        teachers=teachers,
        targets=sum(numbers["sizes"][column]["rows"] for column in teachers),
        exhibits=exhibits,
        plan=plan,
        trouble=trouble,
        kinds=KINDS,
        charts={column: _charts(found) for column, found in numbers["features"].items() if found},
        outlier_ratio=OUTLIER_RATIO,
        heat=_heat_maps(numbers["features"]),
        stack=figures.stack,
    )


def _charts(found: Mapping[str, Any]) -> dict[str, Any]:
    """Geometry of a column's two bar charts."""
    rms = sorted(found["rms_by_channel"], reverse=True)
    scale = figures.LogScale.of(rms)
    median = found["channel_rms"]["median"]
    levels = [scale.level(value) for value in rms]
    outlying = [value > OUTLIER_RATIO * median for value in rms]
    return {
        "norms": figures.bars(figures.linear_levels(found["norm_histogram"]["counts"])),
        "channels": figures.bars(levels),
        "outliers": figures.bars(levels, outlying),
        "median_y": figures.HEIGHT * (1 - scale.level(median)),
    }


def _heat_maps(features: Mapping[str, Any]) -> dict[str, Any]:
    """Heat maps of the columns' slice cosines on one scale of colours."""
    matrices = {name: found["slice_cosines"] for name, found in features.items() if found}
    floor = figures.colour_floor(list(matrices.values()))
    return {"floor": floor, "cells": {name: figures.heat_map(matrix, floor) for name, matrix in matrices.items()}}
