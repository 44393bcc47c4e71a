"""Running the teachers again over some rows of a store: does what is stored still come out?

Where it does not, what is known to be different is named: the teacher, the software and device, the decoder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from mvd_offline.errors import CheckpointError, VideoError
from mvd_offline.extract import find_column_teacher, producer_of
from mvd_offline.extraction.batches import batch_features, batches_of
from mvd_offline.local import read_local, resolve_root
from mvd_offline.models.teachers import Teacher
from mvd_offline.shards.codecs import get_codec
from mvd_offline.shards.errors import MissingRowError
from mvd_offline.shards.schema import CLIPS, list_differences
from mvd_offline.shards.statistics import quantiles, spread_rows
from mvd_offline.shards.store import Store, open_store
from mvd_offline.video.baking import baked_clips
from mvd_offline.video.feed import FeedItem
from mvd_offline.video.views import Plan, View, pixel_hash, render_sizes

RELATIVE_ERROR_LIMIT: Final = 0.02
"""How much larger than its recorded coding error the relative L2 error of a row may be. On the device that extracted,
rows come back identical; on another, half-precision teachers differ by their rounding."""


@dataclass(frozen=True)
class ColumnComparison:
    """Stored rows of one column against the same rows computed anew."""

    rows: int
    identical: int
    """Rows whose coded bytes are the same."""
    failing: int
    """Rows whose error is above their recorded coding error and the limit."""
    relative_error: Mapping[str, float]
    """L2 norm of the difference over that of the recomputed row: quantiles over rows (coding included)."""
    coding_error: Mapping[str, float]
    """What coding alone cost these rows, as recorded: quantiles over rows."""
    cosine: Mapping[str, float]
    """Cosine of stored and recomputed token vectors: quantiles over tokens."""
    worst_view: int
    worst_error: float
    """Of the row that is furthest above its coding error."""


@dataclass(frozen=True)
class RecomputeReport:
    """What running the teachers again over some rows gave."""

    columns: Mapping[str, ColumnComparison]
    pixels_checked: int
    findings: tuple[str, ...]
    notes: tuple[str, ...]
    """What is different here from the extraction, and made no difference."""

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

    Clips that the store keeps are taken from there.

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
    teachers = _Teachers(store, {**read_local(store_dir).teachers, **(weights or {})}, on)
    pixels = _Pixels(store)
    plan = Plan.read(store.plan_path)
    pairs: dict[str, list[_Pair]] = {name: [] for name in teachers.usable}
    for ids in _chosen_batches(store, rows):
        items = [_render_again(store, plan[int(view_id)], root, teachers.sizes) for view_id in ids]
        features = batch_features(items, store.header.batch_rows, teachers.usable, on)
        for slot, item in enumerate(items):
            pixels.look_at(item)
            if item.renderings is not None:
                for name in teachers.usable:
                    pairs[name].append(_Pair.of(store, name, item.view.view_id, features[name][slot].cpu().numpy()))
    columns = {name: _compare(found) for name, found in pairs.items() if found}
    findings, notes = [*teachers.findings, *pixels.findings], [*pixels.notes]
    for name, comparison in columns.items():
        changed = _changed_producer(store, name, [pair.view_id for pair in pairs[name]], on)
        if comparison.failing:
            findings.append(_deviation(name, comparison, changed or teachers.doubt(name)))
        elif changed:
            notes.append(f"column {name}: {changed}; the values agree within rounding")
    return RecomputeReport(columns, pixels.checked, tuple(findings), tuple(notes))


class _Teachers:
    """The teachers at hand for a store's columns; those of another identity take part if their features fit."""

    def __init__(self, store: Store, paths: Mapping[str, str], device: torch.device) -> None:
        self.findings: list[str] = []
        self.usable: dict[str, Teacher] = {}
        self._others: set[str] = set()
        for name in store.target_columns:
            spec = store.header.columns[name]
            try:
                teacher, differences = find_column_teacher(store, name, paths)
            except CheckpointError as error:
                self.findings.append(
                    f"column {name}: nothing was compared, its teacher cannot be loaded: {error}. Give the right file "
                    f"with --teacher {name}=PATH."
                )
                continue
            fits = (teacher.tokens, teacher.width) == (spec.tokens, spec.width)
            if differences:
                self._others.add(name)
                rest = "" if fits else ", and nothing was compared"
                fields = list_differences(differences, "teacher", "store")
                self.findings.append(
                    f"column {name}: the teacher at {paths[name]} is not the one of the store{rest}:{fields}"
                )
            if fits:
                self.usable[name] = teacher.to(device)

    @property
    def sizes(self) -> list[int]:
        return [teacher.image_size for teacher in self.usable.values()]

    def doubt(self, name: str) -> str:
        """What to think of a column that deviates although software and device are those of the extraction."""
        if name in self._others:
            return "its teacher is another one, see above"
        return (
            "teacher, software and device are those of the extraction, so that either the videos are others, or the "
            "stored values are not this teacher's"
        )


