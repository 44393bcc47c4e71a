"""The training loop that distillation, teacher pretraining and fine-tuning share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from numpy.typing import NDArray
from torch import Tensor, nn

from mvd_offline.errors import TrainingStopped, UsageError
from mvd_offline.progress import WorkProgress, rate_in_words
from mvd_offline.randomness import KeyedStream
from mvd_offline.recipe import OptimSection, QuirkSection, TrainingSection
from mvd_offline.shards.atomic import clean_folder
from mvd_offline.training.averages import Average
from mvd_offline.training.feeding import Batch, Requests, read_batches, to_device
from mvd_offline.training.interludes import Interlude, Interludes
from mvd_offline.training.launch import prepare
from mvd_offline.training.metrics import Meter, MetricsWriter
from mvd_offline.training.optim import build_optimizer, set_learning_rate
from mvd_offline.training.order import BatchRequest, BatchShape
from mvd_offline.training.schedule import NO_QUIRKS, Schedule
from mvd_offline.training.snapshot import put_back, take_snapshot
from mvd_offline.training.state import Checkpoints, Position, RunIdentity
from mvd_offline.training.step import StepLosses, clip_gradients, gradient_norm
from mvd_offline.training.stopping import StopSignals, stop_requested
from mvd_offline.training.timing import Timing, TrainingSummary

__all__ = ["Batch", "Task", "TrainingSummary", "batches_of", "check_launch", "train"]


class Task(Protocol):
    """What one kind of training adds to the loop."""

    title: str
    unit: str
    """What a row of `order` is, in the plural: `clips`, or `videos` of which the reader makes several."""
    identity: RunIdentity
    model: nn.Module
    may_wait: bool
    """Whether `order` blocks until the data of its epoch is there."""
    reader: Callable[[BatchRequest], Batch]
    """Reads one micro-batch; runs in a loader process, so it holds no model and pickles."""
    averages: Mapping[str, Average]
    """Moving averages of the model by name: updated after each step, part of each checkpoint. Mostly none."""

    def groups(self) -> list[dict[str, object]]:
        """Parameter groups of `training.optim.parameter_groups`."""

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Rows of the epoch, in order."""

    def samples_per_epoch(self) -> int:
        """The fewest rows that any epoch has."""

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Scalars by name, `loss` (the one that is minimised) among them; tensors of `batch` are on the device."""

    def save(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Write what others load (a student, a teacher, a classifier) into the run folder.

        `state` is the model's state dict, whole: the model itself may hold a part of it, where it is sharded.
        """


