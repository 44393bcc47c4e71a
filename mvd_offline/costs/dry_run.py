"""`--dry-run`: what a training would be and cost, before anything is loaded or written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mvd_offline.costs.counting import StepCost
from mvd_offline.costs.memory import Memory, memory_of
from mvd_offline.costs.models import (
    distill_step,
    finetune_step,
    momentum_flops,
    pretrain_grid,
    pretrain_step,
)
from mvd_offline.costs.teachers import TeacherCost, teacher_cost
from mvd_offline.distillation.mixing import StoreShare
from mvd_offline.distillation.samples import StoreSamples
from mvd_offline.errors import UsageError
from mvd_offline.recipe import (
    ClipGeometry,
    DistillRecipe,
    FinetuneRecipe,
    OptimSection,
    PretrainRecipe,
    QuirkSection,
    Recipe,
    TeacherName,
    TrainingSection,
)
from mvd_offline.shards.codecs import get_codec
from mvd_offline.shards.store import Store, open_store
from mvd_offline.training.order import BatchShape
from mvd_offline.training.schedule import Schedule
from mvd_offline.video.catalog import Catalog
from mvd_offline.video.masking import decoded_tokens, masked_tokens


@dataclass(frozen=True)
class Launch:
    """How a global batch is shared out."""

    processes: int
    batch_size: int
    micro_batch_size: int
    accumulation: int
    tflops: float
    """Sustained TFLOP/s of one device that the times assume."""
    views: int = 1
    """Clips of each sample: the repeated views of fine-tuning."""

    @property
    def clips(self) -> int:
        """Of one step of all processes."""
        return self.batch_size * self.views


@dataclass(frozen=True)
class Tokens:
    """Of one clip. `decoded` are those at which it is learnt; `masked` are hidden."""

    total: int
    visible: int
    masked: int
    decoded: int


@dataclass(frozen=True)
class Flops:
    """Operations of one clip, by part; a multiplication and its addition are two."""

    forward: dict[str, int]
    backward: int
    recompute: int
    """Of activation checkpointing, where the recipe asks for it."""
    momentum_teacher: int
    teachers: dict[str, int]
    """Of the frozen teachers whose targets are used."""

    @property
    def training(self) -> int:
        """What a step on targets that are there already computes for one clip."""
        return sum(self.forward.values()) + self.backward + self.recompute + self.momentum_teacher


@dataclass(frozen=True)
class Steps:
    """Of a run, and its learning rates."""

    samples: int
    """Of the smallest epoch."""
    per_epoch: int
    total: int
    warmup: int
    stop: int
    checkpoints: int


@dataclass(frozen=True)
class Reading:
    """What the store holds for a run, and what an epoch takes from it."""

    row_bytes: int
    """One view's targets of all active teachers; a row is read and checked whole."""
    kept_row_bytes: int
    """Of these, the tokens that are regressed: what goes on to the device."""
    epoch_bytes: int | None
    store_bytes: int | None
    """On disk; estimated where there is no store yet, or not all of it."""
    store_bytes_known_from: str


@dataclass(frozen=True)
class Times:
    """Seconds and hours if devices do `Launch.tflops` throughout and nothing waits for data."""

    step_seconds: float
    """On targets that are there already."""
    online_step_seconds: float
    """With the frozen teachers beside the student."""
    speedup: float
    device_hours: float | None
    online_device_hours: float | None
    extraction_device_hours: float | None
    break_even_epoch: float | None
    """The epoch from which caching, its extraction included, has cost less than running the teachers online."""


@dataclass(frozen=True)
class DryRun:
    """What a run would be; figures that need the number of samples are None where nothing tells it."""

    recipe: Recipe
    launch: Launch
    parameters: dict[str, int]
    tokens: Tokens
    flops: Flops
    memory: Memory
    teachers: dict[TeacherName, TeacherCost]
    peak_lr: float
    floor_lr: float
    steps: Steps | None
    reading: Reading | None
    times: Times

    def to_json(self) -> dict[str, Any]:
        fields = {name: value for name, value in vars(self).items() if name != "recipe"}
        plain = asdict(_Plain(fields))["fields"]
        plain["flops"]["training"] = self.flops.training
        return {"recipe": self.recipe.model_dump(mode="json"), **plain}


@dataclass(frozen=True)
class _Plain:
    fields: dict[str, Any]


def dry_run(
    recipe: Recipe,
    *,
    stores: Sequence[StoreShare] = (),
    catalog: Path | None = None,
    samples: int | None,
    processes: int,
    tflops: float,
) -> DryRun:
    """What the training of a recipe would be, whichever kind it is; see the functions for each kind."""
    if isinstance(recipe, DistillRecipe):
        return dry_run_distill(recipe, stores=stores, samples=samples, processes=processes, tflops=tflops)
    if isinstance(recipe, PretrainRecipe):
        return dry_run_pretrain(recipe, catalog=catalog, samples=samples, processes=processes, tflops=tflops)
    return dry_run_finetune(recipe, catalog=catalog, samples=samples, processes=processes, tflops=tflops)


