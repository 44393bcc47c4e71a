"""Micro-batches of a run in their order, read by loader processes: one loader serves the whole run without a gap.

Where an epoch's data may have to be waited for, what comes before it is given out first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mvd_offline.errors import MvdError
from mvd_offline.recipe import TrainingSection
from mvd_offline.training.order import BatchRequest, BatchShape, EpochRequests
from mvd_offline.training.packed import PackedClips
from mvd_offline.training.stopping import StopRequested, outlive_signals

Batch = dict[str, Any]


@dataclass(frozen=True)
class Requests:
    """All micro-batches of one process from a position to the end of a run: the sampler of its loader.

    Attributes:
        order: rows of an epoch, in order.
        steps_per_epoch: the same in every epoch, whatever rows an epoch has beyond them.
        step, epoch, batch: where to begin: steps done, and the next batch.
        may_wait: `order` blocks until the data of its epoch is there.
    """

    order: Callable[[int], NDArray[np.int64]]
    shape: BatchShape
    rank: int
    steps_per_epoch: int
    stop_step: int
    step: int = 0
    epoch: int = 0
    batch: int = 0
    may_wait: bool = False

    def __iter__(self) -> Iterator[BatchRequest]:
        return chain.from_iterable(self.epochs())

    def epochs(self) -> Iterator[Iterator[BatchRequest]]:
        """The micro-batches of one epoch after the other."""
        step, epoch, first = self.step, self.epoch, self.batch
        leftover: NDArray[np.int64] | None = None
        while step < self.stop_step:
            try:
                if leftover is None and epoch and not first and self.shape.leftover:
                    leftover = self._leftover(self.order(epoch - 1))
                order = self.order(epoch)
            except StopRequested:
                return
            rows = order[: self.steps_per_epoch * self.shape.batch_size]
            requests = EpochRequests(
                rows, self.shape, epoch=epoch, rank=self.rank, first_batch=first, leftover=leftover
            )
            yield _first_steps(requests, self.stop_step - step)
            step += requests.batches - first
            epoch, first, leftover = epoch + 1, 0, self._leftover(order)

    def _leftover(self, order: NDArray[np.int64]) -> NDArray[np.int64]:
        return self.shape.leftover_rows(order, self.steps_per_epoch)


def _first_steps(requests: EpochRequests, steps: int) -> Iterator[BatchRequest]:
    for request in requests:
        if not steps:
            return
        yield request
        steps -= request.last_of_step


class _EpochByEpoch:
    """A sampler each of whose iterators gives out one more epoch, which begins when its first request is asked for."""

    def __init__(self, requests: Requests) -> None:
        self._epochs = requests.epochs()

    def __iter__(self) -> Iterator[BatchRequest]:
        yield from next(self._epochs, ())


def read_batches(
    reader: Callable[[BatchRequest], Batch], requests: Requests, training: TrainingSection, device: torch.device
) -> Iterator[tuple[BatchRequest, Batch]]:
    """The micro-batches, for `to_device`: in main memory; where a GPU trains, on their way to it, the next one as well.

    Where data may have to be waited for, none is held back until the next one is there.

    Raises:
        MvdError: of a loader process, as it was raised there.
    """
    read = _read(reader, requests, training, pin=device.type == "cuda")
    if device.type == "cuda" and not requests.may_wait:
        stream = torch.cuda.Stream(device)
        return one_ahead(read, lambda batch: _OnItsWay(batch, device, stream))
    return read


def _read(
    reader: Callable[[BatchRequest], Batch], requests: Requests, training: TrainingSection, *, pin: bool
) -> Iterator[tuple[BatchRequest, Batch]]:
    loader = DataLoader(
        _Reading(reader),
        # A loader asks its sampler for more before it gives out what it holds, so that one that waits holds back both.
        sampler=_EpochByEpoch(requests) if requests.may_wait else requests,
        batch_size=None,
        num_workers=training.workers,
        prefetch_factor=training.prefetch_batches if training.workers else None,
        pin_memory=pin,
        worker_init_fn=_start_worker,
        persistent_workers=requests.may_wait and training.workers > 0,
    )
    again = True
    while again:
        again = False
        for request, batch in loader:
            if isinstance(batch, _Failure):
                raise batch.error
            yield request, batch
            again = requests.may_wait


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors, and those of mappings in it, on the device, in the order of the current stream.

    Packed clips become tensors there.
    """
    if isinstance(batch, _OnItsWay):
        return batch.arrive()
    return _copy(batch, device)


def one_ahead(
    batches: Iterable[tuple[BatchRequest, Batch]], begin: Callable[[Batch], Batch]
) -> Iterator[tuple[BatchRequest, Batch]]:
    """What `begin` makes of each batch; it has been called for the next one too by then."""
    held: list[tuple[BatchRequest, Batch]] = []
    for request, batch in batches:
        held.append((request, begin(batch)))
        if len(held) == 2:
            yield held.pop(0)
    yield from held


class _OnItsWay(Batch):
    """A batch that a stream of its own copies to the GPU, while the current stream computes."""

    def __init__(self, batch: Batch, device: torch.device, stream: torch.cuda.Stream) -> None:
        with torch.cuda.stream(stream):
            super().__init__(_copy(batch, device))
            self._copied = stream.record_event()

    def arrive(self) -> Batch:
        """The batch, for the current stream: what that stream does from now on is done after the copy."""
        current = torch.cuda.current_stream()
        current.wait_event(self._copied)
        for tensor in _tensors_of(self):
            # Its memory belongs to the copying stream, which would use it again while the current one still reads.
            tensor.record_stream(current)
        return dict(self)


def _copy(batch: Batch, device: torch.device) -> Batch:
    return {
        name: value.to(device, non_blocking=True)
        if isinstance(value, Tensor | PackedClips)
        else _copy(value, device)
        if isinstance(value, dict)
        else value
        for name, value in batch.items()
    }


def _tensors_of(batch: Batch) -> Iterator[Tensor]:
    for value in batch.values():
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict):
            yield from _tensors_of(value)


@dataclass(frozen=True)
class _Failure:
    """An error of a loader process, carried as a value so that its class and message survive."""

    error: MvdError


class _Reading(Dataset[Any]):
    """Gives a `DataLoader` the task's reader; the sampler yields requests instead of indices."""

    def __init__(self, reader: Callable[[BatchRequest], Batch]) -> None:
        self._reader = reader

    def __getitem__(self, request: BatchRequest) -> tuple[BatchRequest, Batch | _Failure]:
        try:
            return request, self._reader(request)
        except MvdError as error:
            return request, _Failure(error)


def _start_worker(number: int) -> None:
    outlive_signals()