def train(
    task: Task,
    optim: OptimSection,
    training: TrainingSection,
    *,
    run: Path,
    accelerator: Accelerator,
    quirks: QuirkSection = NO_QUIRKS,
    interlude: Interlude | None = None,
) -> TrainingSummary:
    """Train `task` until its schedule ends, going on from the newest checkpoint of the run folder.

    The global batch, the samples in it and their masks do not depend on the number of processes; the loss does to
    float tolerance. On one CPU process a resumed run repeats an uninterrupted one exactly.

    Raises:
        NonFiniteLossError: before the update of the step whose loss is not finite.
        TrainingStopped: SIGTERM or SIGINT came; the step that was under way is done and saved.
        UsageError, RecipeError: sizes that do not fit; a run folder of another recipe.
        CheckpointError: the run folder's checkpoints are all damaged.
    """
    shape, schedule = check_launch(task.samples_per_epoch(), optim, training, accelerator, quirks)
    torch.set_float32_matmul_precision("high" if training.tf32 else "highest")
    main, device = accelerator.is_main_process, accelerator.device

    # Go on where the last sound checkpoint ends.
    state = _State(task, optim, shape, run, training.keep_last, accelerator)
    position = state.resume()
    meter, step, logged = Meter(position.meter_sums, position.meter_count), position.step, dict[str, float]()
    losses, timing = StepLosses(), Timing(device, step=step, batch_size=optim.batch_size)
    requests = _requests(task, position, schedule, shape, accelerator)
    interludes = Interludes(interlude, schedule, accelerator)

    with (
        StopSignals(speak=main) as signals,
        MetricsWriter(run, resume_step=step, tensorboard=training.tensorboard, enabled=main) as writer,
        WorkProgress(task.title, schedule.stop_step, unit="steps", done=step, enabled=main) as progress,
    ):
        # What is due at the checkpoint that the run goes on from, where a kill came before it.
        interrupted = not interludes.hold(step, writer)
        timing.leave_out()
        for request, read in () if interrupted else read_batches(task.reader, requests, training, device):
            timing.lap("data")
            batch = to_device(read, device)
            timing.lap("transfer")

            # Forward and backward; gradients are averaged over processes with the last micro-batch only.
            task.model.train()
            torch.manual_seed(_step_seed(training.seed, request))
            with contextlib.nullcontext() if request.last_of_step else accelerator.no_sync(state.model):
                with accelerator.autocast():
                    parts = task.loss(state.model, batch)
                timing.lap("forward")
                accelerator.backward(parts["loss"] / shape.divisor(request))
            losses.add(parts, request)
            timing.lap("backward")
            if not request.last_of_step:
                continue

            # Agree: one exchange of losses, gradient norm and signals, for which the device is waited for.
            norm = gradient_norm(accelerator, state.optimizer, task.model)
            values, stop = losses.agree(step, norm, stop_requested(), accelerator)

            # Update.
            lr = schedule.learning_rate(step, optim, quirks)
            clip_gradients(task.model, norm, optim.clip_grad_norm)
            state.update(lr, epoch=step / schedule.steps_per_epoch)
            step += 1
            meter.add(values)
            timing.lap("optimizer")

            # Write down.
            note = None
            if step % training.log_every_steps == 0 or step == schedule.stop_step:
                logged, seconds = meter.take(), timing.line(step)
                epoch = step / schedule.steps_per_epoch
                writer.write({"step": step, "epoch": epoch, "lr": lr, **logged, "time": seconds})
                note = f"loss {logged['loss']:.4f}  {rate_in_words(seconds['samples_per_second'], task.unit)}"
            progress.reach(step, note)

            # Save; then look at what was saved.
            if step % schedule.checkpoint_every == 0 or step == schedule.stop_step or interludes.due(step):
                state.save(_position_after(step, schedule, meter))
            timing.lap("save")
            interrupted = not interludes.hold(step, writer, stop=stop)
            timing.leave_out()
            if stop or interrupted:
                break

        # Asked to stop: after a step, or where the data of the next epoch is waited for.
        if interrupted or step < schedule.stop_step:
            state.save(_position_after(step, schedule, meter))
            raise TrainingStopped(run, step, schedule.stop_step, signals.names)
    return timing.summary(step, logged, task.unit)


# ---- parts of the story ------------------------------------------------------------------------------------------


