"""Stores that hold nothing but their plan: enough for the order of samples."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path

from mvd_offline.recipe import DistillRecipe, load_distill
from mvd_offline.shards import Store, StoreHeader, create_store
from mvd_offline.video.catalog import Catalog, Video
from mvd_offline.video.views import Plan


def recipe_of(*, seed: int = 0, view_seed: int = 0, groups: int = 1, clips: int = 1, batch: int = 4) -> DistillRecipe:
    """A recipe with online targets, for which every readable video of a plan is usable."""
    return load_distill(
        {
            "kind": "distill",
            "name": "small",
            "targets": "online",
            "view": {
                "frames": 4, "stride": 2, "image_size": 32, "groups": groups, "seed": view_seed, "num_sample": clips,
            },
            "teachers": {"video": {"weights": "random:vit_tiny:2"}},
            "store": {"rows_per_shard": 4},
            "optim": {"batch_size": batch},
            "training": {"seed": seed, "shuffle_window_shards": 2},
        }
    )  # fmt: skip


def planned_store(folder: Path, recipe: DistillRecipe, videos: int, *, broken: Container[int] = ()) -> Store:
    """A store of so many videos; the scan could not read those that are `broken`."""
    catalog = Catalog(tuple(_video(n, "unreadable" if n in broken else "ok") for n in range(videos)), folder, ())
    plan = Plan.from_catalog(catalog, recipe.view, recipe.store.rows_per_shard)
    grid = recipe.view.grid
    header = StoreHeader(
        plan_sha256=plan.sha256,
        rows=plan.rows,
        rows_per_shard=recipe.store.rows_per_shard,
        batch_rows=recipe.store.batch_rows,
        grid=(grid.t, grid.h, grid.w),
        view=recipe.view.model_dump(mode="json"),
        columns={},
    )
    return create_store(folder, header, plan.to_bytes())


def _video(number: int, status: str) -> Video:
    name = f"{number:04d}.mp4"
    return Video(
        video_id=name, path=name, label=0, label_name="", frames=30, fps=25.0, width=64, height=48, size=1, mtime_ns=2,
        sha256="ab", status=status, detail="" if status == "ok" else "broken", decoder="decord",
    )  # fmt: skip
