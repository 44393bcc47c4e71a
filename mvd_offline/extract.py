"""Running the frozen teachers over the views of a plan, once, into a store.

Decode processes run ahead of the teachers through a bounded queue, results are written behind them by one thread, and
one decode feeds all teachers. What a shard holds depends on the plan and the teachers alone: batches are formed inside
a shard, always of the same size (rows that failed are zeros that nobody reads), so that a shard made again is the
same to the bit, whoever makes it.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import broadcast_object_list, gather_object
from numpy.typing import NDArray

from mvd_offline.errors import UsageError
from mvd_offline.local import Local, absolute_weights, read_local, resolve_root, write_local
from mvd_offline.models.inputs import normalize
from mvd_offline.models.teachers import Teacher, load_teacher
from mvd_offline.progress import WorkProgress
from mvd_offline.recipe import TEACHER_NAMES, TeacherName
from mvd_offline.shards.errors import IdentityError
from mvd_offline.shards.schema import STATUSES, first_difference
from mvd_offline.shards.store import ShardWriter, Store, open_store
from mvd_offline.video.feed import FeedItem, RenderFeed
from mvd_offline.video.views import Plan, Rendered, pixel_hash

# Written results that may wait for the disk before the teachers do.
WRITE_AHEAD_BATCHES = 4


@dataclass
class ExtractSummary:
    """What an extraction did; `rows` counts by status, `seconds` by stage."""

    shards: int = 0
    rows: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[str, str, str]] = field(default_factory=list)
    """(video_id, status, reason), once a view."""
    bytes_written: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    elapsed_seconds: float = 0.0
    sealed: bool = False
    pending_shards: int = 0
    is_main: bool = True

    def take_in(self, parts: Sequence[ExtractSummary]) -> None:
        """Become the summary of all processes: counts are summed, seconds are those of this process."""
        self.shards = sum(part.shards for part in parts)
        self.rows = sum((part.rows for part in parts), Counter())
        self.failures = [failure for part in parts for failure in part.failures]
        self.bytes_written = sum(part.bytes_written for part in parts)

    def to_json(self) -> dict[str, Any]:
        rate = sum(self.rows.values()) / self.elapsed_seconds if self.elapsed_seconds else 0.0
        data = dataclasses.asdict(self) | {"rows": dict(self.rows), "clips_per_second": rate}
        del data["is_main"]
        return data


def extract(
    store_dir: Path,
    *,
    root: Path | None = None,
    weights: Mapping[str, str] | None = None,
    workers: int,
    timeout_seconds: float,
    retry: Sequence[str] = (),
    quiet: bool = False,
) -> ExtractSummary:
    """Fill the shards of a store that are not committed yet, and seal it when none is left.

    Under `accelerate launch` the shards are shared out between the processes.

    Args:
        root: folder of the videos, when it is not the one remembered.
        weights: teachers' weights by column, when they are not where they were at planning.
        workers: decode processes of each launch process.
        timeout_seconds: a view that takes longer to decode is recorded as `timeout`.
        retry: statuses whose rows are tried again; the shards that hold them are made again.

    Raises:
        IdentityError: a teacher is not the one that the store was planned with.
    """
    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=7))])
    store = open_store(store_dir, sealed=False)
    plan = Plan.read(store.plan_path)
    root = resolve_root(store_dir, root)
    given = {name: absolute_weights(path) for name, path in (weights or {}).items()}
    paths = {**read_local(store_dir).teachers, **given}
    if accelerator.is_main_process:
        store.clean_temporary()
        reopen_rows(store, plan, retry)
        write_local(store_dir, Local(root.resolve(), paths))
    accelerator.wait_for_everyone()
    store.refresh()

    began = time.perf_counter()
    summary = ExtractSummary(is_main=accelerator.is_main_process)
    # Listed once: what a process finishes first must not shift the others' shares.
    (work,) = broadcast_object_list([pending_work(store)])
    mine = work[accelerator.process_index :: accelerator.num_processes]
    if mine:
        needed = {column for _, columns in mine for column in columns}
        teachers: dict[str, Teacher] = {
            name: load_column_teacher(store, name, paths, accelerator.device)
            for name in TEACHER_NAMES
            if name in needed
        }
        sizes = [plan.section.image_size, *(teacher.image_size for teacher in teachers.values())]
        ahead = workers + 2 * store.header.batch_rows
        rows = sum(len(plan.shard_view_ids(shard)) for shard, _ in mine)
        with (
            RenderFeed(root, sizes, workers=workers, timeout_seconds=timeout_seconds, ahead=ahead) as feed,
            WorkProgress("extract", rows, unit="clips", enabled=accelerator.is_main_process and not quiet) as progress,
        ):
            _run(store, plan, feed, teachers, mine, summary, progress, accelerator.device)

    summary.take_in(gather_object([summary]))
    if accelerator.is_main_process:
        store.refresh()
        summary.pending_shards = len(pending_work(store))
        if not summary.pending_shards:
            store.seal()
            summary.sealed = True
    accelerator.wait_for_everyone()
    summary.elapsed_seconds = time.perf_counter() - began
    return summary


def pending_work(store: Store) -> list[tuple[int, list[str]]]:
    """Shards that lack a column, ascending, with the columns that they lack."""
    pending = {column: set(store.pending(column)) for column in store.columns}
    work = [(shard, [c for c, shards in pending.items() if shard in shards]) for shard in range(store.shard_count)]
    return [(shard, columns) for shard, columns in work if columns]


def reopen_rows(store: Store, plan: Plan, statuses: Sequence[str]) -> None:
    """Withdraw the shards that hold a row of one of these statuses, so that they are made again.

    Rows that have the status from the scan are no reason: the plan fixes them, and trying again cannot heal them.
    """
    if unknown := [status for status in statuses if status not in STATUSES[1:]]:
        raise UsageError(
            f"--retry {','.join(unknown)}: no row can have this status; allowed: {', '.join(STATUSES[1:])}"
        )
    if statuses:
        store.reopen_rows(statuses, among={view.view_id for view in plan if view.status == "ok"})


def load_column_teacher(store: Store, name: TeacherName, paths: Mapping[str, str], device: torch.device) -> Teacher:
    """The teacher of a column, checked to be the one that the store was planned with.

    Raises:
        UsageError: nothing says where its weights are. IdentityError: it is another one; names the field.
    """
    source = store.header.columns[name].source
    if name not in paths:
        raise UsageError(
            f"{store.root} does not know where teacher {name} is on this machine: give --teacher {name}=PATH."
        )
    teacher = load_teacher(
        paths[name],
        name,
        heads=source["architecture"]["heads"],
        image_size=source["image_size"],
        frames=store.header.view["frames"],
        tubelet_size=source["tubelet"],
        precision=source["precision"],
    )
    if difference := first_difference(dict(source), teacher.identity()):
        where, planned, found = difference
        raise IdentityError(
            f"teacher {name} at {paths[name]} is not the one that {store.root} was planned with: {where} is {found!r}, "
            f"the store has {planned!r}. Give the right file with --teacher {name}=PATH, or plan another store."
        )
    return teacher.to(device)


def _run(
    store: Store,
    plan: Plan,
    feed: RenderFeed,
    teachers: Mapping[str, Teacher],
    work: Sequence[tuple[int, list[str]]],
    summary: ExtractSummary,
    progress: WorkProgress,
    device: torch.device,
) -> None:
    """The pipeline: decoded items in plan order -> batches -> teachers -> the writing thread."""
    items = feed.items(plan[view_id] for shard, _ in work for view_id in plan.shard_view_ids(shard))
    clock = _Clock(summary.seconds)
    began, done = time.perf_counter(), 0
    with WriteBehind(store, summary, producer_of(device)) as writer:
        for shard, columns in work:
            writer.begin(shard, columns)
            for ids in batches_of(plan.shard_view_ids(shard), store.header.batch_rows):
                batch = [next(items) for _ in ids]
                clock.lap("waiting for decode")
                features = batch_features(batch, store.header.batch_rows, {c: teachers[c] for c in columns}, device)
                clock.lap("teachers")
                writer.rows(batch, features, plan.section.image_size)
                clock.lap("waiting for disk")
                done += len(batch)
                rate = done / (time.perf_counter() - began)
                progress.reach(done, f"{rate:.2f} clips/s  {summary.bytes_written / 1e9:.2f} GB")
            writer.commit()
        clock.lap("waiting for disk")
    clock.lap("waiting for disk")


def producer_of(device: torch.device) -> dict[str, str]:
    """What of software and hardware decides the last bits of the targets that this device computes."""
    if device.type == "cuda":
        return {"torch": torch.__version__, "device": torch.cuda.get_device_name(device)}
    return {"torch": torch.__version__, "device": f"{device.type} {torch.backends.cpu.get_cpu_capability()}"}


def batches_of(rows: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    """The teacher batches of a shard's views: part of what decides the last bits of the targets."""
    return (rows[start : start + size] for start in range(0, len(rows), size))


