"""The training loop that distillation, teacher pretraining and fine-tuning share."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mvd_offline.errors import MvdError, NonFiniteLossError, UsageError
from mvd_offline.progress import WorkProgress
from mvd_offline.randomness import KeyedStream
from mvd_offline.recipe import OptimSection, TrainingSection
from mvd_offline.training.metrics import Meter, MetricsWriter, Stopwatch
from mvd_offline.training.optim import build_optimizer, learning_rate, set_learning_rate
from mvd_offline.training.order import BatchRequest, BatchShape, EpochRequests
from mvd_offline.training.state import Checkpoints, Position, RunIdentity

Batch = dict[str, Any]


class Task(Protocol):
    """What one kind of training adds to the loop."""

    title: str
    identity: RunIdentity
    model: nn.Module
    reader: Callable[[BatchRequest], Batch]
    """Reads one micro-batch; runs in a loader process, so it holds no model and pickles."""

    def groups(self) -> list[dict[str, object]]:
        """Parameter groups of `training.optim.parameter_groups`."""

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Rows of the epoch, in order."""

    def samples_per_epoch(self) -> int:
        """The fewest rows that any epoch has."""

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Scalars by name, `loss` (the one that is minimised) among them; tensors of `batch` are on the device."""

    def save(self, folder: Path) -> None:
        """Write what others load (a student, a teacher, a classifier) into the run folder."""


@dataclass(frozen=True)
class Schedule:
    """Steps of a run, from epochs."""

    steps_per_epoch: int
    warmup_steps: int
    total_steps: int
    stop_step: int
    checkpoint_every: int

    @classmethod
    def of(cls, samples: int, optim: OptimSection, training: TrainingSection) -> Schedule:
        steps = samples // optim.batch_size
        if not steps:
            raise UsageError(
                f"an epoch has {samples} usable samples, fewer than one batch of {optim.batch_size}; "
                f"--set optim.batch_size to at most {samples}, or add videos."
            )
        return cls(
            steps_per_epoch=steps,
            warmup_steps=round(optim.warmup_epochs * steps),
            total_steps=round(optim.epochs * steps),
            stop_step=round((optim.stop_after_epochs or optim.epochs) * steps),
            checkpoint_every=max(1, round(training.checkpoint_every_epochs * steps)),
        )

    def learning_rate(self, step: int, optim: OptimSection) -> float:
        return learning_rate(
            step,
            peak=optim.peak_lr,
            floor=optim.floor_lr,
            warmup_steps=self.warmup_steps,
            total_steps=self.total_steps,
        )


@dataclass(frozen=True)
class TrainingSummary:
    """What a call of `train` did (a resumed run counts only its own part)."""

    steps: int
    seconds: float
    samples_per_second: float
    data_wait_share: float
    step_seconds: float
    last: dict[str, float]


def train(
    task: Task, optim: OptimSection, training: TrainingSection, *, run: Path, accelerator: Accelerator
) -> TrainingSummary:
    """Train `task` until its schedule ends, going on from the newest checkpoint of the run folder.

    The global batch, the samples in it and their masks do not depend on the number of processes; the loss does to
    float tolerance. On one CPU process a resumed run repeats an uninterrupted one exactly.

    Raises:
        NonFiniteLossError: before the update of the step whose loss is not finite.
        UsageError, RecipeError: sizes that do not fit; a run folder of another recipe.
    """
    shape, schedule = check_launch(task.samples_per_epoch(), optim, training, accelerator)
    optimizer = build_optimizer(task.groups(), optim, accelerator.device)
    task.model.to(accelerator.device)

    main = accelerator.is_main_process

    # Go on where the last checkpoint ends.
    checkpoints = Checkpoints(run, training.keep_last)
    model, prepared, position = _resume(task, optimizer, checkpoints, accelerator)
    meter, step = Meter(position.meter_sums, position.meter_count), position.step
    watch, record, losses = Stopwatch(), _Record(step), list[dict[str, Tensor]]()
    logged: dict[str, float] = {}

    with (
        MetricsWriter(run, resume_step=step, tensorboard=training.tensorboard, enabled=main) as writer,
        WorkProgress(task.title, schedule.stop_step, unit="steps", done=step, enabled=main) as progress,
    ):
        for request, batch in _batches(task, position, schedule, shape, training, accelerator):
            watch.lap("data")
            task.model.train()

            # Forward and backward; gradients are averaged over processes with the last micro-batch only.
            torch.manual_seed(_step_seed(training.seed, request))
            with contextlib.nullcontext() if request.last_of_step else accelerator.no_sync(model):
                with accelerator.autocast():
                    parts = task.loss(model, batch)
                _refuse_non_finite(parts, step, request.rows, accelerator)
                accelerator.backward(parts["loss"] / shape.accumulation)
            losses.append({name: value.detach() for name, value in parts.items()})
            watch.lap("compute")
            if not request.last_of_step:
                continue

            # Update.
            values = _mean_over_processes(losses, accelerator)
            losses.clear()
            values["grad_norm"] = _gradient_norm(accelerator, prepared, task.model, optim.clip_grad_norm)
            lr = schedule.learning_rate(step, optim)
            set_learning_rate(optimizer, lr)
            prepared.step()
            prepared.zero_grad(set_to_none=True)
            step += 1
            meter.add(values)
            watch.lap("compute")

            # Write down.
            note = None
            if step % training.log_every_steps == 0 or step == schedule.stop_step:
                logged, timing = meter.take(), record.take(watch, step, optim.batch_size)
                epoch = (step - 1) // schedule.steps_per_epoch
                writer.write({"step": step, "epoch": epoch, "lr": lr, **logged, "time": timing})
                note = f"loss {logged['loss']:.4f}  {timing['samples_per_second']:.1f} clips/s"
            progress.reach(step, note)

            # Save.
            if step % schedule.checkpoint_every == 0 or step == schedule.stop_step:
                _save(task, optimizer, checkpoints, _position_after(step, schedule, meter), run, accelerator)
            watch.lap("save")
    return record.summary(step, optim.batch_size, logged)


# ---- parts of the story ------------------------------------------------------------------------------------------


def _resume(
    task: Task, optimizer: torch.optim.Optimizer, checkpoints: Checkpoints, accelerator: Accelerator
) -> tuple[nn.Module, AcceleratedOptimizer, Position]:
    """Model and optimiser as the newest checkpoint left them, prepared for this launch, and the position."""
    position, scaler_state = Position(), None
    if newest := checkpoints.latest():
        position, scaler_state = checkpoints.restore(newest, task.identity, task.model, optimizer)
    model, prepared = accelerator.prepare(task.model, optimizer)
    if accelerator.scaler is not None and scaler_state is not None:
        accelerator.scaler.load_state_dict(scaler_state)
    return model, prepared, position


def _save(
    task: Task,
    optimizer: torch.optim.Optimizer,
    checkpoints: Checkpoints,
    position: Position,
    run: Path,
    accelerator: Accelerator,
) -> None:
    if accelerator.is_main_process:
        scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else None
        # The product first: a run killed in between does these steps, and its product, again.
        task.save(run)
        checkpoints.save(position, task.identity, task.model, optimizer, scaler)
    accelerator.wait_for_everyone()


class _Record:
    """Turns phase seconds into the numbers that are reported."""

    def __init__(self, step: int) -> None:
        self._began, self._first = time.perf_counter(), step
        self._seconds = {"data": 0.0, "compute": 0.0, "save": 0.0}
        self._step = step

    def take(self, watch: Stopwatch, step: int, batch_size: int) -> dict[str, float]:
        seconds = watch.take()
        for phase, value in seconds.items():
            self._seconds[phase] += value
        total = sum(seconds.values())
        steps, self._step = step - self._step, step
        return {
            "samples_per_second": steps * batch_size / total if total else 0.0,
            "data_wait_share": seconds.get("data", 0.0) / total if total else 0.0,
            "step_seconds": total / steps,
        }

    def summary(self, step: int, batch_size: int, last: dict[str, float]) -> TrainingSummary:
        steps, seconds = step - self._first, time.perf_counter() - self._began
        busy = self._seconds["data"] + self._seconds["compute"]
        return TrainingSummary(
            steps=steps,
            seconds=seconds,
            samples_per_second=steps * batch_size / seconds,
            data_wait_share=self._seconds["data"] / busy if busy else 0.0,
            step_seconds=busy / steps if steps else 0.0,
            last=last,
        )


@dataclass(frozen=True)
class _Failure:
    """An error of a loader process, carried as a value so that its class and message survive."""

    error: MvdError


class _Requests(Dataset[Any]):
    """Gives a `DataLoader` the task's reader; the sampler yields requests instead of indices."""

    def __init__(self, reader: Callable[[BatchRequest], Batch]) -> None:
        self._reader = reader

    def __getitem__(self, request: BatchRequest) -> tuple[BatchRequest, Batch | _Failure]:
        try:
            return request, self._reader(request)
        except MvdError as error:
            return request, _Failure(error)


