"""The machine itself: disk, locks, open files, shared memory, cores and memory."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import shutil
import struct
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

from mvd_offline.doctor.findings import Finding, guarded

SHARED_MEMORY = Path("/dev/shm")

_LITTLE_DISK: Final = 50e9
_LITTLE_TEMPORARY: Final = 1e9
_BATCH_BYTES: Final = 32 * 12e6
"""A micro-batch of 32 clips of 16 x 224 x 224 with two float16 targets, rounded up: what a loader process sends."""
_BATCHES_AHEAD: Final = 2


def findings(store: Path, workers: int) -> list[Finding]:
    folder = nearest(store)
    named = str(folder) if folder == store.absolute() else f"{store} (to be made in {folder})"
    return [
        *guarded("disk", partial(_disk, folder, named), "missing", "Give another folder as --store."),
        *guarded("locks", partial(_locks, folder), "missing", "Keep stores on a file system with locks."),
        *guarded("temporary files", _temporary, "missing", "Set TMPDIR to a folder that can be written."),
        *guarded("open files", partial(_open_files, workers), "warning", ""),
        *guarded("shared memory", partial(_shared_memory, workers), "warning", ""),
        *guarded("cores", partial(_cores, workers), "warning", ""),
        *guarded("memory", _memory, "warning", ""),
    ]


def nearest(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.is_dir())


def _disk(folder: Path, named: str) -> Iterator[Finding]:
    if not os.access(folder, os.W_OK | os.X_OK):
        yield Finding("disk", "missing", f"{named} cannot be written", "Give another folder as --store, or its rights.")
        return
    free = shutil.disk_usage(folder).free
    words = f"{free / 1e9:,.0f} GB free in {named}"
    if free < _LITTLE_DISK:
        do = "Enough for the demo; `mvd-offline plan` says what a store takes (Kinetics-400, ViT-L: 1.5 TB in float16)."
        yield Finding("disk", "warning", words, do)
    else:
        yield Finding("disk", "ok", words)
    left = os.statvfs(folder)
    if left.f_files and left.f_favail < 100_000:
        yield Finding("disk", "warning", f"room for {left.f_favail:,} more files only", "Use a disk with more inodes.")


def _locks(folder: Path) -> Iterator[Finding]:
    """Two descriptors of one file: the second must not get the lock that the first has, as in a store's claims."""
    with (
        tempfile.NamedTemporaryFile(dir=folder, prefix=".mvd-offline-doctor-") as first,
        open(first.name, "r+b") as second,
    ):
        request = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
        fcntl.fcntl(first.fileno(), fcntl.F_OFD_SETLK, request)
        try:
            fcntl.fcntl(second.fileno(), fcntl.F_OFD_SETLK, request)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            yield Finding("locks", "ok", f"files in {folder} can be locked")
            return
    do = "Keep stores elsewhere, or mount this file system with locks: two runs could harm each other here."
    yield Finding("locks", "missing", f"{folder} gives one lock to two openings of a file", do)


def _temporary() -> Iterator[Finding]:
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    words = f"{free / 1e9:,.1f} GB free in {folder}"
    if free < _LITTLE_TEMPORARY:
        yield Finding("temporary files", "warning", words, "Set TMPDIR to a folder with more room.")
    else:
        yield Finding("temporary files", "ok", words)


def _open_files(workers: int) -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 512 + 64 * workers
    words = f"{_number(soft)} at once (at most {_number(hard)})"
    if soft != resource.RLIM_INFINITY and soft < wanted:
        do = f"ulimit -n {4096 if hard == resource.RLIM_INFINITY else min(hard, 4096)} before a training of {workers} "
        yield Finding("open files", "warning", words, f"{do}loader processes.")
    else:
        yield Finding("open files", "ok", words)


def _number(limit: int) -> str:
    return "any number" if limit == resource.RLIM_INFINITY else f"{limit:,}"


def _shared_memory(workers: int) -> Iterator[Finding]:
    folder = SHARED_MEMORY
    if not folder.is_dir():
        yield Finding("shared memory", "ok", f"this system keeps none in {folder}")
        return
    free, wanted = shutil.disk_usage(folder).free, workers * _BATCHES_AHEAD * _BATCH_BYTES
    words = f"{free / 1e9:.1f} GB free in {folder}; {workers} loader processes at full size hold up to "
    words += f"{wanted / 1e9:.1f} GB"
    if free < wanted:
        do = "Give a container more (docker run --shm-size=16g), or lower training.workers or prefetch_batches."
        yield Finding("shared memory", "warning", words, do)
    else:
        yield Finding("shared memory", "ok", words)


def _cores(workers: int) -> Iterator[Finding]:
    from mvd_offline.extraction.rates import available_cores

    usable, there = available_cores(), os.cpu_count() or 1
    words = f"{usable} usable" + (f" of {there} (affinity or control group)" if usable < there else "")
    if usable < workers:
        do = f"Set training.workers to {usable} or less: every loader process keeps one core busy with decoding."
        yield Finding("cores", "warning", words, do)
    else:
        yield Finding("cores", "ok", words)


def _memory() -> Iterator[Finding]:
    import psutil

    memory = psutil.virtual_memory()
    total, limit = memory.total, Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text(encoding="ascii").strip() if limit.is_file() else "max"
    if text.isdigit() and int(text) < total:
        words = f"{int(text) / 1e9:.0f} GB, the control group's limit, of {total / 1e9:.0f} GB"
        total = int(text)
    else:
        words = f"{total / 1e9:.0f} GB, {memory.available / 1e9:.0f} available"
    if total < 8e9:
        yield Finding("memory", "warning", words, "Enough for the demo; full-size runs take 8 GB and more a process.")
    else:
        yield Finding("memory", "ok", words)
