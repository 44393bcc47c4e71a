"""Progress of long work: a rich bar on a terminal, a line every so often elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class ExtractProgress:
    """Clips done, clips/s, GB written and the time left."""

    def __init__(self, total: int, quiet: bool, *, every_seconds: float = 30.0) -> None:
        self._console = Console(stderr=True)
        self._total, self._quiet, self._every = total, quiet, every_seconds
        self._done = 0
        self._began = self._last = time.monotonic()
        self._bar: Progress | None = None
        if not quiet and self._console.is_terminal:
            self._bar = Progress(
                TextColumn("extract"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._task = self._bar.add_task("extract", total=total, note="")

    def __enter__(self) -> ExtractProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, clips: int, bytes_written: int) -> None:
        self._done += clips
        now = time.monotonic()
        rate = self._done / max(1e-9, now - self._began)
        note = f"{rate:.2f} clips/s  {bytes_written / 1e9:.2f} GB"
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, note=note)
        elif not self._quiet and (now - self._last >= self._every or self._done >= self._total):
            self._last = now
            left = (self._total - self._done) / rate
            self._console.print(
                f"extract: {self._done}/{self._total} clips  {note}  {left:.0f} s left", highlight=False
            )
