"""The classifier's answers: batches of views through the model of each process, put together on the first."""

from __future__ import annotations

import signal
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mvd_offline.evaluation.views import ViewBatch, ViewBatches
from mvd_offline.models.inputs import normalize
from mvd_offline.progress import WorkProgress
from mvd_offline.recipe import Precision, TrainingSection


@dataclass
class Answers:
    """What one process found, or all of them together.

    Attributes:
        logits: float32 (views, classes) of each row, clip by clip and crop by crop.
        failed: reasons of the rows that could not be read.
        seconds, waited: of the whole, and of it waiting for decoded views; of several processes, their sums.
    """

    logits: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0
    waited: float = 0.0

    def add(self, other: Answers) -> None:
        self.logits |= other.logits
        self.failed |= other.failed
        self.seconds += other.seconds
        self.waited += other.waited


def effective_precision(training: TrainingSection, device: torch.device) -> Precision:
    """The recipe's on a GPU; a CPU computes in float32, where half precision is slow or not there at all."""
    return training.precision if device.type == "cuda" else "no"


def answer(
    model: nn.Module, batches: ViewBatches, size: int, training: TrainingSection, accelerator: Accelerator
) -> Answers:
    """Logits of the views of this process's share of the batches.

    Args:
        model: on the accelerator's device, in evaluation mode.
        size: most clips of one forward pass.
    """
    device, found = accelerator.device, Answers()
    mine = range(accelerator.process_index, len(batches), accelerator.num_processes)
    loader = DataLoader(
        batches,
        sampler=mine,
        batch_size=None,
        num_workers=training.workers,
        prefetch_factor=training.prefetch_batches if training.workers else None,
        pin_memory=device.type == "cuda",
        collate_fn=_as_is,
        worker_init_fn=_leave_interrupts_to_the_parent,
    )
    began = waiting = time.perf_counter()
    with WorkProgress("evaluate", len(mine), unit="batches", enabled=accelerator.is_main_process) as progress:
        for done, batch in enumerate(loader, start=1):
            found.waited += time.perf_counter() - waiting
            found.failed |= batch.failed
            found.logits |= _forward(model, batch, size, effective_precision(training, device), device)
            progress.reach(done, f"{len(found.logits)} videos")
            waiting = time.perf_counter()
    found.seconds = time.perf_counter() - began
    return found


def gather(found: Answers, accelerator: Accelerator) -> Answers | None:
    """The answers of all processes, on the main one; None on the others."""
    if accelerator.num_processes == 1:
        return found
    # To the main process only: all logits of Kinetics-400 are half a gigabyte.
    parts: list[Any] | None = [None] * accelerator.num_processes if accelerator.is_main_process else None
    torch.distributed.gather_object(found, parts)
    if parts is None:
        return None
    together = Answers()
    for part in parts:
        together.add(part)
    return together


def _forward(
    model: nn.Module, batch: ViewBatch, size: int, precision: Precision, device: torch.device
) -> dict[int, NDArray[np.float32]]:
    if batch.clips is None:
        return {}
    with torch.inference_mode(), _autocast(precision, device):
        parts: list[Tensor] = [
            model(normalize(clips.to(device, non_blocking=True))).float() for clips in batch.clips.split(size)
        ]
    logits = torch.cat(parts).view(len(batch.rows), -1, parts[0].shape[1]).cpu().numpy()
    return dict(zip(batch.rows, logits, strict=True))


def _autocast(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    if precision == "no":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)


def _as_is(item: Any) -> Any:
    return item


def _leave_interrupts_to_the_parent(worker: int) -> None:
    # Ctrl-C reaches the whole process group; the parent alone answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