def dry_run_distill(
    recipe: DistillRecipe, *, stores: Sequence[StoreShare] = (), samples: int | None, processes: int, tflops: float
) -> DryRun:
    """What a distillation would be.

    Args:
        stores: which tell samples, bytes and the teachers' sizes; without one the recipe tells what it can.
        samples: of an epoch, where there is no store.

    Raises:
        UsageError, RecipeError: sizes that do not fit each other, or a teacher whose size nothing tells.
    """
    opened = [open_store(share.folder, sealed=False) for share in stores]
    launch, schedule = _launch(recipe.optim, recipe.training, recipe.quirks, processes, tflops)
    views = None if samples is None else samples * recipe.view.groups
    if opened:
        _refuse_samples(samples, stores[0].folder)
        rows = [StoreSamples(recipe, store).per_epoch() for store in opened]
        samples = sum(round(share.weight * count) for share, count in zip(stores, rows, strict=True))
        views = sum(rows) * recipe.view.groups
    # A store gets the targets of every teacher of the recipe; this student learns from the active ones.
    planned = {name: teacher_cost(recipe, name, next(iter(opened), None)) for name in recipe.teachers}
    teachers = {name: planned[name] for name in recipe.active_teachers}
    widths = {name: teacher.arch.width for name, teacher in teachers.items()}
    step = distill_step(recipe, widths, launch.micro_batch_size)
    checkpointed = recipe.student.checkpoint_activations
    flops = replace(
        _flops(step, checkpointed),
        momentum_teacher=momentum_flops(recipe, widths) if recipe.momentum else 0,
        teachers={str(name): teacher.flops for name, teacher in teachers.items()},
    )
    online = sum(teacher.parameters for teacher in teachers.values()) if recipe.targets == "online" else 0
    averages = step.parameter_count * bool(recipe.ema) + step.parameters["encoder"] * bool(recipe.momentum)
    steps = None if samples is None else schedule(samples)
    tokens = _tokens(recipe)
    return DryRun(
        recipe=recipe,
        launch=launch,
        parameters=step.parameters,
        tokens=tokens,
        flops=flops,
        memory=memory_of(
            step,
            recipe.optim,
            recipe.training,
            checkpointed=checkpointed,
            clip_values=launch.micro_batch_size * _values(recipe.view, recipe.view.frames),
            frozen=online + averages,
        ),
        teachers=teachers,
        peak_lr=recipe.optim.peak_lr,
        floor_lr=recipe.quirks.floor_lr(recipe.optim),
        steps=steps,
        reading=_reading(recipe, planned, tokens, opened, steps, views) if recipe.targets == "cached" else None,
        times=_times(flops, launch, steps, views, sum(teacher.flops for teacher in planned.values())),
    )


def dry_run_pretrain(
    recipe: PretrainRecipe, *, catalog: Path | None, samples: int | None, processes: int, tflops: float
) -> DryRun:
    """What the pretraining of a teacher would be; `catalog` or `samples` tells the samples of an epoch."""
    launch, schedule = _launch(recipe.optim, recipe.training, None, processes, tflops)
    grid = pretrain_grid(recipe)
    masked = masked_tokens(recipe.mask.kind, grid, recipe.mask.ratio)
    if catalog is not None:
        _refuse_samples(samples, catalog)
        samples = _readable(catalog) * recipe.view.num_sample
    return _without_teachers(
        recipe,
        pretrain_step(recipe, launch.micro_batch_size),
        launch,
        Tokens(grid.num_tokens, grid.num_tokens - masked, masked, masked),
        None if samples is None else schedule(samples),
        values=_values(recipe.view, 1 if recipe.method == "mae" else recipe.view.frames),
    )


def dry_run_finetune(
    recipe: FinetuneRecipe, *, catalog: Path | None, samples: int | None, processes: int, tflops: float
) -> DryRun:
    """What a fine-tuning would be; `catalog` or `samples` tells the samples of an epoch."""
    launch, schedule = _launch(recipe.optim, recipe.training, None, processes, tflops, recipe.augment.repeats)
    tokens = recipe.clip.grid.num_tokens
    if catalog is not None:
        _refuse_samples(samples, catalog)
        samples = _readable(catalog)
    return _without_teachers(
        recipe,
        finetune_step(recipe, launch.micro_batch_size * launch.views),
        launch,
        Tokens(tokens, tokens, 0, 0),
        None if samples is None else schedule(samples),
        values=_values(recipe.clip, recipe.clip.frames),
        checkpointed=recipe.model.checkpoint_activations,
    )


# ---- parts -------------------------------------------------------------------------------------------------------


def _without_teachers(
    recipe: PretrainRecipe | FinetuneRecipe,
    step: StepCost,
    launch: Launch,
    tokens: Tokens,
    steps: Steps | None,
    *,
    values: int,
    checkpointed: bool = False,
) -> DryRun:
    """`values` are those of one clip."""
    flops = _flops(step, checkpointed=checkpointed)
    clips = launch.micro_batch_size * launch.views
    return DryRun(
        recipe=recipe,
        launch=launch,
        parameters=step.parameters,
        tokens=tokens,
        flops=flops,
        memory=memory_of(step, recipe.optim, recipe.training, checkpointed=checkpointed, clip_values=clips * values),
        teachers={},
        peak_lr=recipe.optim.peak_lr,
        floor_lr=recipe.optim.floor_lr,
        steps=steps,
        reading=None,
        times=_times(flops, launch, steps, views=None),
    )


