"""Running the frozen teachers over the views of a plan, once, into a store.

Decode processes, as many as it takes, run ahead of the teachers through a bounded queue; results are written behind
them by one thread, and one decode feeds all teachers. What a shard holds depends on the plan and the teachers alone:
batches are formed inside a shard, always of the same size (rows that failed are zeros that nobody reads), so that a
shard made again is the same to the bit, whoever makes it.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cached_property, partial
from itertools import chain, islice
from pathlib import Path
from typing import Final

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from mvd_offline.errors import UsageError
from mvd_offline.extraction.batches import Afterwards, TeacherInputs, TeacherRun, batches_of
from mvd_offline.extraction.clips import add_clips, clips_are_complete, stored_clip
from mvd_offline.extraction.coding import CodedBatch, ColumnCoding
from mvd_offline.extraction.columns import ColumnOptions, add_columns
from mvd_offline.extraction.rates import most_decode_workers
from mvd_offline.extraction.summary import ExtractSummary
from mvd_offline.extraction.timekeeper import Timekeeper
from mvd_offline.extraction.work import Entry, ShardTask, ShardWork, WorkList
from mvd_offline.extraction.write_behind import WriteBehind
from mvd_offline.local import absolute_weights, read_local, resolve_root, update_local
from mvd_offline.models.teachers import Teacher, load_teacher
from mvd_offline.processes import join_launch
from mvd_offline.progress import WorkProgress
from mvd_offline.shards.claims import Claims
from mvd_offline.shards.errors import IdentityError, NotSealedError
from mvd_offline.shards.schema import CLIPS, STATUSES, ColumnSpec, Difference, all_differences, list_differences
from mvd_offline.shards.store import Store, open_store
from mvd_offline.training.metrics import Stopwatch
from mvd_offline.video.feed import FeedItem, RenderFeed
from mvd_offline.video.views import Plan, View

NO_OPTIONS: Final = ColumnOptions()


def extract(
    store_dir: Path,
    *,
    root: Path | None = None,
    weights: Mapping[str, str] | None = None,
    workers: int | None = None,
    timeout_seconds: float,
    retry: Sequence[str] = (),
    options: ColumnOptions = NO_OPTIONS,
    bake: bool = False,
    quiet: bool = False,
) -> ExtractSummary:
    """Fill the shards of a store that are not committed yet, and seal it when none is left.

    Under `accelerate launch` the shards are shared out between the processes. Several runs on one store help each
    other: each shard is made by the run that claims it first, and a run waits for what others are at work on.

    Args:
        root: folder of the videos, when it is not the one remembered; not needed once all clips are baked.
        weights: teachers' weights by column, when they are not where they were at planning; columns that the store
            lacks are added to it.
        workers: decode processes of each launch process; None starts with one, and with more as soon as the teachers
            would wait for it.
        timeout_seconds: a view that takes longer to decode is recorded as `timeout`.
        retry: statuses whose rows are tried again; the other rows of their shards stay as they are.
        bake: add the column of baked clips, with the settings that recipes have by default; nothing where it is there.
        options: of columns that are added; its `max_relative_error` also holds for what this run writes elsewhere.

    Raises:
        IdentityError: a teacher is not the one that the store was planned with.
        CodecError: coding the first shard that is written of a column costs a row more than is allowed.
    """
    if unknown := [status for status in retry if status not in STATUSES[1:]]:
        raise UsageError(
            f"--retry {','.join(unknown)}: no row can have this status; allowed: {', '.join(STATUSES[1:])}"
        )
    began, watch = time.perf_counter(), Stopwatch()
    accelerator = join_launch(patience=timedelta(days=7))
    store = open_store(store_dir, sealed=False)
    if root is not None or retry or not clips_are_complete(store):
        root = resolve_root(store_dir, root)
    given = {name: absolute_weights(path) for name, path in (weights or {}).items()}
    paths = {**read_local(store_dir).teachers, **given}
    added: list[str] = []
    if accelerator.is_main_process:
        added = [*(add_clips(store) if bake else ()), *add_columns(store, given, options, root)]
        store.clean_temporary()
        videos = None if root is None else root.resolve()
        update_local(store_dir, lambda local: replace(local, videos_root=videos or local.videos_root, teachers=paths))
    accelerator.wait_for_everyone()
    store = open_store(store_dir, sealed=False)  # once more: with the columns that were added
    summary = ExtractSummary(
        coding={name: ColumnCoding(_bound(spec, options)) for name, spec in store.header.columns.items()},
        added_columns=added,
        seconds=watch.seconds,
        is_main=accelerator.is_main_process,
    )

    work = ShardWork(store, Plan.read(store.plan_path), retry)
    # Listed once: what a process finishes first must not shift the others' shares.
    (listed,) = broadcast_object_list([work.list_all() if accelerator.is_main_process else None])
    if listed:
        columns = sorted({column for _, names in listed for column in names} - {CLIPS})
        work.only({*columns, CLIPS} & set(store.columns))
        with Timekeeper(store_dir, producer_of(accelerator.device)["device"], began) as keeper:
            device = accelerator.device
            teachers = _Teachers(store, columns, paths, device)
            job = _Job(store, work, teachers, root, workers, timeout_seconds, device, summary, keeper, watch)
            job.run(listed, accelerator.process_index, accelerator.num_processes, quiet=quiet)

    _finish(store, summary, accelerator)
    watch.lap("sealing")
    summary.elapsed_seconds = time.perf_counter() - began
    return summary


def _bound(spec: ColumnSpec, options: ColumnOptions) -> float | None:
    """What coding may cost a row of the column: the stricter of what the store and this run allow; clips have none."""
    if spec.name == CLIPS:
        return None
    bounds = (spec.max_relative_error, options.max_relative_error)
    return min((bound for bound in bounds if bound is not None), default=None)


def _finish(store: Store, summary: ExtractSummary, accelerator: Accelerator) -> None:
    """Join the summaries of all processes, and seal the store if nothing is left."""
    parts = gather_object([summary])
    summary.take_in([part for rank, part in enumerate(parts) if rank != accelerator.process_index])
    if accelerator.is_main_process:
        store.refresh()
        summary.pending_shards = len({shard for name in store.columns for shard in store.pending(name)})
        if not summary.pending_shards:
            # Another run that tries rows again may be about to exchange a shard: then that run seals.
            with contextlib.suppress(NotSealedError):
                store.seal()
            summary.sealed = store.sealed
    accelerator.wait_for_everyone()


def load_column_teacher(store: Store, name: str, paths: Mapping[str, str], device: torch.device) -> Teacher:
    """The teacher of a column, checked to be the one that the store was planned with.

    Raises:
        UsageError: nothing says where its weights are. IdentityError: it is another one; lists the fields that differ.
    """
    teacher, differences = find_column_teacher(store, name, paths)
    if differences:
        raise IdentityError(
            f"teacher {name} at {paths[name]} is not the one that {store.root} was planned with:"
            f"{list_differences(differences, 'teacher', 'store')}\n"
            f"Give the right file with --teacher {name}=PATH, or plan another store."
        )
    return teacher.to(device)


def find_column_teacher(store: Store, name: str, paths: Mapping[str, str]) -> tuple[Teacher, list[Difference]]:
    """The teacher that is at hand for a column, and where its identity differs from the store's."""
    source = store.header.columns[name].source
    if name not in paths:
        raise UsageError(
            f"{store.root} does not know where teacher {name} is on this machine: give --teacher {name}=PATH."
        )
    teacher = load_teacher(
        paths[name],
        source["kind"],
        heads=source["architecture"]["heads"],
        image_size=source["image_size"],
        frames=store.header.view["frames"],
        tubelet_size=source["tubelet"],
        precision=source["precision"],
    )
    teacher.pooled = "pooling" in source
    return teacher, all_differences(teacher.identity(), source)