class _Pixels:
    """Compares the pixels of views with what the teachers saw at extraction."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._same: dict[tuple[str, str], int] = {}
        self.checked = 0
        self.findings: list[str] = []

    def look_at(self, item: FeedItem) -> None:
        view_id = item.view.view_id
        if item.renderings is None:
            if item.error is not None:
                self.findings.append(f"view {view_id} cannot be rendered any more: {item.error}")
            return
        self.checked += 1
        rendered = item.renderings[int(self._store.header.view["image_size"])]
        found, decoders = pixel_hash(rendered.pixels), set[str]()
        for name in self._store.columns:
            recorded = self._store.status(name).row(view_id)
            if found != recorded.pixels:
                self.findings.append(
                    f"column {name}: view {view_id} renders to other pixels than its teacher saw: {found} with "
                    f"{rendered.decoder} here, {recorded.pixels} with {recorded.decoder} at extraction"
                )
            elif rendered.decoder != recorded.decoder:
                decoders.add(recorded.decoder)
        for decoder in sorted(decoders):
            pair = decoder, rendered.decoder
            self._same[pair] = self._same.get(pair, 0) + 1

    @property
    def notes(self) -> list[str]:
        return [
            f"{count} views were decoded by {before} at extraction, and by {here} here; the pixels are the same"
            for (before, here), count in self._same.items()
        ]


def _changed_producer(store: Store, name: str, view_ids: Iterable[int], device: torch.device) -> str:
    """Who computed these rows, and who does here; empty where that is the same."""
    here = producer_of(device)
    shards = sorted({view_id // store.header.rows_per_shard for view_id in view_ids})
    others = {_said(record.producer) for record in (store.record(name, shard) for shard in shards)} - {_said(here)}
    return f"extracted with {' and '.join(sorted(others))}, here {_said(here)}" if others else ""


def _said(producer: Mapping[str, str]) -> str:
    if producer.keys() == {"torch", "device"}:
        return f"torch {producer['torch']} on {producer['device']}"
    return ", ".join(f"{key} {value}" for key, value in sorted(producer.items())) or "unknown software"


def _deviation(name: str, comparison: ColumnComparison, why: str) -> str:
    return (
        f"column {name}: {comparison.failing} of {comparison.rows} rows differ from their recomputation by more than "
        f"their coding error and {RELATIVE_ERROR_LIMIT:.0%}, view {comparison.worst_view} by "
        f"{comparison.worst_error:.2%}; {why}"
    )


# ---- comparing ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pair:
    view_id: int
    identical: bool
    relative_error: float
    coding_error: float
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
            coding_error=store.status(column).row(view_id).relative_error,
            cosines=(stored * wanted).sum(axis=1) / np.maximum(products, 1e-30),
        )

    @property
    def beyond_coding(self) -> float:
        return self.relative_error - self.coding_error


def _compare(pairs: list[_Pair]) -> ColumnComparison:
    worst = max(pairs, key=lambda pair: pair.beyond_coding)
    return ColumnComparison(
        rows=len(pairs),
        identical=sum(pair.identical for pair in pairs),
        failing=sum(pair.beyond_coding > RELATIVE_ERROR_LIMIT for pair in pairs),
        relative_error=quantiles(np.array([pair.relative_error for pair in pairs])),
        coding_error=quantiles(np.array([pair.coding_error for pair in pairs])),
        cosine=quantiles(np.concatenate([pair.cosines for pair in pairs])),
        worst_view=worst.view_id,
        worst_error=worst.relative_error,
    )


def _chosen_batches(store: Store, rows: int) -> list[NDArray[np.int64]]:
    ok = store.ok_rows()
    if len(ok) == 0:
        raise MissingRowError(f"{store.root} has no row to recompute yet: run `mvd-offline extract {store.root}`.")
    chosen = set(spread_rows(ok, rows).tolist())
    shards = sorted({view_id // store.header.rows_per_shard for view_id in chosen})
    batches = [ids for shard in shards for ids in batches_of(store.shard_view_ids(shard), store.header.batch_rows)]
    return [ids for ids in batches if chosen & set(ids.tolist())]


def _render_again(store: Store, view: View, root: Path, sizes: list[int]) -> FeedItem:
    """A view as extraction saw it: one that failed then takes no part now."""
    if not all(store.status(name).ok[view.view_id] for name in store.columns):
        return FeedItem(view, None, None)
    size = int(store.header.view["image_size"])
    if CLIPS in store.columns:
        return FeedItem(view, baked_clips(store, [view.view_id], sizes)[0], None)
    try:
        return FeedItem(view, render_sizes(view, root, tuple(dict.fromkeys((size, *sizes)))), None)
    except VideoError as error:
        return FeedItem(view, None, error)
