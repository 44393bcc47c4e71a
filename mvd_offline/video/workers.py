"""Processes that a broken video can hang or crash without harm: they are timed out, killed and replaced."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack
from multiprocessing import get_context, parent_process
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from pebble import ProcessExpired, ProcessPool

from mvd_offline.errors import VideoError
from mvd_offline.video.interrupts import HeldInterrupt

T = TypeVar("T")

# How long Ctrl-C may wait while nothing comes back from the processes.
INTERRUPT_POLL_SECONDS = 0.1


class DecodePool:
    """`workers` processes; a task that takes longer than `timeout_seconds` loses its process, and others go on.

    While the pool is open Ctrl-C is taken where results are waited for, and nowhere else.
    """

    def __init__(self, workers: int, timeout_seconds: float) -> None:
        self._timeout = timeout_seconds
        self._parts = [_Part(workers)]
        self._interrupt = HeldInterrupt()
        self._open = ExitStack()

    def __enter__(self) -> DecodePool:
        self._open.enter_context(self._interrupt)
        self._open.callback(self._stop)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)

    def _stop(self) -> None:
        for part in self._parts:
            part.pool.stop()
        for part in self._parts:
            part.pool.join()

    @property
    def workers(self) -> int:
        return sum(part.workers for part in self._parts)

    def grow(self, workers: int) -> None:
        """Have so many processes from the next task on; no fewer than there are."""
        if workers > self.workers:
            self._parts.append(_Part(workers - self.workers))

    def submit(self, task: Callable[..., T], *arguments: object) -> Future[T]:
        """Queue a call of a module-level function."""
        part = min(self._parts, key=_Part.load)
        future = part.pool.schedule(task, args=arguments, timeout=self._timeout)
        part.queued.append(future)
        return future

    def wait(self, futures: Iterable[Future[T]]) -> set[Future[T]]:
        """Wait for the first of several futures to be done; returns those that are.

        Raises:
            KeyboardInterrupt: Ctrl-C came since the last call.
        """
        waiting = list(futures)
        while True:
            self._interrupt.check()
            if done := wait(waiting, timeout=INTERRUPT_POLL_SECONDS, return_when=FIRST_COMPLETED).done:
                return done

    def result(self, future: Future[T], path: Path | str) -> T:
        """What the task returned, once it has.

        Raises:
            VideoError: it took too long (status `timeout`), or took its process down (`unreadable`).
        """
        self.wait([future])
        try:
            return future.result()
        except TimeoutError:
            reason = f"decoding took longer than {self._timeout:g} s and was stopped"
            raise VideoError(str(path), reason, status="timeout") from None
        except ProcessExpired as error:
            reason = f"the decoder took its process down ({_exit_name(error.exitcode)})"
            raise VideoError(str(path), reason) from None


class _Part:
    """Processes that were started together: a pool of pebble's cannot grow."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        # Spawned, not forked: decord, torch and a GPU keep threads, and a forked lock stays locked.
        self.pool = ProcessPool(max_workers=workers, initializer=_follow_the_parent, context=get_context("spawn"))
        self.queued: deque[Future[Any]] = deque()

    def load(self) -> float:
        """Tasks in its queue, of one process."""
        while self.queued and self.queued[0].done():
            self.queued.popleft()
        return len(self.queued) / self.workers


def _exit_name(code: int | None) -> str:
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}"


def _follow_the_parent() -> None:
    """What every process does first: leave Ctrl-C to the parent, and end when the parent does."""
    # Ctrl-C reaches the whole process group; the parent alone decides what to do.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A killed parent can stop nobody, least of all a process whose decoder hangs.
    threading.Thread(target=_end_with_the_parent, name="end-with-the-parent", daemon=True).start()


def _end_with_the_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
