"""The numbers of a store's report, as plain data: identity, coverage, failures, sizes, coding error, features."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from mvd_offline.shards.inspect import PENDING, file_size, info, rows_by_shard
from mvd_offline.shards.schema import CLIPS, STATUSES
from mvd_offline.shards.statistics import OUTLIER_RATIO, FeatureStatistics, coding_summary, drawn_rows
from mvd_offline.shards.store import Store

KINDS: Final = (*STATUSES, PENDING)
"""What can become of a view in a column, as the report counts it."""

MOST_BINS: Final = 120
"""Pieces of a coverage strip; several shards each when there are more."""
MOST_REASONS: Final = 40
MOST_EXAMPLES: Final = 5


def report_numbers(
    store: Store, *, rows: int = 256, seed: int = 0, on_row: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """All that the report says in numbers.

    Args:
        rows: of each column's rows with a target, how many to read; drawn at random, one in memory at a time.
        seed: of the draw; the same store, rows and seed give the same numbers.
        on_row: called with rows read and rows to read.

    Raises:
        CorruptionError: a row that was drawn does not match its checksum.
    """
    chosen = {name: drawn_rows(store.ok_rows([name]), rows, seed) for name in store.target_columns}
    total, done = sum(map(len, chosen.values())), 0
    features: dict[str, Any] = {}
    for name, ids in chosen.items():
        spec = store.header.columns[name]
        slices = store.header.grid[0] if spec.tokens == math.prod(store.header.grid) else 1
        found = FeatureStatistics(spec.tokens, spec.width, slices)
        for view_id in ids:
            found.add(store.read([view_id], [name])[name][0])
            done += 1
            on_row(done, total)
        features[name] = _feature_numbers(found) if found.rows else None
    return {
        "store": info(store),
        "seed": seed,
        "coverage": coverage(store),
        "failures": failure_groups(store),
        "sizes": {name: sizes(store, name) for name in store.columns},
        "coding": {name: coding_summary(store.status(name)) for name in store.target_columns},
        "features": features,
    }


def coverage(store: Store) -> dict[str, Any]:
    """Views by what became of them: of each column as a whole, and along its shards in at most `MOST_BINS` pieces."""
    shards = np.arange(store.shard_count)
    pieces = np.array_split(shards, min(MOST_BINS, len(shards)))
    columns = {}
    for name in store.columns:
        counts = rows_by_shard(store, name)
        columns[name] = {
            "rows": dict(zip(KINDS, counts.sum(0).tolist(), strict=True)),
            "strip": [
                {
                    "first_shard": int(piece[0]),
                    "last_shard": int(piece[-1]),
                    "rows": dict(zip(KINDS, counts[piece].sum(0).tolist(), strict=True)),
                }
                for piece in pieces
            ],
        }
    return {"views": len(store.view_ids), "complete": len(store.ok_rows()), "columns": columns}


@dataclass
class _Reason:
    """Rows that failed alike."""

    status: str
    reason: str
    """As the first of them says it."""
    texts: set[str] = field(default_factory=set)
    columns: Counter[str] = field(default_factory=Counter)
    views: set[int] = field(default_factory=set)


def failure_groups(store: Store) -> dict[str, Any]:
    """Rows without a target by reason, the most frequent first; reasons that differ in numbers only are one.

    Of each reason its first views are named, of many reasons the most frequent `MOST_REASONS`.
    """
    groups: dict[tuple[str, str], _Reason] = {}
    for name in store.columns:
        index = store.status(name)
        for view_id in sorted(index.details):
            status, text = STATUSES[index.status[view_id]], index.details[view_id]
            group = groups.setdefault((status, re.sub(r"\d+", "0", text)), _Reason(status, text))
            group.texts.add(text)
            group.columns[name] += 1
            group.views.add(view_id)
    ordered = sorted(groups.values(), key=lambda group: (-group.columns.total(), min(group.views)))
    return {
        "rows": sum(group.columns.total() for group in ordered),
        "views": len(set().union(*(group.views for group in ordered))),
        "reasons": len(ordered),
        "reasons_left_out": max(len(ordered) - MOST_REASONS, 0),
        "groups": [
            {
                "status": group.status,
                "reason": group.reason,
                "other_texts": len(group.texts) - 1,
                "rows": group.columns.total(),
                "columns": dict(group.columns),
                "views": len(group.views),
                "first_views": sorted(group.views)[:MOST_EXAMPLES],
            }
            for group in ordered[:MOST_REASONS]
        ],
    }


def sizes(store: Store, column: str) -> dict[str, Any]:
    """Bytes of a column: payloads, files on disk, and what targets would take in float16 and float32."""
    spec, index = store.header.columns[column], store.status(column)
    ok = int(index.ok.sum())
    values = None if column == CLIPS else ok * spec.tokens * spec.width
    found = [file_size(store.shard_path(column, shard)) for shard in sorted(store.committed(column))]
    return {
        "rows": ok,
        "row_bytes": store.row_bytes(column),
        "payload_bytes": int(index.length[index.ok].sum()),
        "file_bytes": sum(size or 0 for size in found),
        "files_gone": found.count(None),
        "float16_bytes": None if values is None else 2 * values,
        "float32_bytes": None if values is None else 4 * values,
    }


def _feature_numbers(found: FeatureStatistics) -> dict[str, Any]:
    counts, edges = found.norm_histogram()
    rms = found.channel_rms()
    return {
        **found.summary(outliers=8),
        "norm_histogram": {"counts": counts, "edges": edges},
        "rms_by_channel": rms.tolist(),
        "outliers": int((rms > OUTLIER_RATIO * np.median(rms)).sum()),
        "slice_cosines": found.slice_cosines().tolist(),
    }
