"""Short measurements on the machine at hand of all that an extraction and a training spend time on.

They run the real things on the first views of a store: its own videos, teachers, codec and disk, the recipe's own
student, micro-batch and precision.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from mvd_offline.bench.measure import machine, wait_for
from mvd_offline.bench.step import Stepper
from mvd_offline.distillation.data import DistillData
from mvd_offline.distillation.task import DistillTask
from mvd_offline.errors import UsageError, VideoError
from mvd_offline.extract import producer_of
from mvd_offline.extraction.batches import TeacherInputs, TeacherRun, batches_of
from mvd_offline.extraction.coding import CodedBatch
from mvd_offline.extraction.miniature import make_miniature
from mvd_offline.extraction.rates import available_cores
from mvd_offline.local import resolve_root
from mvd_offline.models.teachers import Teacher, teacher_for
from mvd_offline.recipe import DistillRecipe, TeacherName
from mvd_offline.shards.codecs import CodingError
from mvd_offline.shards.schema import CLIPS
from mvd_offline.shards.store import ShardWriter, Store
from mvd_offline.targets import CachedTargets
from mvd_offline.training.feeding import to_device
from mvd_offline.training.launch import open_accelerator
from mvd_offline.training.loop import check_precision
from mvd_offline.training.order import BatchRequest
from mvd_offline.video.baking import render_baked
from mvd_offline.video.feed import FeedItem
from mvd_offline.video.views import Plan, View, pixel_hash, render_sizes

LEAST_SECONDS: Final = 1.0
"""How long a thing is repeated, at least, before its median counts."""
MOST_REPEATS: Final = 8
LEAST_VIEWS: Final = 8


@dataclass(frozen=True)
class Measured:
    """Seconds on one device of this machine, each taken while nothing else ran.

    Attributes:
        cores: that may decode and read.
        computing_cores: those that the device's own work takes: torch's threads on a CPU, none on a GPU.
        render_seconds: of a view in one process, at all sizes that the teachers see, baked if the store bakes.
        teacher_seconds: of a clip in a batch of the store's size, forward pass and coding.
        writing_seconds: of a view in all columns, to the disk of the store.
        row_bytes: of a view, by column.
        loading_seconds: of a clip in one loader process: pixels, masks, stored targets.
        read_bytes_per_second: of the store's columns, when the system has them in its memory.
        micro_batch, micro_seconds: a forward and backward pass of the student on targets that are there already.
        update_seconds: what an optimiser step takes beside its micro-batches.
    """

    machine: dict[str, Any]
    cores: int
    computing_cores: int
    views: int
    render_seconds: float
    teacher_seconds: dict[TeacherName, float]
    writing_seconds: float
    row_bytes: dict[str, int]
    loading_seconds: float
    read_bytes_per_second: float
    micro_batch: int
    micro_seconds: float
    update_seconds: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def extraction_seconds(self) -> float:
        """Of a view; the processor's cores decode, the device runs the teachers, one thread writes."""
        teachers, aside = sum(self.teacher_seconds.values()), self.render_seconds + self.writing_seconds
        return max(self.overlapped(teachers, aside, self.cores), self.writing_seconds)

    def student_seconds(self, batch_size: int) -> float:
        """Of a clip of a global batch that one device computes, with nothing to wait for."""
        return self.micro_seconds / self.micro_batch + self.update_seconds / batch_size

    def cached_seconds(self, recipe: DistillRecipe) -> float:
        """Of a clip of a training from the store."""
        student = self.student_seconds(recipe.optim.batch_size)
        return self.overlapped(student, self.loading_seconds, recipe.training.workers)

    def online_seconds(self, recipe: DistillRecipe) -> float:
        """Of a clip of a training with the teachers beside the student, and videos that are decoded again."""
        teachers = sum(self.teacher_seconds[name] for name in recipe.active_teachers)
        student = self.student_seconds(recipe.optim.batch_size)
        return self.overlapped(student + teachers, self.render_seconds, recipe.training.workers)

    def overlapped(self, computing: float, loading: float, processes: int) -> float:
        """Seconds of a clip where `processes` load the next ones while the device computes.

        Three things may be what all wait for: the device, the loaders, and, where the device is the processor itself,
        the cores that both share.
        """
        if not processes:
            return computing + loading
        together = (self.computing_cores * computing + loading) / self.cores
        return max(computing, loading / min(processes, self.cores), together)


