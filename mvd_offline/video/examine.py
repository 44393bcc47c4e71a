"""Files examined in processes that a broken video can hang or crash without harm: they are killed and replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from mvd_offline.errors import VideoError
from mvd_offline.video.decode import VideoInfo, clean_reason
from mvd_offline.video.files import file_sha256
from mvd_offline.video.workers import DecodePool

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
    running: dict[Future[Examined], int] = {}
    upcoming = iter(enumerate(paths))
    with DecodePool(min(workers, len(paths)), timeout_seconds) as pool:
        while True:
            while len(running) < 4 * workers and (entry := next(upcoming, None)):
                running[pool.submit(_examine, entry[1], probe)] = entry[0]
            if not running:
                break
            for future in pool.wait(running):
                position = running.pop(future)
                try:
                    examined = pool.result(future, paths[position])
                except VideoError as error:
                    examined = Examined(error.status, detail=error.reason)
                yield position, examined


def _examine(path: Path, probe: Probe) -> Examined:
    try:
        return Examined("ok", probe(path), sha256=file_sha256(path))
    except VideoError as error:
        return Examined(error.status, detail=error.reason)
    except Exception as error:
        # Decoders raise many things on broken files; none of them is worth the other files of the scan.
        return Examined("unreadable", detail=f"unexpected {type(error).__name__}: {clean_reason(str(error), path)}")
