"""What a run writes while it trains: `metrics.jsonl`, and TensorBoard."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from mvd_offline.shards.atomic import publish_bytes


class Meter:
    """Means since the last line: part of the resume state, so that a resumed run writes the very same lines."""

    def __init__(self, sums: dict[str, float] | None = None, count: int = 0) -> None:
        self.sums: dict[str, float] = dict(sums or {})
        self.count = count

    def add(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1

    def take(self) -> dict[str, float]:
        means = {name: total / self.count for name, total in self.sums.items()} if self.count else {}
        self.sums, self.count = {}, 0
        return means


class Stopwatch:
    """Wall-clock seconds by phase since the last line."""

    def __init__(self, seconds: dict[str, float] | None = None) -> None:
        """`seconds` is added to, if it is given."""
        self.seconds: dict[str, float] = {} if seconds is None else seconds
        self._mark = time.perf_counter()

    def lap(self, phase: str) -> float:
        """Attribute the time since the last call to `phase`; returns it."""
        now = time.perf_counter()
        passed, self._mark = now - self._mark, now
        self.seconds[phase] = self.seconds.get(phase, 0.0) + passed
        return passed

    def skip(self) -> float:
        """Attribute the time since the last call to nothing; returns it."""
        now = time.perf_counter()
        passed, self._mark = now - self._mark, now
        return passed

    def take(self) -> dict[str, float]:
        seconds, self.seconds = self.seconds, {}
        return seconds


class MetricsWriter:
    """Appends one JSON object a line to `metrics.jsonl`, and the same numbers to TensorBoard.

    Lines after `resume_step` come from work that a crash lost; they are cut off, since it is done again.
    Everything that depends on the machine is under the key `time`.
    """

    def __init__(self, folder: Path, *, resume_step: int, tensorboard: bool, enabled: bool = True) -> None:
        """`enabled` is False on the processes that do not write."""
        self._path = folder / "metrics.jsonl"
        self._file: TextIO | None = None
        self._board: Any = None
        if not enabled:
            return
        self._cut_after(resume_step)
        self._file = self._path.open("a", encoding="utf-8")
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=resume_step + 1)

    def _cut_after(self, step: int) -> None:
        if not self._path.exists():
            return
        kept = []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                break  # the torn last line of a killed run
            if record["step"] > step:
                break
            kept.append(line + "\n")
        publish_bytes(self._path, "".join(kept).encode("utf-8"))

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def has(self, step: int, prefix: str) -> bool:
        """Whether a line of this step holds a value whose name begins so."""
        lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else []
        records = (json.loads(line) for line in lines)
        return any(record["step"] == step and any(key.startswith(prefix) for key in record) for record in records)

    def write(self, record: dict[str, Any]) -> None:
        if self._file is None:
            return
        # JSON has no infinity, which a gradient's norm is while fp16 looks for its scale.
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        self._file.write(json.dumps(plain, allow_nan=False) + "\n")
        self._file.flush()
        if self._board is not None:
            flat = {**{k: v for k, v in record.items() if k != "time"}, **record.get("time", {})}
            for name, value in flat.items():
                if name != "step" and isinstance(value, int | float) and math.isfinite(value):
                    self._board.add_scalar(name, value, record["step"])

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()