def measure(
    recipe: DistillRecipe, store: Store, *, root: Path | None = None, say: Callable[[str], None] = lambda line: None
) -> Measured:
    """Measure for a store that was planned with `recipe`. What is written lies beside the store, and is removed again.

    Args:
        root: folder of the videos, where it is not the one that the store remembers.
        say: told of each part before it begins.

    Raises:
        UsageError: the recipe's precision is none of this machine; no video can be read.
    """
    accelerator = open_accelerator(recipe.training)
    check_precision(recipe.training, accelerator)
    torch.set_float32_matmul_precision("high" if recipe.training.tf32 else "highest")
    device, cores = accelerator.device, available_cores()
    views = max(LEAST_VIEWS, 2 * store.header.batch_rows)
    with tempfile.TemporaryDirectory(prefix=".measuring-", dir=store.root.resolve().parent) as folder:
        small = make_miniature(store, Path(folder) / "store", views, root=root)
        bench = _Bench(recipe, small, device, say)
        items, render_seconds = bench.render()
        coded, teacher_seconds = bench.run_teachers(items)
        writing_seconds = bench.write(items, coded)
        row_bytes, read_rate = bench.read()
        loading_seconds, micro_seconds, update_seconds = bench.train(accelerator)
    return Measured(
        machine=machine(device),
        cores=cores,
        computing_cores=0 if device.type == "cuda" else min(torch.get_num_threads(), cores),
        views=len(items),
        render_seconds=render_seconds,
        teacher_seconds=teacher_seconds,
        writing_seconds=writing_seconds,
        row_bytes=row_bytes,
        loading_seconds=loading_seconds,
        read_bytes_per_second=read_rate,
        micro_batch=bench.micro_batch,
        micro_seconds=micro_seconds,
        update_seconds=update_seconds,
    )


