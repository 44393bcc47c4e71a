"""Running the teachers again over some rows of a store: does what is stored still come out?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from mvd_offline.errors import VideoError
from mvd_offline.extract import batch_features, batches_of, load_column_teacher
from mvd_offline.local import read_local, resolve_root
from mvd_offline.models.teachers import Teacher
from mvd_offline.recipe import TEACHER_NAMES
from mvd_offline.shards.codecs import get_codec
from mvd_offline.shards.errors import MissingRowError
from mvd_offline.shards.store import Store, open_store
from mvd_offline.video.feed import FeedItem
from mvd_offline.video.views import Plan, View, pixel_hash, render_sizes

RELATIVE_ERROR_LIMIT: Final = 0.02
"""Largest relative L2 error of a recomputed row that passes. On the device that extracted, rows come back identical;
on another, half-precision teachers differ by their rounding."""


@dataclass(frozen=True)
class ColumnComparison:
    """Stored rows of one column against the same rows computed anew."""

    rows: int
    identical: int
    """Rows whose coded bytes are the same."""
    relative_error: Mapping[str, float]
    """L2 norm of the difference over that of the recomputed row: quantiles over rows (coding included)."""
    cosine: Mapping[str, float]
    """Cosine of stored and recomputed token vectors: quantiles over tokens."""
    worst_view: int


@dataclass(frozen=True)
class RecomputeReport:
    """What running the teachers again over some rows gave."""

    columns: Mapping[str, ColumnComparison]
    pixels_checked: int
    findings: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.findings


def recompute(
    store_dir: Path,
    rows: int = 8,
    *,
    root: Path | None = None,
    weights: Mapping[str, str] | None = None,
    device: str | None = None,
) -> RecomputeReport:
    """Render some views again, run the teachers exactly as extraction did, and compare with what is stored.

    Views are spread evenly over those that have a target in every column, and run in the batches that extraction
    formed; every row of those batches is compared.

    Args:
        rows: views to start from.
        root: folder of the videos, when it is not the one remembered.
        weights: teachers' weights by column, when they are not where they were.
        device: where the teachers run; the accelerator when there is one.
    """
    store = open_store(store_dir, sealed=False)
    root = resolve_root(store_dir, root)
    on = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    paths = {**read_local(store_dir).teachers, **(weights or {})}
    teachers: dict[str, Teacher] = {
        name: load_column_teacher(store, name, paths, on) for name in TEACHER_NAMES if name in store.columns
    }
    sizes = [teacher.image_size for teacher in teachers.values()]
    plan = Plan.read(store.plan_path)
    findings: list[str] = []
    pairs: dict[str, list[_Pair]] = {name: [] for name in teachers}
    pixels_checked = 0
    for ids in _chosen_batches(store, rows):
        items = [_render_again(store, plan[int(view_id)], root, sizes) for view_id in ids]
        features = batch_features(items, store.header.batch_rows, teachers, on)
        for slot, item in enumerate(items):
            if item.renderings is None:
                if item.error is not None and store.pixel_hash(item.view.view_id):
                    findings.append(f"view {item.view.view_id} cannot be rendered any more: {item.error}")
                continue
            pixels_checked += 1
            findings += _pixel_findings(store, item)
            for name in teachers:
                pairs[name].append(_Pair.of(store, name, item.view.view_id, features[name][slot]))
    columns = {name: _compare(found) for name, found in pairs.items() if found}
    for name, comparison in columns.items():
        if comparison.relative_error["max"] > RELATIVE_ERROR_LIMIT:
            findings.append(
                f"column {name}: view {comparison.worst_view} differs from its recomputation by "
                f"{comparison.relative_error['max']:.2%} (limit {RELATIVE_ERROR_LIMIT:.0%})"
            )
    return RecomputeReport(columns, pixels_checked, tuple(findings))


@dataclass(frozen=True)
class _Pair:
    view_id: int
    identical: bool
    relative_error: float
    cosines: NDArray[np.float64]

    @classmethod
    def of(cls, store: Store, column: str, view_id: int, again: NDArray[np.float32]) -> _Pair:
        codec = get_codec(store.header.columns[column].codec)
        coded = store.read_coded(column, [view_id])[0]
        stored, wanted = codec.decode(coded).astype(np.float64), again.astype(np.float64)
        products = np.linalg.norm(stored, axis=1) * np.linalg.norm(wanted, axis=1)
        return cls(
            view_id=view_id,
            identical=np.array_equal(coded, codec.encode(again)),
            relative_error=float(np.linalg.norm(stored - wanted)) / max(float(np.linalg.norm(wanted)), 1e-30),
            cosines=(stored * wanted).sum(axis=1) / np.maximum(products, 1e-30),
        )


def _compare(pairs: list[_Pair]) -> ColumnComparison:
    errors = np.array([pair.relative_error for pair in pairs])
    return ColumnComparison(
        rows=len(pairs),
        identical=sum(pair.identical for pair in pairs),
        relative_error=_quantiles(errors),
        cosine=_quantiles(np.concatenate([pair.cosines for pair in pairs])),
        worst_view=pairs[int(errors.argmax())].view_id,
    )


def _quantiles(values: NDArray[np.float64]) -> dict[str, float]:
    return dict(zip(("min", "median", "p95", "max"), np.quantile(values, (0.0, 0.5, 0.95, 1.0)).tolist(), strict=True))


def _chosen_batches(store: Store, rows: int) -> list[NDArray[np.int64]]:
    ok = store.ok_rows()
    if len(ok) == 0:
        raise MissingRowError(f"{store.root} has no row to recompute yet: run `mvd-offline extract {store.root}`.")
    chosen = set(ok[np.unique(np.linspace(0, len(ok) - 1, min(rows, len(ok))).round().astype(np.int64))].tolist())
    shards = sorted({view_id // store.header.rows_per_shard for view_id in chosen})
    batches = [ids for shard in shards for ids in batches_of(store.shard_view_ids(shard), store.header.batch_rows)]
    return [ids for ids in batches if chosen & set(ids.tolist())]


def _render_again(store: Store, view: View, root: Path, sizes: list[int]) -> FeedItem:
    """A view as extraction saw it: one that failed then takes no part now."""
    if not all(store.status(name).ok[view.view_id] for name in store.columns):
        return FeedItem(view, None, None)
    size = int(store.header.view["image_size"])
    try:
        return FeedItem(view, render_sizes(view, root, tuple(dict.fromkeys((size, *sizes)))), None)
    except VideoError as error:
        return FeedItem(view, None, error)


def _pixel_findings(store: Store, item: FeedItem) -> list[str]:
    assert item.renderings is not None
    rendered = item.renderings[int(store.header.view["image_size"])]
    recorded = store.pixels_of(item.view.view_id)
    found = pixel_hash(rendered.pixels)
    if found == recorded.pixels:
        return []
    return [
        f"view {item.view.view_id} renders to other pixels than its teachers saw: {found} with {rendered.decoder} "
        f"here, {recorded.pixels} with {recorded.decoder} at extraction"
    ]
