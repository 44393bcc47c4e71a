"""A small store like another: the same teachers, codecs and sizes, on the first of its views. To measure on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mvd_offline.errors import UsageError
from mvd_offline.local import Local, read_local, resolve_root, write_local
from mvd_offline.shards.store import Store, create_store
from mvd_offline.video.views import Plan


def make_miniature(store: Store, folder: Path, views: int, *, root: Path | None = None) -> Store:
    """A planned and empty store of at most so many views, all of which are ok in the plan.

    Raises:
        UsageError: the store has no view that is ok among the first ones.
    """
    rows_per_shard = min(store.header.rows_per_shard, views)
    plan = Plan.read(store.plan_path).beginning(views, rows_per_shard)
    if not len(plan):
        raise UsageError(f"{store.root} has no readable video among its first ones, so that nothing can be measured.")
    header = replace(
        store.header,
        plan_sha256=plan.sha256,
        rows=plan.rows,
        rows_per_shard=rows_per_shard,
        view=plan.section.model_dump(mode="json"),
    )
    made = create_store(folder, header, plan.to_bytes())
    write_local(folder, Local(resolve_root(store.root, root), read_local(store.root).teachers))
    return made
