"""The lines of a run's `metrics.jsonl` as series over steps, epochs and hours."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

from mvd_offline.training.run import METRICS_FILE

PROBE: Final = "probe/"
"""What the names of a probe's values begin with."""
PHASES: Final = ("data", "transfer", "forward", "backward", "optimizer", "save")

XAxis = Literal["step", "epoch", "hours"]


@dataclass(frozen=True)
class Series:
    """The values of one name; NaN where a line has none that is finite."""

    name: str
    step: tuple[int, ...]
    epoch: tuple[float, ...]
    hours: tuple[float, ...]
    values: tuple[float, ...]

    def over(self, axis: XAxis) -> tuple[float, ...]:
        """Where each value lies on an axis."""
        return {"step": self.step, "epoch": self.epoch, "hours": self.hours}[axis]

    @property
    def last(self) -> float | None:
        return next((value for value in reversed(self.values) if not math.isnan(value)), None)


@dataclass(frozen=True)
class Line:
    """A line: `values` are of the training (or of a probe), `time` what depended on the machine.

    Attributes:
        epoch: epochs done, with a fraction.
        hours: of training up to here. Steps that a kill lost are not in it.
    """

    step: int
    epoch: float
    hours: float
    values: Mapping[str, float]
    time: Mapping[str, float]


@dataclass(frozen=True)
class Metrics:
    """All lines of a run, in order."""

    lines: tuple[Line, ...]

    @classmethod
    def read(cls, run: Path) -> Metrics:
        """Those of a run's file; none where it has not begun, and without a last line that is being written."""
        path = run / METRICS_FILE
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        return cls.of(list(_records(text)))

    @classmethod
    def of(cls, records: Sequence[Mapping[str, Any]]) -> Metrics:
        """Of the parsed lines."""
        lines, before, hours = [], 0, 0.0
        for record in records:
            time = _numbers(record.get("time", {}))
            if "step_seconds" in time:
                hours += (record["step"] - before) * time["step_seconds"] / 3600
                before = record["step"]
            values = _numbers({key: value for key, value in record.items() if key not in ("step", "epoch", "time")})
            lines.append(Line(record["step"], float(record["epoch"]), hours, values, time))
        return cls(tuple(lines))

    @cached_property
    def training(self) -> tuple[Line, ...]:
        """Lines of the training itself, not of what looks at it between two steps."""
        return tuple(line for line in self.lines if "step_seconds" in line.time)

    @property
    def last_step(self) -> int:
        return self.training[-1].step if self.training else 0

    def names(self, *prefixes: str) -> list[str]:
        """Names that values have, in the order of their first appearance; of those that begin so."""
        found = dict.fromkeys(name for line in self.lines for name in line.values)
        return [name for name in found if name.startswith(prefixes or "")]

    def series(self, name: str) -> Series:
        """A value of the training or of a probe, or what lines call so under `time`."""
        lines = [line for line in self.lines if name in line.values or name in line.time]
        return Series(
            name,
            tuple(line.step for line in lines),
            tuple(line.epoch for line in lines),
            tuple(line.hours for line in lines),
            tuple(line.values.get(name, line.time.get(name, math.nan)) for line in lines),
        )

    def phase_seconds(self) -> dict[str, float]:
        """Mean seconds of a step by phase, over the whole run; on a GPU they do not add up to a step's seconds."""
        total, before = dict.fromkeys(PHASES, 0.0), 0
        for line in self.training:
            for phase in PHASES:
                total[phase] += line.time.get(f"{phase}_seconds", 0.0) * (line.step - before)
            before = line.step
        return {phase: seconds / before for phase, seconds in total.items()} if before else {}

    def step_seconds(self) -> float | None:
        """Mean wall-clock seconds of a step, saving included."""
        return self.training[-1].hours * 3600 / self.last_step if self.last_step else None


def smoothed(values: Sequence[float], weight: float) -> list[float]:
    """Exponential moving average, as TensorBoard's: `weight` of what was, corrected for its start; NaN is passed over.

    >>> smoothed([1.0, 3.0], 0.5)
    [1.0, 2.3333333333333335]
    """
    found, average, seen = [], 0.0, 0
    for value in values:
        if not math.isnan(value):
            average, seen = weight * average + (1.0 - weight) * value, seen + 1
        found.append(average / (1.0 - weight**seen) if seen else math.nan)
    return found


def _records(text: str) -> Iterable[dict[str, Any]]:
    for line in text.splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return  # the torn last line of a killed run, or of one that is writing it


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: math.nan if value is None else float(value) for name, value in values.items()}