def batch_features(
    items: Sequence[FeedItem], batch_rows: int, teachers: Mapping[str, Teacher], device: torch.device
) -> dict[str, NDArray[np.float32]]:
    """Features (len(items), N, D) by column.

    The batch always has `batch_rows` clips, so that the shapes, and with them the last bits, do not depend on which
    rows failed.
    """
    features: dict[str, NDArray[np.float32]] = {}
    if all(item.renderings is None for item in items):
        return features
    for name, teacher in teachers.items():
        clips = _clips(items, batch_rows, teacher.image_size)
        with torch.inference_mode():
            output = teacher(normalize(torch.from_numpy(clips).to(device)))
        features[name] = output.float().cpu().numpy()[: len(items)]
    return features


def _clips(items: Sequence[FeedItem], batch_rows: int, size: int) -> NDArray[np.uint8]:
    first = next(item.renderings[size].pixels for item in items if item.renderings is not None)
    clips = np.zeros((batch_rows, *first.shape), np.uint8)
    for slot, item in enumerate(items):
        if item.renderings is not None:
            clips[slot] = item.renderings[size].pixels
    return clips


class WriteBehind:
    """One thread that encodes, writes and commits while the teachers go on; at most a few batches wait for it."""

    def __init__(self, store: Store, summary: ExtractSummary, producer: Mapping[str, str]) -> None:
        self._store, self._summary, self._producer = store, summary, producer
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="write-behind")
        self._pending: list[Future[None]] = []
        self._open = ExitStack()
        self._writers: dict[str, ShardWriter] = {}

    def __enter__(self) -> WriteBehind:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if error is None:
                self._drain(0)
        finally:
            # What is not committed leaves nothing behind: its writers see the exception.
            self._thread.shutdown(wait=True, cancel_futures=True)
            self._open.__exit__(kind or RuntimeError, error or RuntimeError("not committed"), None)

    def begin(self, shard: int, columns: Sequence[str]) -> None:
        self._submit(self._begin, shard, columns)

    def rows(self, items: Sequence[FeedItem], features: Mapping[str, NDArray[np.float32]], size: int) -> None:
        """Queue the results of one batch; blocks while too many wait."""
        self._submit(self._rows, items, features, size)

    def commit(self) -> None:
        self._submit(self._commit)

    def _submit(self, task: object, *arguments: object) -> None:
        self._drain(WRITE_AHEAD_BATCHES - 1)
        self._pending.append(self._thread.submit(task, *arguments))  # type: ignore[arg-type]

    def _drain(self, most: int) -> None:
        while self._pending and (len(self._pending) > most or self._pending[0].done()):
            self._pending.pop(0).result()

    def _begin(self, shard: int, columns: Sequence[str]) -> None:
        self._writers = {
            name: self._open.enter_context(self._store.write_shard(name, shard, producer=self._producer))
            for name in columns
        }

    def _rows(self, items: Sequence[FeedItem], features: Mapping[str, NDArray[np.float32]], size: int) -> None:
        for slot, item in enumerate(items):
            if item.renderings is None:
                self._fail(item)
                continue
            rendered: Rendered = item.renderings[size]
            pixels = pixel_hash(rendered.pixels)
            for name, writer in self._writers.items():
                writer.add(item.view.view_id, features[name][slot], pixels=pixels, decoder=rendered.decoder)
                self._summary.bytes_written += self._store.row_bytes(name)
            self._summary.rows["ok"] += 1

    def _fail(self, item: FeedItem) -> None:
        assert item.error is not None
        for writer in self._writers.values():
            writer.fail(item.view.view_id, item.error.status, item.error.reason)
        self._summary.rows[item.error.status] += 1
        self._summary.failures.append((item.view.video_id, item.error.status, item.error.reason))

    def _commit(self) -> None:
        self._open.close()
        self._open = ExitStack()
        self._summary.shards += len(self._writers)


class _Clock:
    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds, self._mark = seconds, time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self._seconds[stage] = self._seconds.get(stage, 0.0) + now - self._mark
        self._mark = now