class _Bench:
    """The measurements, in the order in which one needs what another left."""

    def __init__(self, recipe: DistillRecipe, store: Store, device: torch.device, say: Callable[[str], None]) -> None:
        # The figures of a cached step do not depend on where a run of the recipe would get its targets.
        self._recipe = recipe.model_copy(update={"targets": "cached"})
        self._store, self._device, self._say = store, device, say
        self._plan, self._root = Plan.read(store.plan_path), resolve_root(store.root, None)
        self.micro_batch = min(recipe.optim.micro_batch_size, recipe.optim.batch_size)

    # ---- extraction --------------------------------------------------------------------------------------------------

    def render(self) -> tuple[dict[int, FeedItem], float]:
        """All views of the store, and the seconds of one."""
        self._say(f"decoding {len(self._plan)} views")
        view, teachers = self._recipe.view, self._recipe.teachers.values()
        sizes = tuple(dict.fromkeys((view.image_size, *(one.image_size or view.image_size for one in teachers))))
        render, items, seconds = partial(self._rendered, sizes=sizes), dict[int, FeedItem](), list[float]()
        for one in self._plan:
            began = time.perf_counter()
            items[one.view_id] = render(one)
            seconds.append(time.perf_counter() - began)
        if all(item.renderings is None for item in items.values()):
            raise UsageError(f"none of the first {len(items)} videos under {self._root} can be read: give --root.")
        return items, statistics.median(seconds)

    def _rendered(self, view: View, sizes: tuple[int, ...]) -> FeedItem:
        clips = self._store.header.columns.get(CLIPS)
        try:
            if clips is not None:
                renderings, baked = render_baked(view, self._root, clips.width, sizes, clips.codec)
                return FeedItem(view, renderings, None, baked)
            return FeedItem(view, render_sizes(view, self._root, sizes), None)
        except VideoError as error:
            return FeedItem(view, None, error)

    def run_teachers(
        self, items: Mapping[int, FeedItem]
    ) -> tuple[dict[str, list[CodedBatch]], dict[TeacherName, float]]:
        """The batches of all shards by column, and each teacher's seconds of a clip."""
        batches = [
            TeacherInputs([items[view] for view in ids.tolist()], self._store.header.batch_rows, self._device)
            for shard in range(self._store.shard_count)
            for ids in batches_of(self._store.shard_view_ids(shard), self._store.header.batch_rows)
        ]
        coded, seconds = dict[str, list[CodedBatch]](), dict[TeacherName, float]()
        for name, section in self._recipe.teachers.items():
            self._say(f"running the {name} teacher")
            teacher = teacher_for(section, self._recipe.view, name).to(self._device)
            column = self._recipe.column(name)
            coded[column], seconds[name] = self._run(teacher, column, batches)
        return coded, seconds

    def _run(self, teacher: Teacher, column: str, batches: Sequence[TeacherInputs]) -> tuple[list[CodedBatch], float]:
        codec, rows = self._store.header.columns[column].codec, self._store.header.batch_rows
        run = partial(TeacherRun.begin, teacher=teacher, codec=codec, device=self._device)
        done = [run(batch).finish() for batch in batches]
        seconds = [taken for _, taken in done]
        while sum(seconds[1:]) < LEAST_SECONDS and len(seconds) < MOST_REPEATS:
            seconds.append(run(batches[-1]).finish()[1])
        return [coded for coded, _ in done], _without_the_first(seconds) / rows

    def write(self, items: Mapping[int, FeedItem], coded: Mapping[str, Sequence[CodedBatch]]) -> float:
        """Write all of it, and seal; the seconds of a view."""
        self._say("writing, reading")
        began, batch_rows = time.perf_counter(), self._store.header.batch_rows
        batches = {column: iter(of) for column, of in coded.items()}
        for shard in range(self._store.shard_count):
            ids = self._store.shard_view_ids(shard)
            for column in self._store.columns:
                with self._store.write_shard(column, shard, producer=producer_of(self._device)) as writer:
                    for views in batches_of(ids, batch_rows):
                        batch = None if column == CLIPS else next(batches[column])
                        for slot, view_id in enumerate(views.tolist()):
                            self._write(writer, items[view_id], None if batch is None else batch.row(slot))
        seconds = time.perf_counter() - began
        self._store.seal()
        return seconds / len(items)

    def _write(self, writer: ShardWriter, item: FeedItem, row: tuple[NDArray[Any], CodingError] | None) -> None:
        view_id = item.view.view_id
        if item.renderings is None:
            assert item.error is not None
            writer.fail(view_id, item.error.status, item.error.reason)
            return
        rendered = item.renderings[self._recipe.view.image_size]
        pixels, decoder = pixel_hash(rendered.pixels), rendered.decoder
        if row is None:
            assert item.baked is not None
            writer.add_packed(view_id, item.baked.payload, item.baked.error, pixels=pixels, decoder=decoder)
        else:
            writer.add_coded(view_id, *row, pixels=pixels, decoder=decoder)

    def read(self) -> tuple[dict[str, int], float]:
        """Bytes of a row by column, and bytes a second of them all."""
        ids, columns = self._ok_rows(), self._store.columns
        sizes = {column: self._store.row_bytes(column) for column in columns}
        if not columns:
            return sizes, 0.0
        seconds = _median_seconds(lambda: [self._store.read_payloads(column, ids) for column in columns])
        return sizes, len(ids) * sum(sizes.values()) / seconds

    # ---- training ----------------------------------------------------------------------------------------------------

    def train(self, accelerator: Accelerator) -> tuple[float, float, float]:
        """Seconds of loading a clip, of a micro-batch of the student, and of an update."""
        self._say(f"training on {self.micro_batch} clips")
        recipe, store = self._recipe, self._store
        source = CachedTargets(store, recipe.active_columns)
        # Weights to start from are not needed to measure: they need not be there yet.
        task = DistillTask(recipe, DistillData.of_store(recipe, store, self._root), source, init_sha256="")
        rows = tuple(islice(cycle(self._ok_rows()), self.micro_batch))
        request = BatchRequest(epoch=0, batch=1, first=0, last_of_step=True, rows=rows)
        loading = _median_seconds(partial(task.reader, request))
        stepper, batch = Stepper(task, recipe, accelerator), to_device(task.reader(request), self._device)
        passes, updates = list[float](), list[float]()
        while sum(passes[1:]) < LEAST_SECONDS and len(passes) < MOST_REPEATS:
            passes.append(self._seconds(lambda: stepper.accumulate(batch, request)))
            updates.append(self._seconds(stepper.update))
        return loading / self.micro_batch, _without_the_first(passes), _without_the_first(updates)

    def _ok_rows(self) -> list[int]:
        rows = self._store.ok_rows() if self._store.columns else self._plan.view_ids[self._plan.ok]
        found: list[int] = rows.tolist()
        return found

    def _seconds(self, action: Callable[[], object]) -> float:
        began = time.perf_counter()
        action()
        wait_for(self._device)
        return time.perf_counter() - began


def _median_seconds(action: Callable[[], object]) -> float:
    seconds = list[float]()
    while sum(seconds[1:]) < LEAST_SECONDS and len(seconds) < MOST_REPEATS:
        began = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - began)
    return _without_the_first(seconds)


def _without_the_first(seconds: Iterable[float]) -> float:
    """The median of all but the first, which finds nothing prepared."""
    first, *others = seconds
    return statistics.median(others or [first])
