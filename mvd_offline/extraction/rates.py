"""What a view costs an extraction, measured as it runs: it decides how many processes decode."""

from __future__ import annotations

import math
import os
import statistics
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

HEADROOM: Final = 1.25
"""How much faster than the teachers the decode processes should be: clips differ, and the teachers must not wait."""
WINDOW: Final = 16
"""Batches that a rate is the median of: what came before may have been other videos, or another load."""

_recent: Final[Callable[[], deque[float]]] = partial(deque[float], maxlen=WINDOW)


@dataclass
class Rates:
    """Seconds of one view, batch by batch; medians of the last batches."""

    decode_workers: int = 0
    """Processes that decode now."""
    _decode: deque[float] = field(default_factory=_recent)
    _teachers: dict[str, deque[float]] = field(default_factory=dict)
    _cold: set[str] = field(default_factory=set)
    _waits: deque[float] = field(default_factory=_recent)
    _writing_seconds: float = 0.0
    _written: int = 0

    # ---- what is measured --------------------------------------------------------------------------------------------

    def decoded(self, seconds: float) -> None:
        """A process decoded and cropped the views of a batch; `seconds` of one view, the median of the batch."""
        self._decode.append(seconds)

    def ran(self, column: str, seconds: float) -> None:
        """A teacher saw a batch, which was coded then; `seconds` of one clip."""
        recent = self._teachers.setdefault(column, _recent())
        if column in self._cold:
            # The first batch takes longer than any other: memory is allocated, kernels are chosen.
            recent.clear()
            self._cold.discard(column)
        elif not recent:
            self._cold.add(column)
        recent.append(seconds)

    def waited(self, seconds: float) -> None:
        """Writing held the teachers up; `seconds` of one clip."""
        self._waits.append(seconds)

    def wrote(self, seconds: float, clips: int) -> None:
        """The writing thread was busy with some clips, or with the commit of a shard."""
        self._writing_seconds += seconds
        self._written += clips

    # ---- what follows ------------------------------------------------------------------------------------------------

    @property
    def decode_seconds(self) -> float:
        """Of one view, in one process."""
        return _median(self._decode)

    @property
    def teacher_seconds(self) -> dict[str, float]:
        """Of one clip, by column; forward pass and coding."""
        return {column: _median(recent) for column, recent in sorted(self._teachers.items())}

    @property
    def writing_seconds(self) -> float:
        """Of one clip in all columns, in the writing thread."""
        return self._writing_seconds / self._written if self._written else 0.0

    def workers_wanted(self, most: int) -> int:
        """The fewest processes whose decoding keeps up with what comes after it; at least as many as there are."""
        if not self._decode:
            return self.decode_workers
        after = sum(self.teacher_seconds.values()) + _median(self._waits)
        wanted = math.ceil(HEADROOM * self.decode_seconds / after) if after else most
        return max(self.decode_workers, min(wanted, most))

    def in_words(self) -> str:
        """What was measured, in a line."""
        teachers = sum(self.teacher_seconds.values())
        return (
            f"a decode process takes {1000 * self.decode_seconds:.3g} ms a view, the teachers {1000 * teachers:.3g} ms"
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "decode_workers": self.decode_workers,
            "decode_seconds": self.decode_seconds,
            "teacher_seconds": self.teacher_seconds,
            "writing_seconds": self.writing_seconds,
        }


def most_decode_workers() -> int:
    """Cores of this machine that one of its launch processes has for decoding."""
    return max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def available_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores that this process may use: those of its affinity, and no more than its control group's share of time."""
    # macOS has no affinity.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not quota.is_file():
        return cores
    limit, _, period = quota.read_text(encoding="ascii").partition(" ")
    return cores if limit == "max" else max(1, min(cores, round(int(limit) / int(period))))


def _median(values: deque[float]) -> float:
    return statistics.median(values) if values else 0.0