@dataclass(frozen=True)
class _Teachers:
    """The teachers of some columns, loaded when they are first asked for."""

    store: Store
    columns: Sequence[str]
    paths: Mapping[str, str]
    device: torch.device

    @property
    def sizes(self) -> list[int]:
        """Sides in pixels of what they see."""
        return [self.store.header.columns[column].source["image_size"] for column in self.columns]

    @cached_property
    def loaded(self) -> Mapping[str, Teacher]:
        """By column. Raises as `load_column_teacher`."""
        return {name: load_column_teacher(self.store, name, self.paths, self.device) for name in self.columns}


@dataclass(frozen=True)
class _Job:
    """The work of one process."""

    store: Store
    work: ShardWork
    teachers: _Teachers
    root: Path | None
    """Of the videos; None where all clips are baked."""
    workers: int | None
    """Decode processes; None for as many as it takes."""
    timeout_seconds: float
    device: torch.device
    summary: ExtractSummary
    keeper: Timekeeper
    watch: Stopwatch

    def run(self, listed: WorkList, rank: int, ranks: int, *, quiet: bool) -> None:
        """Do what is to be done, and wait for what others do: afterwards every listed shard was done by somebody."""
        rows = sum(len(self.store.shard_view_ids(shard)) for shard, _ in listed[rank::ranks])
        entries = self.work.entries(listed, rank, ranks)
        with (
            Claims(self.store.plan_path) as claims,
            WorkProgress("extract", rows, unit="clips", enabled=rank == 0 and not quiet) as progress,
        ):
            pace = _Pace(progress, rows, self.summary)
            while entries := self._pass(entries, claims, pace):
                # Nothing of ours is claimed now, so that two runs never wait for each other.
                claims.take(entries[0].shard, pace.wait).release()
                self.watch.lap("waiting for other runs")

    def _pass(self, entries: Sequence[Entry], claims: Claims, pace: _Pace) -> list[Entry]:
        """Do what can be claimed; returns what others are at work on."""
        busy: list[Entry] = []
        own = {entry.shard for entry in entries if entry.may_retry}

        def on_done(entry: Entry) -> None:
            if entry.shard in own:
                pace.skip(len(self.store.shard_view_ids(entry.shard)))

        tasks = self.work.tasks(entries, claims, busy=busy, on_done=on_done)
        if (first := next(tasks, None)) is None:
            return busy
        clips, to_bake = self.store.header.columns.get(CLIPS), set[int]()
        with (
            RenderFeed(
                self.root,
                [self.work.plan.section.image_size, *self.teachers.sizes],
                workers=self.workers or max(1, self.summary.rates.decode_workers),
                timeout_seconds=self.timeout_seconds,
                ahead=2 * self.store.header.batch_rows,
                clips=clips,
                stored=lambda view: None if view.view_id in to_bake else stored_clip(self.store, view),
            ) as feed,
            WriteBehind(self.store, self.summary, producer_of(self.device)) as writer,
        ):
            self.summary.rates.decode_workers = feed.workers
            decoded = self._decoded(feed, chain([first], tasks), to_bake)
            # Meanwhile the first views are decoded.
            line = _Line(feed, self.teachers.loaded, Afterwards(), writer)
            self.watch.lap("starting")
            for task, items in decoded:
                self._make(task, items, line, pace)
            self.watch.lap("waiting for decode")
            line.afterwards.finish()
        self.watch.lap("waiting for disk")
        return busy

    def _decoded(
        self, feed: RenderFeed, tasks: Iterator[ShardTask], to_bake: set[int]
    ) -> Iterator[tuple[ShardTask, Iterator[FeedItem]]]:
        """Each task, with the views that it wants rendered; they are to be used up before the next task is asked for.

        The first of them are rendered from now on. A task is claimed when the feed, which runs ahead, reaches it; then
        `to_bake` takes the views whose clips it wants.
        """
        claimed: deque[ShardTask] = deque()

        def views() -> Iterator[View]:
            for task in tasks:
                claimed.append(task)
                to_bake.update(task.wanted.get(CLIPS, ()))
                yield from (self.work.plan[view_id] for view_id in sorted(task.rendered))

        items = feed.items(views())
        return self._by_task(items, claimed)

    def _by_task(
        self, items: Iterator[FeedItem], claimed: deque[ShardTask]
    ) -> Iterator[tuple[ShardTask, Iterator[FeedItem]]]:
        for first in items:
            task = claimed.popleft()
            yield task, chain([first], islice(items, len(task.rendered) - 1))

    def _make(self, task: ShardTask, items: Iterator[FeedItem], line: _Line, pace: _Pace) -> None:
        """One shard: decoded items in plan order -> batches -> teachers -> the writing thread."""
        plan, batch_rows = self.work.plan, self.store.header.batch_rows
        line.afterwards.put(partial(line.writer.begin, task))
        for ids in batches_of(task.view_ids, batch_rows):
            views = ids.tolist()
            # A batch that somebody wants a row of is whole, as it was the first time; the other rows stay empty.
            batch = [next(items) if view in task.rendered else FeedItem(plan[view], None, None) for view in views]
            self.watch.lap("waiting for decode")
            wanting = [column for column, wanted in task.wanted.items() if not wanted.isdisjoint(views)]
            if wanting:
                runs = self._begin(batch, {column: line.teachers[column] for column in wanting if column != CLIPS})
                self.watch.lap("teachers")
                hand_over = partial(self._hand_over, task, batch, runs, line.writer)
                line.afterwards.put(hand_over, ready=partial(_are_ready, runs))
                self._keep_up(line.feed, pace)
            pace.made(len(ids))
        line.afterwards.put(partial(line.writer.commit, task))
        self.keeper.note()
        self.watch.lap("waiting for disk")

    def _begin(self, batch: Sequence[FeedItem], teachers: Mapping[str, Teacher]) -> dict[str, TeacherRun]:
        """Have a batch's features computed, by column; none if no clip of it was decoded."""
        if seconds := [item.seconds for item in batch if item.seconds]:
            self.summary.rates.decoded(statistics.median_low(seconds))
        inputs, columns = TeacherInputs(batch, self.store.header.batch_rows, self.device), self.store.header.columns
        if inputs.empty:
            return {}
        return {
            name: TeacherRun.begin(inputs, teacher, columns[name].codec, self.device)
            for name, teacher in teachers.items()
        }

    def _hand_over(
        self, task: ShardTask, batch: Sequence[FeedItem], runs: Mapping[str, TeacherRun], writer: WriteBehind
    ) -> None:
        """Give the writing thread what the teachers made of a batch."""
        rows, rates = self.store.header.batch_rows, self.summary.rates
        coded = dict[str, CodedBatch]()
        for column, run in runs.items():
            coded[column], seconds = run.finish()
            self.keeper.ran(column, rows, seconds)
            rates.ran(column, seconds / rows)
        self.watch.lap("teachers")
        writer.rows(task, batch, coded, self.work.plan.section.image_size)
        rates.waited(self.watch.lap("waiting for disk") / rows)

    def _keep_up(self, feed: RenderFeed, pace: _Pace) -> None:
        """Have more processes decode where the teachers would wait."""
        rates = self.summary.rates
        if self.workers is not None or (wanted := rates.workers_wanted(most_decode_workers())) <= feed.workers:
            return
        feed.grow(wanted)
        rates.decode_workers = wanted
        pace.say(f"{rates.in_words()}, so that {wanted} decode")


