"""The order of samples: a pure function of (store, seed, epoch), for any number of processes and any restart."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mvd_offline.errors import RecipeError
from mvd_offline.randomness import KeyedStream

ORDER_VERSION = 1


def epoch_order(
    shards: Sequence[NDArray[np.int64]], *, source: str, seed: int, epoch: int, window: int
) -> NDArray[np.int64]:
    """Rows of an epoch in the order in which they are seen.

    Shards are shuffled, then rows are shuffled within each run of `window` shards, so that a reader has at most that
    many files open and a network drive sees long reads.

    Args:
        shards: rows of each shard of this epoch's group, failed rows left out.
        source: identity of the data: the store's id, or a catalog's hash.
    """
    stream = KeyedStream("order", ORDER_VERSION, source, seed, epoch)
    shuffled = stream.permutation(len(shards))
    parts = []
    for start in range(0, len(shards), window):
        rows = np.concatenate([shards[i] for i in shuffled[start : start + window].tolist()])
        parts.append(rows[stream.permutation(len(rows))])
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


@dataclass(frozen=True)
class BatchRequest:
    """One micro-batch: what a loader process is asked for.

    `batch` counts global batches of the epoch; `first` is the position of `rows[0]` in that global batch. `leftover`
    marks rows of an `epoch` that is over: their gradients are added to the next step's (see
    `QuirkSection.leftover_micro_batch`).
    """

    epoch: int
    batch: int
    first: int
    last_of_step: bool
    rows: tuple[int, ...]
    leftover: bool = False


@dataclass(frozen=True)
class BatchShape:
    """How a global batch is shared out: `batch_size` samples over `world_size` processes in micro-batches.

    Rows of an epoch after its last full batch are dropped, except with `leftover` (`quirks.leftover_micro_batch`):
    whole chunks of that many rows give their gradients to the first step of the next epoch.
    """

    batch_size: int
    world_size: int
    micro_batch_size: int
    leftover: int | None = None

    def __post_init__(self) -> None:
        if self.batch_size % self.world_size:
            raise RecipeError(
                f"optim.batch_size is {self.batch_size} samples over all processes and does not divide by the "
                f"{self.world_size} processes of this launch; choose a number of processes that divides it, or "
                f"--set optim.batch_size to a multiple of {self.world_size}."
            )
        if self.per_process % self.micro:
            raise RecipeError(
                f"each of {self.world_size} processes has {self.per_process} samples of a batch, which is no multiple "
                f"of optim.micro_batch_size ({self.micro_batch_size}); choose a divisor of {self.per_process}."
            )
        if self.leftover and self.leftover < self.batch_size and self.leftover % self.world_size:
            raise RecipeError(
                f"quirks.leftover_micro_batch is {self.leftover} samples over all processes and does not divide by the "
                f"{self.world_size} processes of this launch; choose a number of processes that divides it, or "
                "--set quirks.leftover_micro_batch=null to leave out what an epoch has after its last full batch."
            )

    @property
    def per_process(self) -> int:
        return self.batch_size // self.world_size

    @property
    def micro(self) -> int:
        return min(self.micro_batch_size, self.per_process)

    @property
    def accumulation(self) -> int:
        """Micro-batches of one process in one optimiser step."""
        return self.per_process // self.micro

    def divisor(self, request: BatchRequest) -> float:
        """What a micro-batch's mean loss is divided by, so that every row has the same weight in the step."""
        return self.per_process / len(request.rows)

    def leftover_rows(self, order: NDArray[np.int64], batches: int) -> NDArray[np.int64]:
        """Rows of an epoch's order after its `batches` full batches that the next epoch's first step takes."""
        if self.leftover is None:
            return order[:0]
        start = batches * self.batch_size
        chunks = min(len(order) - start, self.batch_size - 1) // self.leftover
        return order[start : start + chunks * self.leftover]


class EpochRequests:
    """The micro-batches of one process in one epoch: a sampler for `torch.utils.data.DataLoader`.

    Global batch b is rows [b * batch_size, (b + 1) * batch_size) of the order; process r takes the r-th equal part of
    it. Rows past the last full batch are left out of this epoch, as the official code does.
    """

    def __init__(
        self,
        order: NDArray[np.int64],
        shape: BatchShape,
        *,
        epoch: int,
        rank: int,
        first_batch: int = 0,
        leftover: NDArray[np.int64] | None = None,
    ) -> None:
        """`leftover`: rows of the epoch before (`BatchShape.leftover_rows`), which come before this epoch's first."""
        self.order, self.shape, self.epoch, self.rank, self.first_batch = order, shape, epoch, rank, first_batch
        self.leftover = np.empty(0, np.int64) if leftover is None or first_batch else leftover

    @property
    def batches(self) -> int:
        return len(self.order) // self.shape.batch_size

    def __len__(self) -> int:
        leftover = math.ceil(len(self.leftover) // self.shape.world_size / self.shape.micro)
        return leftover + max(0, self.batches - self.first_batch) * self.shape.accumulation

    def __iter__(self) -> Iterator[BatchRequest]:
        shape = self.shape
        if self.batches > self.first_batch:
            yield from self._leftover_requests()
        for batch in range(self.first_batch, self.batches):
            for micro in range(shape.accumulation):
                first = self.rank * shape.per_process + micro * shape.micro
                start = batch * shape.batch_size + first
                rows = tuple(int(row) for row in self.order[start : start + shape.micro])
                yield BatchRequest(self.epoch, batch, first, micro == shape.accumulation - 1, rows)

    def _leftover_requests(self) -> Iterator[BatchRequest]:
        part = len(self.leftover) // self.shape.world_size
        end = (self.rank + 1) * part
        for first in range(self.rank * part, end, self.shape.micro):
            rows = tuple(int(row) for row in self.leftover[first : min(first + self.shape.micro, end)])
            yield BatchRequest(self.epoch - 1, self.batches, first, last_of_step=False, rows=rows, leftover=True)
