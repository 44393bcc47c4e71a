"""How fast rows are read: this project's store beside plain reads and its peers, in turn, in one run.

Warm: the files are in the system's page cache, the first pass is not counted. Cold: before each pass they are flushed
and dropped from it (fsync, then posix_fadvise DONTNEED); a disk of a virtual machine may have further caches. A byte of
each page of every row is looked at, so that nothing counts as read that was only mapped.
"""

from __future__ import annotations

import gc
import importlib.metadata
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import google_crc32c
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvd_offline.bench.measure import Spread, machine
from mvd_offline.bench.readers import CEILING, PEERS, Reader, installed, open_readers
from mvd_offline.bench.samples import Samples
from mvd_offline.errors import UsageError
from mvd_offline.shards.shardfile import forget_cached_pages
from mvd_offline.training.order import epoch_order

CODECS: Final = ("float16", "int8")
WORKERS: Final = (0, 1, 2, 4)
"""Loader processes; 0 reads in this process, row by row."""
BATCH_ROWS: Final = 8
WINDOW_SHARDS: Final = 4
_PAGE: Final = 4096


@dataclass(frozen=True)
class Reading:
    """One reader under one condition."""

    reader: str
    checked: bool
    codec: str
    cache: str
    workers: int
    rows_per_second: Spread
    gigabytes_per_second: Spread
    """Of payload, 10^9 bytes."""
    of_ceiling: Spread
    """Its speed over that of `np.fromfile` under the same condition, pass by pass."""


@dataclass(frozen=True)
class ReadTimes:
    rows: int
    row_bytes: dict[str, int]
    repeats: int
    readings: tuple[Reading, ...]
    absent: tuple[str, ...]
    """Peers that are not installed."""
    machine: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def time_reads(
    *,
    rows: int,
    repeats: int,
    folder: Path | None = None,
    workers: Sequence[int] = WORKERS,
    threads: int = 1,
    shape: tuple[int, int] = (1568, 1024),
    say: Callable[[str], None],
) -> ReadTimes:
    """Write the samples below `folder` (which decides the disk), read them, and remove them.

    Args:
        rows: of each codec; 15 MB of disk each with all peers.
        repeats: counted passes of each reader under each condition.
        workers: numbers of loader processes to try.
        threads: of torch and zarr, here and in the loader processes.
        shape: tokens and channels of a row.
        say: told what is being done.

    Raises:
        UsageError: too few rows to read in batches from every loader process.
    """
    least = 2 * BATCH_ROWS * max(*workers, 1)
    if rows < least:
        raise UsageError(f"{rows} rows are too few; {max(workers)} loader processes need at least {least}")
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    _set_threads(threads)
    readings: list[Reading] = []
    row_bytes = {}
    with tempfile.TemporaryDirectory(prefix="bench-read-", dir=folder) as made, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        for codec in CODECS:
            say(f"{codec}: writing {rows} rows in every form")
            samples = Samples.draw(Path(made), codec, rows=rows, tokens=shape[0], width=shape[1])
            row_bytes[codec] = samples.row_bytes
            readers = open_readers(samples, tokens=shape[0], width=shape[1])
            _check(readers, samples)
            for count in workers:
                readings += _read(readers, samples, count, repeats, say)
                gc.collect()  # ends loaders that refer to themselves, before others fork from this process
    return ReadTimes(
        rows=rows,
        row_bytes=row_bytes,
        repeats=repeats,
        readings=tuple(readings),
        absent=tuple(peer for peer in PEERS if not installed(peer)),
        machine={**machine(), **_versions()},
    )


def _read(
    readers: Sequence[Reader], samples: Samples, workers: int, repeats: int, say: Callable[[str], None]
) -> list[Reading]:
    """All readers with this many loader processes, warm and cold."""
    order = _order(samples)
    batches = [order[start : start + BATCH_ROWS] for start in range(0, len(order), BATCH_ROWS)]
    passes: dict[str, Callable[[], Iterable[Any]]] = {}
    for reader in readers:
        if workers:
            passes[reader.name] = partial(iter, reader.loader(batches, workers))
        else:
            passes[reader.name] = partial(reader.rows, order)
    readings = []
    for cache in ("warm", "cold"):
        say(f"{samples.codec}: {cache}, loader processes: {workers}")
        speeds: dict[str, list[float]] = {reader.name: [] for reader in readers}
        for repeat in range(repeats + (cache == "warm")):
            for reader in readers:
                if cache == "cold":
                    _drop_from_cache(reader.files)
                speed = _rows_per_second(passes[reader.name], len(order))
                if cache == "cold" or repeat:
                    speeds[reader.name].append(speed)
        readings += [_reading(reader, samples, cache, workers, speeds) for reader in readers]
    return readings


def _reading(reader: Reader, samples: Samples, cache: str, workers: int, speeds: dict[str, list[float]]) -> Reading:
    mine = speeds[reader.name]
    return Reading(
        reader=reader.name,
        checked=reader.checked,
        codec=samples.codec,
        cache=cache,
        workers=workers,
        rows_per_second=Spread.of(mine),
        gigabytes_per_second=Spread.of([speed * samples.row_bytes / 1e9 for speed in mine]),
        of_ceiling=Spread.of([one / other for one, other in zip(mine, speeds[CEILING], strict=True)]),
    )


def _order(samples: Samples) -> list[int]:
    """Every row once, shuffled in windows of shards as training shuffles them."""
    numbers = np.arange(samples.rows, dtype=np.int64)
    shards = np.split(numbers, range(samples.rows_per_shard, samples.rows, samples.rows_per_shard))
    return epoch_order(shards, source="bench", seed=0, epoch=0, window=WINDOW_SHARDS).tolist()


def _rows_per_second(begin: Callable[[], Iterable[Any]], expected: int) -> float:
    """The speed of one pass over all rows, which must all come."""
    began = time.perf_counter()
    seen = 0
    for item in begin():
        if isinstance(item, Tensor):
            seen += len(item)
            _look_at(item.numpy())
        else:
            seen += 1
            _look_at(item)
    seconds = time.perf_counter() - began
    assert seen == expected, f"{seen} of {expected} rows"
    return seen / seconds


def _look_at(values: NDArray[Any]) -> None:
    values.reshape(-1).view(np.uint8)[::_PAGE].sum()


def _drop_from_cache(files: Sequence[Path]) -> None:
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        forget_cached_pages(path)


def _check(readers: Sequence[Reader], samples: Samples) -> None:
    """Every reader gives the rows that were written."""
    for reader in readers:
        for number, row in zip(range(3), reader.rows(range(3)), strict=False):
            assert np.array_equal(row, samples.row(number)), f"{reader.name} reads other values in row {number}"


def _versions() -> dict[str, Any]:
    """Releases of what is compared, and whether the checksum is compiled code."""
    names = ("numpy", "zarr", "webdataset", *(peer for peer in PEERS if installed(peer)))
    return {**{name: importlib.metadata.version(name) for name in names}, "crc32c": google_crc32c.implementation}


def _set_threads(count: int) -> None:
    """Threads of this process and of the loader processes that it forks."""
    import zarr

    torch.set_num_threads(count)
    zarr.config.set({"threading.max_workers": count, "async.concurrency": count})