class _Sampler:
    """All requests of this process from a position to the end: one loader serves the whole run without a gap."""

    def __init__(self, task: Task, position: Position, schedule: Schedule, shape: BatchShape, rank: int) -> None:
        self._task, self._position, self._schedule, self._shape, self._rank = task, position, schedule, shape, rank

    def __iter__(self) -> Iterator[BatchRequest]:
        step, epoch, first = self._position.step, self._position.epoch, self._position.batch
        while step < self._schedule.stop_step:
            rows = self._task.order(epoch)[: self._schedule.steps_per_epoch * self._shape.batch_size]
            for request in EpochRequests(rows, self._shape, epoch=epoch, rank=self._rank, first_batch=first):
                if step >= self._schedule.stop_step:
                    return
                yield request
                step += request.last_of_step
            epoch, first = epoch + 1, 0


def _batches(
    task: Task,
    position: Position,
    schedule: Schedule,
    shape: BatchShape,
    training: TrainingSection,
    accelerator: Accelerator,
) -> Iterator[tuple[BatchRequest, Batch]]:
    loader: Iterable[tuple[BatchRequest, Batch | _Failure]] = DataLoader(
        _Requests(task.reader),
        sampler=_Sampler(task, position, schedule, shape, accelerator.process_index),
        batch_size=None,
        num_workers=training.workers,
        prefetch_factor=training.prefetch_batches if training.workers else None,
        pin_memory=accelerator.device.type == "cuda",
    )
    for request, batch in loader:
        if isinstance(batch, _Failure):
            raise batch.error
        yield request, _to_device(batch, accelerator.device)


