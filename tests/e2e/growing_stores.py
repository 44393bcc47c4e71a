"""Stores in the middle of their extraction, made of a finished one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from small_runs import plan_small

from mvd_offline.shards import Store, open_store

SHARDS_PER_GROUP = 3
"""Of the store of `small_runs.make_store`."""


def store_with(made: Path, folder: Path, groups: Sequence[int] = (0,), lost: Sequence[int] = ()) -> Path:
    """A store in which, of the finished `made / "store"`, these groups are extracted; views `lost` were unreadable."""
    plan_small(made / "catalog.parquet", folder)
    for group in groups:
        add_group(made, folder, group, lost)
    return folder


def add_group(made: Path, folder: Path, group: int, lost: Sequence[int] = (), *, again: bool = False) -> None:
    """Extract a group; `again` where it is there already."""
    store, finished = open_store(folder, sealed=False), open_store(made / "store")
    for shard in range(SHARDS_PER_GROUP * group, SHARDS_PER_GROUP * (group + 1)):
        for column in store.columns:
            _copy_shard(finished, store, column, shard, lost, again)


def _copy_shard(finished: Store, store: Store, column: str, shard: int, lost: Sequence[int], again: bool) -> None:
    record = finished.record(column, shard)
    with store.write_shard(column, shard, producer=record.producer, replace=again) as writer:
        for row in record.rows:
            if row.view_id in lost:
                writer.fail(row.view_id, "unreadable", "broken")
            else:
                writer.keep(replace(row), finished.read_coded(column, [row.view_id])[0].tobytes())
