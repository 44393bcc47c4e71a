"""What reading costs a training: its steps fed by the loader, and the same steps on batches that are in memory."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch

from mvd_offline.bench.measure import Spread, machine, wait_for
from mvd_offline.bench.step import Stepper
from mvd_offline.distillation.data import DistillData
from mvd_offline.distillation.task import DistillTask
from mvd_offline.errors import UsageError
from mvd_offline.local import resolve_root
from mvd_offline.processes import join_launch
from mvd_offline.recipe import DistillRecipe
from mvd_offline.shards.store import open_store
from mvd_offline.targets import open_targets
from mvd_offline.training.loop import Batch, batches_of
from mvd_offline.training.order import BatchRequest

IN_MEMORY = 4
"""Batches that the steps without a loader take turns with."""


@dataclass(frozen=True)
class PipelineTimes:
    """Steps as in a run: the loader's processes, read-ahead, checks and copies, then forward, backward, update."""

    recipe: str
    batch_size: int
    steps: int
    rounds: int
    workers: int
    loaded_clips_per_second: Spread
    """From the store on disk, once the loader's head start is used up."""
    memory_clips_per_second: Spread
    """Batches that are on the device already."""
    of_memory: Spread
    """The one over the other, round by round."""
    wait_share: Spread
    """Of a step's time that the training process waits for data."""
    machine: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def time_pipeline(
    recipe: DistillRecipe, *, store_dir: Path, steps: int, rounds: int, batch_size: int | None, root: Path | None = None
) -> PipelineTimes:
    """Time single-process steps fed by the loader and from memory, in turn.

    Args:
        steps: of each kind in a round. Before those that the loader feeds, as many as it may have read ahead are made
            and not counted.
        batch_size: clips of a step, of one micro-batch; the recipe's micro-batch when None.

    Raises:
        UsageError: the store has fewer usable rows than one batch.
    """
    accelerator = join_launch(mixed_precision=recipe.training.precision)
    device, size = accelerator.device, batch_size or recipe.optim.micro_batch_size
    optim = recipe.optim.model_copy(update={"batch_size": size, "micro_batch_size": size})
    recipe = recipe.model_copy(update={"optim": optim})
    store = open_store(store_dir)
    source = open_targets(recipe, store, device)
    task = DistillTask(recipe, DistillData.of_store(recipe, store, resolve_root(store_dir, root)), source)
    if (samples := task.samples_per_epoch()) < size:
        raise UsageError(f"{store_dir} has {samples} usable rows, fewer than a batch of {size}")
    stepper, workers = Stepper(task, recipe, accelerator), recipe.training.workers
    ahead = 1 + workers * recipe.training.prefetch_batches

    def loader() -> Generator[tuple[BatchRequest, Batch], None, None]:
        yield from batches_of(task, recipe.optim, recipe.training, accelerator)

    with contextlib.closing(loader()) as batches:
        held = cycle(list(islice(batches, IN_MEMORY)))
    _steps(stepper, held, 1, device)
    loaded, memory, waits = [], [], []
    for _ in range(rounds):
        seconds, _ = _steps(stepper, held, steps, device)
        memory.append(steps * size / seconds)
        with contextlib.closing(loader()) as batches:
            _steps(stepper, batches, ahead, device)
            seconds, wait = _steps(stepper, batches, steps, device)
        loaded.append(steps * size / seconds)
        waits.append(wait / seconds)
    return PipelineTimes(
        recipe=recipe.name,
        batch_size=size,
        steps=steps,
        rounds=rounds,
        workers=workers,
        loaded_clips_per_second=Spread.of(loaded),
        memory_clips_per_second=Spread.of(memory),
        of_memory=Spread.of([one / other for one, other in zip(loaded, memory, strict=True)]),
        wait_share=Spread.of(waits),
        machine=machine(device),
    )


def _steps(
    stepper: Stepper, batches: Iterator[tuple[BatchRequest, Batch]], steps: int, device: torch.device
) -> tuple[float, float]:
    """Seconds that so many steps take, and what of it is waiting for a batch."""
    wait_for(device)
    began, waited = time.perf_counter(), 0.0
    for _ in range(steps):
        asked = time.perf_counter()
        request, batch = next(batches)
        waited += time.perf_counter() - asked
        stepper.step(batch, request)
    wait_for(device)
    return time.perf_counter() - began, waited