def batches_of(
    task: Task, optim: OptimSection, training: TrainingSection, accelerator: Accelerator
) -> Iterator[tuple[BatchRequest, Batch]]:
    """The micro-batches of a run from its start, on the device: what `train` iterates over."""
    shape = BatchShape(optim.batch_size, accelerator.num_processes, optim.micro_batch_size)
    schedule = Schedule.of(task.samples_per_epoch(), optim, training)
    return _batches(task, Position(), schedule, shape, training, accelerator)


def _to_device(batch: Batch, device: torch.device) -> Batch:
    return {
        name: value.to(device, non_blocking=True)
        if isinstance(value, Tensor)
        else _to_device(value, device)
        if isinstance(value, dict)
        else value
        for name, value in batch.items()
    }


def check_launch(
    samples: int, optim: OptimSection, training: TrainingSection, accelerator: Accelerator
) -> tuple[BatchShape, Schedule]:
    """Sizes of a run on this launch; call it before a run folder is begun.

    Args:
        samples: usable rows of the smallest epoch.

    Raises:
        UsageError, RecipeError: an epoch smaller than a batch, a batch that does not divide by the processes, or fp16
            where accelerate has none (on a CPU it would train in float32 without a word).
    """
    if training.precision == "fp16" and accelerator.scaler is None:
        raise UsageError(
            f"training.precision is fp16, which needs a GPU; this run is on {accelerator.device}. "
            "--set training.precision=bf16, or no for float32."
        )
    shape = BatchShape(optim.batch_size, accelerator.num_processes, optim.micro_batch_size)
    return shape, Schedule.of(samples, optim, training)


def _step_seed(seed: int, request: BatchRequest) -> int:
    return KeyedStream("step", seed, request.epoch, request.batch, request.first).torch_seed()


def _position_after(step: int, schedule: Schedule, meter: Meter) -> Position:
    epoch, batch = divmod(step, schedule.steps_per_epoch)
    return Position(step, epoch, batch, dict(meter.sums), meter.count)


def _mean_over_processes(losses: list[dict[str, Tensor]], accelerator: Accelerator) -> dict[str, float]:
    names = list(losses[0])
    means = torch.stack([torch.stack([part[name].float() for part in losses]).mean() for name in names])
    reduced = accelerator.reduce(means, reduction="mean")
    return dict(zip(names, reduced.tolist(), strict=True))


def _refuse_non_finite(parts: dict[str, Tensor], step: int, rows: tuple[int, ...], accelerator: Accelerator) -> None:
    """All processes stop together: the sum over them is not finite as soon as one loss is not."""
    total = accelerator.reduce(parts["loss"].detach().float(), reduction="sum")
    if bool(torch.isfinite(total)):
        return
    values = ", ".join(f"{name} {float(value.detach()):g}" for name, value in parts.items())
    found = (bool(torch.isfinite(parts["loss"].detach())), values, rows)
    guilty = [(text, bad) for finite, text, bad in gather_object([found]) if not finite]
    raise NonFiniteLossError(
        f"the loss of step {step} is not finite ({'; '.join(text for text, _ in guilty)}; rows of the micro-batch: "
        f"{', '.join(str(row) for _, bad in guilty for row in bad)}). No update was made. Look at the rows with "
        "`mvd-offline shards show`; with fp16, try training.precision bf16; or lower optim.base_lr. "
        "The run goes on from its last checkpoint."
    )


def _gradient_norm(accelerator: Accelerator, optimizer: Any, model: nn.Module, limit: float | None) -> float:
    accelerator.unscale_gradients(optimizer)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if limit is not None:
        torch.nn.utils.clip_grads_with_norm_([p for p in model.parameters() if p.grad is not None], limit, norm)
    return float(norm)
