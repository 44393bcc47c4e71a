"""What is in a store, as plain data: for the command line to print, or to pass on as JSON."""

from __future__ import annotations

import json
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mvd_offline.shards.errors import MissingRowError
from mvd_offline.shards.index import NO_ROW
from mvd_offline.shards.schema import CLIPS, STATUSES, CommitRecord
from mvd_offline.shards.statistics import FeatureStatistics, coding_summary, psnr_summary, spread_rows
from mvd_offline.shards.store import Store

PENDING: Final = "pending"
"""A view whose shard is not committed yet; beside STATUSES."""

_HEAD_BYTES: Final = 4096


def info(store: Store) -> dict[str, Any]:
    """Identity, columns and progress."""
    columns = {}
    for name, spec in store.header.columns.items():
        index = store.status(name)
        columns[name] = {
            "column_id": spec.column_id,
            "tokens": spec.tokens,
            "width": spec.width,
            "codec": spec.codec,
            "container": spec.container,
            "max_relative_error": spec.max_relative_error,
            "row_bytes": store.row_bytes(name),
            "payload_bytes": int(index.length[index.ok].sum()),
            "shards_committed": len(store.committed(name)),
            "rows": index.counts(),
            "indexed": store.is_indexed(name),
            "producers": producers(store, name),
            **({"psnr": psnr_summary(index)} if name == CLIPS else {}),
            "source": dict(spec.source),
        }
    return {
        "root": str(store.root),
        "store_id": store.store_id,
        **store.header.identity,
        "views": len(store.view_ids),
        "shards": store.shard_count,
        "sealed": store.sealed,
        "columns": columns,
    }


def producers(store: Store, column: str) -> list[dict[str, Any]]:
    """Who computed the column's targets, and how many shards of it; most shards first."""
    found = Counter(
        tuple(sorted(_producer(store.record_path(column, shard)).items())) for shard in sorted(store.committed(column))
    )
    return [{"producer": dict(producer), "shards": count} for producer, count in found.most_common()]


def _producer(path: Path) -> dict[str, str]:
    """A record's producer; it stands before the rows (keys are sorted), so the head of the file will do."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES).decode("ascii", "replace")
    try:
        start = head.index('"producer":') + len('"producer":')
        producer: dict[str, str] = json.JSONDecoder().raw_decode(head, start)[0]
    except ValueError:
        producer = dict(CommitRecord.from_bytes(path.read_bytes(), str(path)).producer)
    return producer


# ---- shards and rows ---------------------------------------------------------------------------------------------


def rows_by_shard(store: Store, column: str) -> NDArray[np.int64]:
    """Views of each shard by what became of them: (shards, statuses + 1), the last being those without a record."""
    kinds = len(STATUSES) + 1
    status = store.status(column).status[store.view_ids].astype(np.int64)
    status[status == NO_ROW] = kinds - 1
    cells = store.view_ids // store.header.rows_per_shard * kinds + status
    return np.bincount(cells, minlength=store.shard_count * kinds).reshape(store.shard_count, kinds)


def ls(store: Store) -> list[dict[str, Any]]:
    """One entry for each shard of each column: its views, state, size on disk and rows by status.

    The state is `committed`, `pending`, or `gone` for a committed shard whose file is not there.
    """
    bounds = np.searchsorted(store.view_ids, np.arange(store.shard_count + 1) * store.header.rows_per_shard)
    entries = []
    for column in store.columns:
        committed = store.committed(column)
        counts = rows_by_shard(store, column)
        for shard, (start, stop) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)):
            size = file_size(store.shard_path(column, shard)) if shard in committed else None
            state = PENDING if shard not in committed else "gone" if size is None else "committed"
            entries.append(
                {
                    "column": column,
                    "shard": shard,
                    "state": state,
                    "first_view": int(store.view_ids[start]) if stop > start else None,
                    "last_view": int(store.view_ids[stop - 1]) if stop > start else None,
                    "views": stop - start,
                    "file": f"{column}/{store.shard_path(column, shard).name}",
                    "size": size,
                    "rows": {name: int(n) for name, n in zip(STATUSES, counts[shard], strict=False) if n},
                }
            )
    return entries


def join_shards(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Entries of `ls` with neighbours of one column in the same state made one: `shard` to `last_shard`."""
    return [_joined(list(run)) for _, run in groupby(entries, key=lambda entry: (entry["column"], entry["state"]))]


def _joined(shards: list[dict[str, Any]]) -> dict[str, Any]:
    views = [entry for entry in shards if entry["views"]] or shards
    rows: Counter[str] = Counter()
    for entry in shards:
        rows.update(entry["rows"])
    return {
        **shards[0],
        "last_shard": shards[-1]["shard"],
        "first_view": views[0]["first_view"],
        "last_view": views[-1]["last_view"],
        "views": sum(entry["views"] for entry in shards),
        "file": shards[0]["file"] if len(shards) == 1 else f"{len(shards)} files",
        "size": sum(entry["size"] or 0 for entry in shards) or None,
        "rows": {name: rows[name] for name in STATUSES if rows[name]},
    }


def failures(store: Store) -> list[dict[str, Any]]:
    """Views without a target, with the reason, by column and view."""
    return [
        {
            "view_id": view_id,
            "column": name,
            "status": STATUSES[index.status[view_id]],
            "detail": index.details[view_id],
        }
        for name in store.columns
        for index in (store.status(name),)
        for view_id in sorted(index.details)
    ]


def file_size(path: Path) -> int | None:
    """Bytes of a file; None when it is not there."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


# ---- values ------------------------------------------------------------------------------------------------------


def stats(store: Store, column: str, rows: int = 256, *, outliers: int = 10) -> dict[str, Any]:
    """Statistics of a column: what coding cost (all rows), and its values over up to `rows` views, evenly spread.

    One row at a time is held in memory.

    Raises:
        MissingRowError: the column has no target yet, or the store no such column.
    """
    spec = store.header.columns[store.checked_columns([column])[0]]
    if column == CLIPS:
        raise MissingRowError(
            "column clips holds frames, not features; what baking cost is in `mvd-offline shards info`."
        )
    ok = store.ok_rows([column])
    if len(ok) == 0:
        raise MissingRowError(f"column {column} has no target yet: run `mvd-offline extract {store.root}`.")
    found = FeatureStatistics(spec.tokens, spec.width)
    for view_id in spread_rows(ok, rows):
        found.add(store.read([view_id], [column])[column][0])
    return {
        "column": column,
        "codec": spec.codec,
        "coding": coding_summary(store.status(column)),
        **found.summary(outliers),
    }
