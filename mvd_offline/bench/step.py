"""Measurements of training steps: the same recipe, the same samples, online and cached in turn."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from mvd_offline.bench.measure import Spread, machine, wait_for
from mvd_offline.distillation.data import DistillData
from mvd_offline.distillation.task import DistillTask
from mvd_offline.errors import UsageError
from mvd_offline.local import resolve_root
from mvd_offline.processes import join_launch
from mvd_offline.recipe import DistillRecipe
from mvd_offline.shards.store import open_store
from mvd_offline.targets import open_targets
from mvd_offline.training.launch import prepare
from mvd_offline.training.loop import Batch, batches_of
from mvd_offline.training.optim import build_optimizer, set_learning_rate
from mvd_offline.training.order import BatchRequest
from mvd_offline.training.step import StepLosses, gradient_norm


@dataclass(frozen=True)
class StepTimes:
    """Seconds of a step (reading, forward, backward, update); `speedup` is online over cached, pair by pair."""

    batch_size: int
    steps: int
    online_seconds: Spread
    cached_seconds: Spread
    speedup: Spread
    cached_wait_share: Spread
    online_teacher_share: Spread
    machine: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def time_steps(
    recipe: DistillRecipe, *, store_dir: Path, steps: int, batch_size: int, root: Path | None = None
) -> StepTimes:
    """Time single-process optimiser steps with online and with cached targets, in turn, on the same samples.

    Both read in the training process: a loader that worked ahead during the other kind's step would win time from it.
    The wait for data is therefore all of the reading and decoding, which loader processes take over in a run.

    Args:
        steps: measured steps of each kind, after one of each that is not counted.
    """
    accelerator = join_launch(mixed_precision=recipe.training.precision)
    device = accelerator.device
    runs = {}
    for kind in ("online", "cached"):
        changed = recipe.model_copy(
            update={
                "targets": kind,
                "optim": recipe.optim.model_copy(update={"batch_size": batch_size, "micro_batch_size": batch_size}),
                "training": recipe.training.model_copy(update={"workers": 0, "pixel_check_fraction": 0.0}),
            }
        )
        store = open_store(store_dir)
        source = open_targets(changed, store, device)
        task = DistillTask(changed, DistillData.of_store(changed, store, resolve_root(store_dir, root)), source)
        runs[kind] = (Stepper(task, changed, accelerator), _endless(task, changed, accelerator))
    timed: dict[str, list[_Step]] = {"online": [], "cached": []}
    for number in range(steps + 1):
        for kind, (stepper, batches) in runs.items():
            step = _timed(stepper, batches, device)
            if number:
                timed[kind].append(step)
    online, cached = ([step.seconds for step in timed[kind]] for kind in ("online", "cached"))
    return StepTimes(
        batch_size=batch_size,
        steps=steps,
        online_seconds=Spread.of(online),
        cached_seconds=Spread.of(cached),
        speedup=Spread.of([a / b for a, b in zip(online, cached, strict=True)]),
        cached_wait_share=Spread.of([step.wait_seconds / step.seconds for step in timed["cached"]]),
        online_teacher_share=Spread.of([1 - b / a for a, b in zip(online, cached, strict=True)]),
        machine=machine(device),
    )


@dataclass(frozen=True)
class _Step:
    seconds: float
    wait_seconds: float


class Stepper:
    """The step of a run with one process and one micro-batch, as `training.loop.train` makes it; learning rate 0."""

    def __init__(self, task: DistillTask, recipe: DistillRecipe, accelerator: Accelerator) -> None:
        self._task, self._accelerator = task, accelerator
        optimizer = build_optimizer(task.groups(), recipe.optim, accelerator.device)
        task.model.to(accelerator.device)
        self._model, self._optimizer = prepare(task.model, optimizer, accelerator, syncs_every_backward=True)
        self._losses = StepLosses()

    def step(self, batch: Batch, request: BatchRequest) -> dict[str, float]:
        """Losses and the gradient's norm of a batch on the device, which is waited for once, before the update."""
        self.accumulate(batch, request)
        return self.update()

    def accumulate(self, batch: Batch, request: BatchRequest) -> None:
        """Forward and backward."""
        self._task.model.train()
        with self._accelerator.autocast():
            parts = self._task.loss(self._model, batch)
        self._accelerator.backward(parts["loss"])
        self._losses.add(parts, request)

    def update(self) -> dict[str, float]:
        """What a step does once after its micro-batches; losses and the gradient's norm."""
        norm = gradient_norm(self._accelerator, self._optimizer, self._task.model)
        values, _ = self._losses.agree(0, norm, False, self._accelerator)
        set_learning_rate(self._optimizer, 0.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return values


def _endless(
    task: DistillTask, recipe: DistillRecipe, accelerator: Accelerator
) -> Iterator[tuple[BatchRequest, Batch]]:
    samples = task.samples_per_epoch()
    if samples < recipe.optim.batch_size:
        raise UsageError(f"the store has {samples} usable rows, fewer than a batch of {recipe.optim.batch_size}")
    return batches_of(task, recipe.optim, recipe.training, accelerator)


def _timed(stepper: Stepper, batches: Iterator[tuple[BatchRequest, Batch]], device: torch.device) -> _Step:
    wait_for(device)
    began = time.perf_counter()
    request, batch = next(batches)
    loaded = time.perf_counter()
    stepper.step(batch, request)
    wait_for(device)
    return _Step(time.perf_counter() - began, loaded - began)