def _values(clip: ClipGeometry, frames: int) -> int:
    return 3 * frames * clip.image_size**2


class _Scheduler:
    """Steps of a run from the samples of its epochs."""

    def __init__(self, optim: OptimSection, training: TrainingSection) -> None:
        self._optim, self._training = optim, training

    def __call__(self, samples: int) -> Steps:
        schedule = Schedule.of(samples, self._optim, self._training)
        checkpoints = -(-schedule.stop_step // schedule.checkpoint_every)
        return Steps(
            samples,
            schedule.steps_per_epoch,
            schedule.total_steps,
            schedule.warmup_steps,
            schedule.stop_step,
            checkpoints,
        )


def _launch(
    optim: OptimSection,
    training: TrainingSection,
    quirks: QuirkSection | None,
    processes: int,
    tflops: float,
    views: int = 1,
) -> tuple[Launch, _Scheduler]:
    leftover = None if quirks is None else quirks.leftover_micro_batch
    shape = BatchShape(optim.batch_size, processes, optim.micro_batch_size, leftover)
    launch = Launch(processes, optim.batch_size, shape.micro, shape.accumulation, tflops, views)
    return launch, _Scheduler(optim, training)


def _flops(step: StepCost, checkpointed: bool) -> Flops:
    return Flops(step.forward_flops, step.backward_flops, step.recompute_flops if checkpointed else 0, 0, {})


def _tokens(recipe: DistillRecipe) -> Tokens:
    total = recipe.view.grid.num_tokens
    masked = masked_tokens(recipe.mask.kind, recipe.view.grid, recipe.mask.ratio)
    if recipe.mask.kind == "none":
        return Tokens(total, total, 0, total)
    return Tokens(total, total - masked, masked, decoded_tokens(masked, recipe.mask.decoded))


def _reading(
    recipe: DistillRecipe,
    teachers: Mapping[TeacherName, TeacherCost],
    tokens: Tokens,
    stores: Sequence[Store],
    steps: Steps | None,
    views: int | None,
) -> Reading:
    row = kept = stored_row = 0
    for name, teacher in teachers.items():
        column, width = recipe.column(name), teacher.arch.width
        stored = [store.header.columns[column].codec for store in stores if column in store.columns]
        codec = get_codec(stored[0] if stored else recipe.store.codec)
        stored_row += codec.nbytes(tokens.total, width)
        if name not in recipe.active_teachers:
            continue
        row += codec.nbytes(tokens.total, width)
        kept += (tokens.decoded + codec.extra_rows) * codec.shape(tokens.total, width)[1] * codec.dtype.itemsize
    on_disk = _on_disk(recipe, stores)
    return Reading(
        row_bytes=row,
        kept_row_bytes=kept,
        epoch_bytes=None if steps is None else steps.per_epoch * recipe.optim.batch_size * row,
        store_bytes=on_disk if on_disk is not None else None if views is None else views * stored_row,
        store_bytes_known_from="estimate" if on_disk is None else "store",
    )


def _on_disk(recipe: DistillRecipe, stores: Sequence[Store]) -> int | None:
    """Bytes of the targets of the recipe's teachers, where all of them are there."""
    columns = [recipe.column(name) for name in recipe.teachers]
    placed = [(store, column) for store in stores for column in columns]
    if not placed or not all(column in store.columns and store.is_indexed(column) for store, column in placed):
        return None
    ledgers = [store.status(column) for store, column in placed]
    return sum(int(ledger.length[ledger.ok].sum()) for ledger in ledgers)


def _times(flops: Flops, launch: Launch, steps: Steps | None, views: int | None, extraction: int = 0) -> Times:
    """`views`: of the store, all groups of it; `extraction`: operations of all its teachers for one of them."""
    rate = launch.tflops * 1e12
    teachers = sum(flops.teachers.values())
    online = flops.training + teachers

    def device_hours(clips: int | None, operations: int) -> float | None:
        return None if clips is None else clips * operations / rate / 3600

    clips = None if steps is None else steps.stop * launch.clips
    break_even = None
    if teachers and steps is not None and views is not None:
        break_even = views * extraction / (steps.per_epoch * launch.batch_size * teachers)
    return Times(
        step_seconds=launch.clips * flops.training / rate / launch.processes,
        online_step_seconds=launch.clips * online / rate / launch.processes,
        speedup=online / flops.training,
        device_hours=device_hours(clips, flops.training),
        online_device_hours=device_hours(clips, online),
        extraction_device_hours=device_hours(views, extraction),
        break_even_epoch=break_even,
    )


def _readable(catalog: Path) -> int:
    """Videos that a training has rows of."""
    return sum(video.status == "ok" for video in Catalog.read(catalog).videos)


def _refuse_samples(samples: int | None, known: Path) -> None:
    if samples is not None:
        raise UsageError(f"--samples {samples}: {known} tells how many samples an epoch has; leave one of them out")
