"""Where the time of a run goes: waiting for data, transfer, forward, backward, optimiser, saving."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise

import torch

from mvd_offline.training.metrics import Stopwatch

PHASES = ("data", "transfer", "forward", "backward", "optimizer", "save")
ON_DEVICE = ("transfer", "forward", "backward", "optimizer")
"""Phases that run on a GPU while this process is ahead of it."""


@dataclass(frozen=True)
class TrainingSummary:
    """What a call of `train` did (a resumed run counts only its own part).

    Attributes:
        unit: what its samples are, in the plural.
    """

    steps: int
    seconds: float
    samples_per_second: float
    data_wait_share: float
    step_seconds: float
    last: dict[str, float]
    unit: str


class Timing:
    """Seconds of each phase, by this process's clock; on a GPU, of the phases that run there, by the GPU's own clock.

    The GPU is never waited for but where a line is written: its events are read then.
    """

    def __init__(self, device: torch.device, *, step: int, batch_size: int) -> None:
        self._watch, self._on_gpu = Stopwatch(), device.type == "cuda"
        self._events: list[tuple[str, torch.cuda.Event]] = []
        self._began, self._first, self._batch_size = time.perf_counter(), step, batch_size
        self._step, self._data, self._busy = step, 0.0, 0.0

    def lap(self, phase: str) -> None:
        """Attribute the time since the last call to `phase`."""
        self._watch.lap(phase)
        if self._on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._events.append((phase, event))

    def leave_out(self) -> None:
        """The time since the last call was spent on something else than training: it counts nowhere."""
        self._began += self._watch.skip()
        if self._on_gpu:
            self.lap("elsewhere")

    def line(self, step: int) -> dict[str, float]:
        """The means since the last line: rates, and seconds of one step by phase.

        `step_seconds` is the wall-clock time of a step, saving included. On a GPU the phases do not add up to it.
        """
        seconds = self._watch.take()
        total, steps, self._step = sum(seconds.values()), step - self._step, step
        self._data += seconds.get("data", 0.0)
        self._busy += total - seconds.get("save", 0.0)
        seconds |= self._device_seconds()
        return {
            "samples_per_second": steps * self._batch_size / total if total else 0.0,
            "data_wait_share": seconds.get("data", 0.0) / total if total else 0.0,
            "step_seconds": total / steps,
            **{f"{phase}_seconds": seconds.get(phase, 0.0) / steps for phase in PHASES},
        }

    def summary(self, step: int, last: dict[str, float], unit: str) -> TrainingSummary:
        """The whole run up to the last line; `last` holds that line's values."""
        steps, seconds = step - self._first, time.perf_counter() - self._began
        return TrainingSummary(
            steps=steps,
            seconds=seconds,
            samples_per_second=steps * self._batch_size / seconds,
            data_wait_share=self._data / self._busy if self._busy else 0.0,
            step_seconds=self._busy / steps if steps else 0.0,
            last=last,
            unit=unit,
        )

    def _device_seconds(self) -> dict[str, float]:
        seconds: dict[str, float] = {}
        if self._events:
            self._events[-1][1].synchronize()
        for (_, start), (phase, end) in pairwise(self._events):
            if phase in ON_DEVICE:
                seconds[phase] = seconds.get(phase, 0.0) + start.elapsed_time(end) / 1000
        self._events = self._events[-1:]
        return seconds
