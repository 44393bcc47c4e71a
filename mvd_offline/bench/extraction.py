"""What an extraction loses to decoding, copying and writing: its clips/s beside those of its teachers alone."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mvd_offline.bench.measure import Spread, machine, wait_for
from mvd_offline.errors import UsageError, VideoError
from mvd_offline.extract import extract, load_column_teacher
from mvd_offline.extraction.batches import batches_of, stacked
from mvd_offline.extraction.miniature import make_miniature
from mvd_offline.extraction.summary import ExtractSummary
from mvd_offline.local import read_local, resolve_root
from mvd_offline.models.inputs import normalize
from mvd_offline.models.teachers import Teacher
from mvd_offline.processes import join_launch
from mvd_offline.shards.store import Store, open_store
from mvd_offline.video.feed import FeedItem
from mvd_offline.video.views import Plan, View, render_sizes


@dataclass(frozen=True)
class ExtractionTimes:
    """Clips a second of whole extractions, from the first decode to the seal, and of the same teachers on the same
    clips in memory: uint8 there, normalised and computed in the same batches.

    Attributes:
        share: the one of the other, round by round.
        processor_share: processor time of the teachers alone over that of an extraction, its decode processes and their
            start included: the share where they have no cores of their own, which other work on the machine disturbs
            less. None on a GPU.
        starting_seconds: of an extraction, before its first decode: it loads the teachers.
        seconds: of an extraction, by what it was busy with or waited for.
        rates: of the last extraction, see `extraction.rates.Rates`.
    """

    rows: int
    batch_rows: int
    rounds: int
    teachers: dict[str, str]
    extraction_clips_per_second: Spread
    teachers_clips_per_second: Spread
    share: Spread
    processor_share: Spread | None
    starting_seconds: Spread
    seconds: dict[str, Spread]
    rates: dict[str, Any]
    bytes_a_row: float
    machine: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def time_extraction(
    store_dir: Path, *, root: Path | None = None, rows: int, rounds: int, workers: int | None = None
) -> ExtractionTimes:
    """Extract the first rows of a store into a fresh one, and run its teachers on the same clips, in turn.

    Args:
        store_dir: planned; nothing is written there. The fresh stores lie beside it, on the same disk.
        workers: decode processes, as `extract` takes them.

    Raises:
        UsageError: a store without teachers, or without readable videos.
    """
    store, device = open_store(store_dir, sealed=False), join_launch().device
    if not store.target_columns:
        raise UsageError(f"{store_dir} has no teachers, so that its extraction would do nothing.")
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=store_dir.resolve().parent) as folder:
        make = partial(make_miniature, store, views=rows, root=root)
        small = make(Path(folder) / "clips")
        paths = read_local(small.root).teachers
        began = _processor_seconds()
        teachers = {name: load_column_teacher(small, name, paths, device) for name in small.target_columns}
        loading = _processor_seconds() - began
        batches = _in_memory(small, {teacher.image_size for teacher in teachers.values()})
        _seconds_of(teachers, batches[:1], device)
        whole, alone, used = list[ExtractSummary](), list[float](), (list[float](), list[float]())
        turns: list[Callable[[int], None]] = [
            lambda number: whole.append(_extract(make(Path(folder) / str(number)), workers)),
            lambda number: alone.append(_seconds_of(teachers, batches, device)),
        ]
        for number in range(rounds):
            for which in (0, 1) if number % 2 else (1, 0):
                began = _processor_seconds()
                turns[which](number)
                used[which].append(_processor_seconds() - began)
    processor_share = [its / (extraction - loading) for extraction, its in zip(*used, strict=True)]
    return _times(store, whole, alone, processor_share, device)


def _times(
    store: Store,
    whole: Sequence[ExtractSummary],
    alone: Sequence[float],
    processor_share: Sequence[float],
    device: torch.device,
) -> ExtractionTimes:
    rows = whole[0].rows["ok"]
    extraction = [rows / (one.elapsed_seconds - one.seconds["starting"]) for one in whole]
    teachers = [rows / seconds for seconds in alone]
    sources = {name: store.header.columns[name].source for name in store.target_columns}
    return ExtractionTimes(
        rows=rows,
        batch_rows=store.header.batch_rows,
        rounds=len(whole),
        teachers={
            name: f"width {source['architecture']['width']}, depth {source['architecture']['depth']}, "
            f"{source['image_size']} px, {source['precision']}"
            for name, source in sources.items()
        },
        extraction_clips_per_second=Spread.of(extraction),
        teachers_clips_per_second=Spread.of(teachers),
        share=Spread.of([one / other for one, other in zip(extraction, teachers, strict=True)]),
        processor_share=None if device.type == "cuda" else Spread.of(processor_share),
        starting_seconds=Spread.of([one.seconds["starting"] for one in whole]),
        seconds={
            stage: Spread.of([one.seconds[stage] for one in whole]) for stage in whole[0].seconds if stage != "starting"
        },
        rates=whole[-1].rates.to_json(),
        bytes_a_row=whole[0].bytes_written / rows,
        machine=machine(device),
    )


def _extract(store: Store, workers: int | None) -> ExtractSummary:
    summary = extract(store.root, workers=workers, timeout_seconds=600.0, quiet=True)
    shutil.rmtree(store.root)
    return summary


def _processor_seconds() -> float:
    """Of this process, and of those that it started and that are over."""
    return sum(os.times()[:4])


def _in_memory(store: Store, sizes: set[int]) -> list[dict[int, Tensor]]:
    """The batches of all shards by side in pixels, uint8 (batch_rows, T, S, S, 3)."""
    plan, root, rows = Plan.read(store.plan_path), resolve_root(store.root, None), store.header.batch_rows
    batches = []
    for shard in range(store.shard_count):
        for ids in batches_of(store.shard_view_ids(shard), rows):
            items = [_render(plan[view_id], root, sizes) for view_id in ids.tolist()]
            if any(item.renderings is not None for item in items):
                batches.append({size: stacked(items, rows, size) for size in sizes})
    return batches


def _render(view: View, root: Path, sizes: set[int]) -> FeedItem:
    try:
        return FeedItem(view, render_sizes(view, root, tuple(sizes)), None)
    except VideoError as error:
        return FeedItem(view, None, error)


def _seconds_of(teachers: Mapping[str, Teacher], batches: Sequence[dict[int, Tensor]], device: torch.device) -> float:
    began = time.perf_counter()
    with torch.inference_mode():
        for batch in batches:
            for teacher in teachers.values():
                teacher(normalize(batch[teacher.image_size].to(device)))
    wait_for(device)
    return time.perf_counter() - began