@dataclass(frozen=True)
class _Line:
    """The stations that a batch passes."""

    feed: RenderFeed
    teachers: Mapping[str, Teacher]
    afterwards: Afterwards
    writer: WriteBehind


def _are_ready(runs: Mapping[str, TeacherRun]) -> bool:
    return all(run.coded.ready() for run in runs.values())


class _Pace:
    """What the progress display says."""

    def __init__(self, progress: WorkProgress, rows: int, summary: ExtractSummary) -> None:
        self._progress, self._rows, self._summary = progress, rows, summary
        self._began, self._made, self._skipped = time.perf_counter(), 0, 0

    def made(self, rows: int) -> None:
        self._made += rows
        rate = self._made / (time.perf_counter() - self._began)
        self._show(f"{rate:.2f} clips/s  {self._summary.bytes_written / 1e9:.2f} GB")

    def skip(self, rows: int) -> None:
        """Others did these."""
        self._skipped += rows

    def wait(self) -> None:
        self._show("waiting for another run")

    def say(self, line: str) -> None:
        self._progress.say(line)

    def _show(self, note: str) -> None:
        # Beyond its own share a process does what others have not begun.
        self._progress.reach(min(self._made + self._skipped, self._rows), note)


def producer_of(device: torch.device) -> dict[str, str]:
    """What of software and hardware decides the last bits of the targets that this device computes."""
    if device.type == "cuda":
        return {"torch": torch.__version__, "device": torch.cuda.get_device_name(device)}
    return {"torch": torch.__version__, "device": f"{device.type} {torch.backends.cpu.get_cpu_capability()}"}
