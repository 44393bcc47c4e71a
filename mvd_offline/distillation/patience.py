"""What a run says while it waits for others."""

from __future__ import annotations

import time
from typing import Final

from rich.console import Console

SAY_SECONDS: Final = 30.0


class Patience:
    """Tells, now and then, how far the others are; and that nothing has moved for long, rather than hang in silence."""

    def __init__(self, waiting: str, patience_seconds: float, *, enabled: bool) -> None:
        """`waiting` says who waits for what; a run of several processes speaks on one."""
        self._waiting, self._patience, self._enabled = waiting, patience_seconds, enabled
        self._count, self._said, self._moved = -1, float("-inf"), time.monotonic()
        self._differing: float | None = None

    @property
    def is_over(self) -> bool:
        """Whether processes have seen different things for too long."""
        return self._differing is not None and time.monotonic() - self._differing > self._patience

    def differ(self, text: str) -> None:
        """Processes see different things at the moment; `text` says which."""
        if self._differing is None:
            self._differing = time.monotonic()
            self._say(f"{self._waiting}: {text}; looking again", self._differing)

    def tell(self, done: int, total: int) -> None:
        """`done` of `total` shards are there, for all processes alike."""
        self._differing, now = None, time.monotonic()
        moved, self._count = done != self._count, done
        if moved:
            self._moved = now
        if moved and now - self._said >= SAY_SECONDS:
            self._say(f"{self._waiting}: {done} of {total} shards are committed", now)
        elif now - max(self._moved, self._said) >= self._patience:
            self._say(
                f"{self._waiting}, and nothing was committed for {now - self._moved:.0f} s ({done} of {total} shards "
                "are): is `mvd-offline extract` at work on it? Ctrl-C ends this run; the same command goes on later",
                now,
            )

    def _say(self, text: str, now: float) -> None:
        self._said = now
        if self._enabled:
            say(text)


def say(text: str) -> None:
    """One line on standard error; above a progress bar, where there is one."""
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"distill: {text}", markup=False)