class _State:
    """What a launch trains: model and optimiser as the launch holds them, averages, and their checkpoints."""

    def __init__(
        self, task: Task, optim: OptimSection, shape: BatchShape, run: Path, keep_last: int, accelerator: Accelerator
    ) -> None:
        self._task, self._run, self._accelerator = task, run, accelerator
        self._checkpoints, self._saved_step = Checkpoints(run, keep_last), 0
        optimizer = build_optimizer(task.groups(), optim, accelerator.device)
        for module in (task.model, *(average.module for average in task.averages.values())):
            module.to(accelerator.device)
        whole = shape.accumulation == 1 and not shape.leftover
        self.model, self.optimizer = prepare(task.model, optimizer, accelerator, syncs_every_backward=whole)

    def resume(self) -> Position:
        """Put back the newest sound checkpoint, if there is one; where to go on."""
        newest: list[Path | None] = [None]
        if self._accelerator.is_main_process:
            clean_folder(self._run)
            newest = [self._checkpoints.newest_sound()]
        path = broadcast_object_list(newest)[0]
        if path is None:
            return Position()
        position, snapshot = self._checkpoints.read(path, self._task.identity)
        put_back(snapshot, self._task.model, self.optimizer.optimizer, self._task.averages)
        if self._accelerator.scaler is not None and snapshot.scaler is not None:
            self._accelerator.scaler.load_state_dict(snapshot.scaler)
        self._saved_step = position.step
        return position

    def update(self, lr: float, *, epoch: float) -> None:
        """One step of the optimiser, and of the averages; `epoch` counts the epochs done before it."""
        set_learning_rate(self.optimizer, lr)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.optimizer.step_was_skipped:
            return  # fp16 looks for its scale: there is nothing to follow
        for average in self._task.averages.values():
            average.update(epoch)

    def save(self, position: Position) -> None:
        """Save, unless this very step is saved."""
        if position.step == self._saved_step:
            return
        scaler = None if self._accelerator.scaler is None else self._accelerator.scaler.state_dict()
        snapshot = take_snapshot(self._task.model, self.optimizer.optimizer, self._task.averages, scaler)
        if self._accelerator.is_main_process:
            # The product first: a run killed in between does these steps, and its product, again.
            self._task.save(self._run, snapshot.model)
            self._checkpoints.save(position, self._task.identity, snapshot)
        self._accelerator.wait_for_everyone()
        self._saved_step = position.step


def _requests(
    task: Task, position: Position, schedule: Schedule, shape: BatchShape, accelerator: Accelerator
) -> Requests:
    return Requests(
        task.order,
        shape,
        rank=accelerator.process_index,
        steps_per_epoch=schedule.steps_per_epoch,
        stop_step=schedule.stop_step,
        step=position.step,
        epoch=position.epoch,
        batch=position.batch,
        may_wait=task.may_wait,
    )


def batches_of(
    task: Task, optim: OptimSection, training: TrainingSection, accelerator: Accelerator
) -> Iterator[tuple[BatchRequest, Batch]]:
    """The micro-batches of a run from its start, on the device: what `train` iterates over."""
    shape, schedule = check_launch(task.samples_per_epoch(), optim, training, accelerator)
    requests = _requests(task, Position(), schedule, shape, accelerator)
    for request, batch in read_batches(task.reader, requests, training, accelerator.device):
        yield request, to_device(batch, accelerator.device)


def check_launch(
    samples: int,
    optim: OptimSection,
    training: TrainingSection,
    accelerator: Accelerator,
    quirks: QuirkSection = NO_QUIRKS,
) -> tuple[BatchShape, Schedule]:
    """Sizes of a run on this launch; call it before a run folder is begun.

    Args:
        samples: usable rows of the smallest epoch.

    Raises:
        UsageError, RecipeError: an epoch smaller than a batch, a batch that does not divide by the processes, or fp16
            where accelerate has none (on a CPU it would train in float32 without a word).
    """
    check_precision(training, accelerator)
    shape = BatchShape(optim.batch_size, accelerator.num_processes, optim.micro_batch_size, quirks.leftover_micro_batch)
    return shape, Schedule.of(samples, optim, training)


def check_precision(training: TrainingSection, accelerator: Accelerator) -> None:
    """Raises UsageError for fp16 where accelerate has none (on a CPU it would train in float32 without a word)."""
    if training.precision == "fp16" and accelerator.scaler is None:
        raise UsageError(
            f"training.precision is fp16, which needs a GPU; this run is on {accelerator.device}. "
            "--set training.precision=bf16, or no for float32."
        )


def _step_seed(seed: int, request: BatchRequest) -> int:
    return KeyedStream("step", seed, request.epoch, request.batch, request.first).torch_seed()


def _position_after(step: int, schedule: Schedule, meter: Meter) -> Position:
    epoch, batch = divmod(step, schedule.steps_per_epoch)
    return Position(step, epoch, batch, dict(meter.sums), meter.count)
