"""One batch of views through the teachers: alone, or as part of an extraction, whose device computes the next
meanwhile."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvd_offline.extraction.coding import BegunBatch, CodedBatch
from mvd_offline.models.inputs import normalize
from mvd_offline.models.teachers import Teacher
from mvd_offline.video.feed import FeedItem


def batches_of(rows: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    """The teacher batches of a shard's views: part of what decides the last bits of the targets."""
    return (rows[start : start + size] for start in range(0, len(rows), size))


class TeacherInputs:
    """What teachers see of a batch of views: brought to the device and normalised once for each size.

    The batch always has `batch_rows` clips, so that the shapes, and with them the last bits, do not depend on which
    rows failed.
    """

    def __init__(self, items: Sequence[FeedItem], batch_rows: int, device: torch.device) -> None:
        self._items, self._rows, self._device = items, batch_rows, device
        self._videos: dict[int, Tensor] = {}

    @property
    def empty(self) -> bool:
        """Whether no view was rendered, so that there is nothing to see."""
        return all(item.renderings is None for item in self._items)

    @torch.inference_mode()
    def features(self, teacher: Teacher) -> Tensor:
        """Float32 features (len(items), N, D), on the device."""
        if (video := self._videos.get(teacher.image_size)) is None:
            # Pinned, a copy needs no processor, and does not wait for what the device still computes.
            clips = stacked(self._items, self._rows, teacher.image_size, pin=self._device.type == "cuda")
            video = self._videos[teacher.image_size] = normalize(clips.to(self._device, non_blocking=True))
        output: Tensor = teacher(video)
        return output.float()[: len(self._items)]


def stacked(items: Sequence[FeedItem], rows: int, size: int, *, pin: bool = False) -> Tensor:
    """The views of a batch, uint8 (rows, T, S, S, 3); those that failed, and those that it lacks, are zeros."""
    pixels = [None if item.renderings is None else item.renderings[size].pixels for item in items]
    shape = next(clip.shape for clip in pixels if clip is not None)
    clips = torch.zeros(rows, *shape, dtype=torch.uint8, pin_memory=pin)
    for slot, clip in zip(clips.numpy(), pixels, strict=False):
        if clip is not None:
            slot[...] = clip
    return clips


def batch_features(
    items: Sequence[FeedItem], batch_rows: int, teachers: Mapping[str, Teacher], device: torch.device
) -> dict[str, Tensor]:
    """Float32 features (len(items), N, D) by column, on the device; none if no view was rendered."""
    inputs = TeacherInputs(items, batch_rows, device)
    return {} if inputs.empty else {name: inputs.features(teacher) for name, teacher in teachers.items()}


@dataclass(frozen=True)
class TeacherRun:
    """A teacher's pass over a batch, which the device may still be computing."""

    coded: BegunBatch
    _began: float | torch.cuda.Event
    _ended: float | torch.cuda.Event

    @classmethod
    def begin(cls, inputs: TeacherInputs, teacher: Teacher, codec: str, device: torch.device) -> TeacherRun:
        began = _now(device)
        coded = BegunBatch.of(inputs.features(teacher), codec)
        return cls(coded, began, _now(device))

    def finish(self) -> tuple[CodedBatch, float]:
        """Wait for the device; the coded rows, and the seconds that forward pass and coding took it."""
        coded = self.coded.finish()
        if isinstance(self._began, float):
            assert isinstance(self._ended, float)
            return coded, self._ended - self._began
        assert not isinstance(self._ended, float)
        self._ended.synchronize()
        return coded, self._began.elapsed_time(self._ended) / 1000


def _now(device: torch.device) -> float | torch.cuda.Event:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


class Afterwards:
    """What is to be done with results, in order, as soon as the device has them; one batch of them may be waited for,
    so that the device has the next before it is done."""

    def __init__(self) -> None:
        self._queue: deque[tuple[Callable[[], bool] | None, Callable[[], Any]]] = deque()

    def put(self, action: Callable[[], Any], ready: Callable[[], bool] | None = None) -> None:
        """Queue an action; without `ready`, one that needs the actions before it, and no result."""
        self._queue.append((ready, action))
        self._run(behind=1)

    def finish(self) -> None:
        """Do all that is left, waiting for the device."""
        self._run(behind=0)

    def _run(self, behind: int) -> None:
        while self._queue:
            ready, _ = self._queue[0]
            batches = sum(1 for other, _ in self._queue if other is not None)
            if batches <= behind and ready is not None and not ready():
                return
            _, action = self._queue.popleft()
            action()
