"""Files examined in processes that a broken video can hang or crash without harm: they are killed and replaced."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from pebble import ProcessExpired, ProcessPool

from mvd_offline.errors import VideoError
from mvd_offline.video.decode import VideoInfo, clean_reason
from mvd_offline.video.workers import follow_the_parent

Probe = Callable[[Path], VideoInfo]


@dataclass(frozen=True)
class Examined:
    """What examining a file gave: `info` and the file's sha256 if its status is `"ok"`, else a reason in `detail`."""

    status: str
    info: VideoInfo | None = None
    detail: str = ""
    sha256: str = ""


def examine_files(
    paths: Sequence[Path], probe: Probe, *, workers: int, timeout_seconds: float
) -> Iterator[tuple[int, Examined]]:
    """Position in `paths` and result, in the order of completion.

    Args:
        paths: files to examine.
        probe: a module-level function; it runs in another process.
        workers: processes.
        timeout_seconds: a file that takes longer gets the status `"timeout"`.
    """
    if not paths:
        return
    # Spawned, not forked: decord and torch keep threads, and a forked lock stays locked.
    pool = ProcessPool(
        max_workers=min(workers, len(paths)), context=get_context("spawn"), initializer=follow_the_parent
    )
    running: dict[Future[Examined], int] = {}
    upcoming = iter(enumerate(paths))
    try:
        while True:
            while len(running) < 4 * workers and (entry := next(upcoming, None)):
                running[pool.schedule(_examine, args=(entry[1], probe), timeout=timeout_seconds)] = entry[0]
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), _result(future, timeout_seconds)
    finally:
        pool.stop()
        pool.join()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _examine(path: Path, probe: Probe) -> Examined:
    try:
        return Examined("ok", probe(path), sha256=file_sha256(path))
    except VideoError as error:
        return Examined(error.status, detail=error.reason)
    except Exception as error:
        # Decoders raise many things on broken files; none of them is worth the other files of the scan.
        return Examined("unreadable", detail=f"unexpected {type(error).__name__}: {clean_reason(str(error), path)}")


def _result(future: Future[Examined], timeout_seconds: float) -> Examined:
    try:
        return future.result()
    except TimeoutError:
        return Examined("timeout", detail=f"took longer than {timeout_seconds:g} s and was stopped")
    except ProcessExpired as error:
        return Examined("unreadable", detail=f"its decoder crashed ({_exit_name(error.exitcode)})")


def _exit_name(code: int | None) -> str:
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}"
