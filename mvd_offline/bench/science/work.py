"""Parts of a long benchmark: done once, written down, shared out to processes."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, TypeAlias

from mvd_offline.shards.atomic import publish_bytes

PARTS = "parts"
LOG_FILE = "log.txt"


def part(out: Path, name: str, job: Callable[[], dict[str, Any] | None]) -> dict[str, Any]:
    """What `job` gives, and its `seconds`; a part that is done already is read, not done again.

    The part is the file `out/parts/NAME.json`. A job that was interrupted is called again; the package's jobs go on
    where they were.
    """
    path = out / PARTS / f"{name}.json"
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    began = time.perf_counter()
    result = {**(job() or {}), "seconds": round(time.perf_counter() - began, 2)}
    path.parent.mkdir(parents=True, exist_ok=True)
    publish_bytes(path, json.dumps(result, indent=1).encode() + b"\n")
    return result


def read_parts(out: Path) -> dict[str, dict[str, Any]]:
    """Every part that is done, by name."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted((out / PARTS).glob("*.json"))}


Job: TypeAlias = tuple[Callable[..., None], tuple[Any, ...]]
"""A function and its arguments."""


class Workers:
    """A few processes that work through jobs; what the jobs print goes to `out/log.txt`."""

    def __init__(self, out: Path, processes: int) -> None:
        self._processes = processes
        threads = max(1, (os.cpu_count() or 1) // processes)
        self._pool = ProcessPoolExecutor(
            processes, mp_context=get_context("spawn"), initializer=_start, initargs=(out / LOG_FILE, threads)
        )

    def each_done(self, jobs: Iterable[Job]) -> Iterator[None]:
        """Runs the jobs and yields whenever one is done.

        Raises:
            what a job raises, once the jobs at work beside it are done; the others are not begun.
        """
        waiting = list(jobs)[::-1]
        running: set[Future[None]] = set()
        while waiting or running:
            # No more than are worked on: what the pool holds in its queue it would still do after an interrupt.
            while waiting and len(running) < self._processes:
                function, arguments = waiting.pop()
                running.add(self._pool.submit(function, *arguments))
            done, running = futures.wait(running, return_when=futures.FIRST_COMPLETED)
            for future in done:
                future.result()
                yield

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)


def _start(log: Path, threads: int) -> None:
    """In each process: its share of the cores, and a log in place of a terminal that several would write to."""
    import torch

    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(descriptor, stream.fileno())
    os.close(descriptor)


def _end_with_parent() -> None:
    """A parent that was killed tells its pool nothing: its processes would wait for work for ever."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
