"""Progress of long work: a rich bar on a terminal, a line every so often elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def rate_in_words(per_second: float, unit: str) -> str:
    """A rate with three significant digits, and all digits before the point.

    >>> rate_in_words(0.04194, "videos"), rate_in_words(1234.5, "clips")
    ('0.0419 videos/s', '1,234 clips/s')
    """
    digits = f"{per_second:,.0f}" if per_second >= 999.5 else f"{per_second:.3g}"
    return f"{digits} {unit}/s"


class WorkProgress:
    """How much of the work is done, with a note such as a rate, and the time left.

    >>> with WorkProgress("extract", total=64, unit="clips") as progress:   # doctest: +SKIP
    ...     progress.reach(8, "1.3 clips/s  0.02 GB")
    """

    def __init__(
        self,
        title: str,
        total: int | None,
        *,
        unit: str,
        done: int = 0,
        enabled: bool = True,
        every_seconds: float = 30.0,
    ) -> None:
        """`total` may be None until `reach` tells it; `done` was finished before; a run reports on one process."""
        self._console = Console(stderr=True)
        self._title, self._total, self._unit, self._first = title, total, unit, done
        self._enabled, self._every = enabled, every_seconds
        self._began = self._last = time.monotonic()
        self._bar: Progress | None = None
        if enabled and self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._task = self._bar.add_task(title, total=total, completed=done, note="")

    def __enter__(self) -> WorkProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def reach(self, done: int, note: str | None = None, *, total: int | None = None) -> None:
        """`done` units are finished; without a note a terminal's bar moves and nothing is printed elsewhere."""
        self._total = self._total if total is None else total
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=self._total)
            if note is not None:
                self._bar.update(self._task, note=note)
        elif self._enabled and note is not None and self._total is not None:
            self._print(done, self._total, note)

    def say(self, line: str) -> None:
        """A line of its own, at once."""
        if self._enabled:
            self._console.print(f"{self._title}: {line}", highlight=False, markup=False, soft_wrap=True)

    def _print(self, done: int, total: int, note: str) -> None:
        now = time.monotonic()
        if now - self._last < self._every and done < total:
            return
        self._last = now
        left = (now - self._began) * (total - done) / max(1, done - self._first)
        said = "  ".join(part for part in (f"{done}/{total} {self._unit}".strip(), note, f"{left:.0f} s left") if part)
        self._console.print(f"{self._title}: {said}", highlight=False)
