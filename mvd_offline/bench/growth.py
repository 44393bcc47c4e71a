"""What it costs to plan, seal, open, order, resume and load, against the number of rows.

Each part runs in a process of its own (`growth_parts`), so that its memory is that part's alone, on a store without
payload that was made for it (`growth_data`) and is still in the system's page cache.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from mvd_offline.bench.measure import machine
from mvd_offline.errors import MvdError, UsageError

ROWS: Final = (1_000, 10_000, 100_000, 1_000_000)
NEEDS: Final = {
    "plan": None,
    "seal": "make-committed",
    "open": "make-sealed",
    "order": "make-sealed",
    "resume": "make-sealed",
    "load": "make-sealed",
}
"""What must be made before each part."""
PARTS: Final = tuple(NEEDS)


@dataclass(frozen=True)
class Cost:
    """Of one part at one size."""

    part: str
    rows: int
    """Views; the index has two rows for each, one a column."""
    seconds: float
    cpu_seconds: float
    """Of all threads: on a machine that does other things at the same time, the better measure."""
    start_mb: float
    """Memory of the process before the part begins, 10^6 bytes: the interpreter, the libraries, and what is given."""
    peak_mb: float
    """The most memory that the process had."""
    facts: dict[str, Any]
    """What was done, such as the hash of what was written."""


@dataclass(frozen=True)
class Growth:
    costs: tuple[Cost, ...]
    machine: dict[str, Any]

    def of(self, part: str) -> list[Cost]:
        """The costs of one part, by ascending rows."""
        return sorted((cost for cost in self.costs if cost.part == part), key=lambda cost: cost.rows)

    def exponents(self, part: str) -> list[tuple[float | None, float | None]]:
        """k of each size, when time and memory grow with rows^k from the size before it: None for the first size.

        Time is the processor's. Memory is what is added to `start_mb`; None where that is less than a megabyte, which
        is chance.
        """
        found: list[tuple[float | None, float | None]] = [(None, None)]
        for less, more in pairwise(self.of(part)):
            ratio = more.rows / less.rows
            added = [cost.peak_mb - cost.start_mb for cost in (less, more)]
            memory = math.log(added[1] / added[0], ratio) if min(added) >= 1 else None
            found.append((math.log(more.cpu_seconds / less.cpu_seconds, ratio), memory))
        return found

    def lines(self) -> Iterator[tuple[Cost, float | None, float | None]]:
        """Every cost with its exponents, part by part."""
        for part in PARTS:
            for cost, (time, memory) in zip(self.of(part), self.exponents(part), strict=False):
                yield cost, time, memory

    def to_json(self) -> dict[str, Any]:
        lines = [
            {**asdict(cost), "time_exponent": time, "memory_exponent": memory} for cost, time, memory in self.lines()
        ]
        return {"costs": lines, "machine": self.machine}


def measure_growth(
    rows: Sequence[int], parts: Sequence[str] = PARTS, *, folder: Path | None = None, say: Callable[[str], None]
) -> Growth:
    """Measure each part at each size.

    Args:
        folder: where stores are made, and removed again; decides the disk. 10^7 rows take 1 GB, to seal them 10 GB.
        say: told what is being done.

    Raises:
        UsageError: a part that there is none, or a size below 1000, whose steps could not be told apart.
    """
    if unknown := [part for part in parts if part not in PARTS]:
        raise UsageError(f"there is no part {', '.join(unknown)}; choose of {', '.join(PARTS)}")
    if not rows or min(rows) < ROWS[0]:
        raise UsageError(f"rows are {', '.join(map(str, rows)) or 'none'}; give numbers from {ROWS[0]} on")
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    costs = []
    for count in sorted(set(rows)):
        with tempfile.TemporaryDirectory(prefix="bench-growth-", dir=folder) as made:
            for need in sorted({need for part in parts if (need := NEEDS[part])}):
                say(f"{count} rows: {need}")
                _run(need, Path(made), count)
            for part in (part for part in PARTS if part in parts):
                say(f"{count} rows: {part}")
                costs.append(_run(part, Path(made), count))
    return Growth(tuple(costs), machine())


def _run(part: str, folder: Path, rows: int) -> Cost:
    """One part in a process of its own."""
    command = [sys.executable, "-m", "mvd_offline.bench.growth_parts", part, str(folder), str(rows)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MvdError(
            f"bench growth: {part} at {rows} rows ended with status {done.returncode} (negative: a signal; -9 may mean "
            f"that memory ran out): {done.stderr.strip() or 'it said nothing'}"
        )
    return Cost(part=part, rows=rows, **json.loads(done.stdout))
