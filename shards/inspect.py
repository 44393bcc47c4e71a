"""What is in a store, as plain data: for the command line to print, or to pass on as JSON."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mvd_offline.shards.errors import MissingRowError
from mvd_offline.shards.schema import STATUSES
from mvd_offline.shards.store import Store


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
            "row_bytes": store.row_bytes(name),
            "payload_bytes": int(index.length[index.ok].sum()),
            "shards_committed": len(store.committed(name)),
            "rows": index.counts(),
            "indexed": store.is_indexed(name),
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


def ls(store: Store) -> list[dict[str, Any]]:
    """One entry for each shard of each column: its views, state, size and rows by status."""
    entries = []
    for column in store.columns:
        committed = store.committed(column)
        for shard in range(store.shard_count):
            views = store.shard_view_ids(shard)
            entry: dict[str, Any] = {
                "column": column,
                "shard": shard,
                "state": "committed" if shard in committed else "pending",
                "first_view": int(views[0]) if len(views) else None,
                "last_view": int(views[-1]) if len(views) else None,
                "views": len(views),
                "file": f"{column}/{store.shard_path(column, shard).name}",
                "size": None,
                "sha256": None,
                "rows": {},
            }
            if shard in committed:
                record = store.record(column, shard)
                found = Counter(row.status for row in record.rows)
                counts = {status: found[status] for status in STATUSES if found[status]}
                entry |= {"size": record.size, "sha256": record.sha256, "rows": counts}
            entries.append(entry)
    return entries


def failures(store: Store) -> list[dict[str, Any]]:
    """Views without a target, with the reason, by view and column."""
    return [
        {"view_id": view_id, "column": name, "status": index.row(view_id).status, "detail": index.details[view_id]}
        for name in store.columns
        for index in (store.status(name),)
        for view_id in sorted(index.details)
    ]


def stats(store: Store, column: str, rows: int = 256, *, outliers: int = 10) -> dict[str, Any]:
    """Statistics of a column's values over up to `rows` views, evenly spread over those that have a target.

    Returns value mean, std, min, max; norms of token vectors; and for channels the root mean square over views and
    tokens, with those whose ratio to the median channel is largest: a few such channels decide which codec is safe.
    One row at a time is held in memory.
    """
    spec = store.header.columns[store.checked_columns([column])[0]]
    ok = store.ok_rows([column])
    if len(ok) == 0:
        raise MissingRowError(f"column {column} has no target yet: run `mvd-offline extract {store.root}`.")
    chosen = ok[np.unique(np.linspace(0, len(ok) - 1, min(rows, len(ok))).round().astype(np.int64))]
    total, squares = np.zeros(spec.width), np.zeros(spec.width)
    low, high, norms = np.inf, -np.inf, []
    for view_id in chosen:
        values = store.read([view_id], [column])[column][0].astype(np.float64)
        total += values.sum(0)
        squares += (values**2).sum(0)
        low, high = min(low, float(values.min())), max(high, float(values.max()))
        norms.append(np.linalg.norm(values, axis=1))
    count = len(chosen) * spec.tokens
    mean = float(total.sum() / (count * spec.width))
    variance = float(squares.sum() / (count * spec.width)) - mean**2
    return {
        "column": column,
        "rows": len(chosen),
        "values": count * spec.width,
        "mean": mean,
        "std": max(variance, 0.0) ** 0.5,
        "min": low,
        "max": high,
        "token_norm": _quantiles(np.concatenate(norms)),
        "channel_rms": _quantiles(np.sqrt(squares / count)),
        "outlier_channels": _outliers(np.sqrt(squares / count), total / count, outliers),
    }


def _quantiles(values: NDArray[np.float64]) -> dict[str, float]:
    names = ("min", "p05", "median", "p95", "max")
    return dict(zip(names, np.quantile(values, (0.0, 0.05, 0.5, 0.95, 1.0)).tolist(), strict=True))


def _outliers(rms: NDArray[np.float64], mean: NDArray[np.float64], most: int) -> list[dict[str, Any]]:
    median = float(np.median(rms))
    return [
        {
            "channel": int(channel),
            "rms": float(rms[channel]),
            "mean": float(mean[channel]),
            "ratio_to_median": float(rms[channel] / median) if median else None,
        }
        for channel in np.argsort(-rms, kind="stable")[:most]
    ]
