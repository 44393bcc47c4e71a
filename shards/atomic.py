"""Files that appear whole or not at all.

A file is written under a hidden temporary name in its target folder, flushed to disk, renamed, and the folder flushed.
The writer holds an advisory lock on the temporary file for as long as it lives; a temporary file whose lock is free
belongs to a dead process and may be removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

TEMPORARY_PREFIX = ".tmp-"


class TemporaryFile:
    """An open, locked temporary file beside its target; use through `temporary_file`.

    An OSError of any of its operations names the target.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        with _naming(target):
            self.path, descriptor = _create_locked(target)
        self.stream: BinaryIO = io.BufferedWriter(_NamedFile(descriptor, target))
        self._published = False

    def flush_to_disk(self) -> None:
        """After this the bytes written so far survive a power cut."""
        with _naming(self.target):
            self.stream.flush()
            os.fsync(self.stream.fileno())

    def publish(self) -> None:
        """Rename onto the target and flush the folder; what was there before is replaced."""
        self.flush_to_disk()
        with _naming(self.target):
            os.rename(self.path, self.target)
            self._published = True
            sync_folder(self.target.parent)

    def close(self) -> None:
        """Give up what is not published, and release the lock."""
        # An error is on its way already if one of these fails: a disk that is full refuses the last bytes once more,
        # and what cannot be removed now looks abandoned from here on.
        with contextlib.suppress(OSError):
            if not self._published:
                # Before the lock is released by closing, so that the name never looks abandoned.
                self.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.stream.close()


class _NamedFile(io.FileIO):
    """Says which file could not be written; the system's own error does not."""

    def __init__(self, descriptor: int, target: Path) -> None:
        super().__init__(descriptor, "wb")
        self._target = target

    def write(self, data: Any) -> int:
        with _naming(self._target):
            return os.write(self.fileno(), data)


@contextlib.contextmanager
def temporary_file(target: Path) -> Iterator[TemporaryFile]:
    """A temporary file for `target`; without a call of `publish` nothing is left behind."""
    temporary = TemporaryFile(target)
    try:
        yield temporary
    finally:
        temporary.close()


def publish_bytes(target: Path, data: bytes | memoryview) -> None:
    """Write a whole file atomically and durably."""
    with temporary_file(target) as temporary:
        temporary.stream.write(data)
        temporary.publish()


def sync_folder(folder: Path) -> None:
    """Make renames and removals inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with _naming(folder):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder durably, and those above it; one that exists is fine."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def rename_file(source: Path, target: Path) -> None:
    """Give a file another name in its folder, durably; what had that name is replaced."""
    with _naming(target):
        os.rename(source, target)
        sync_folder(target.parent)


def remove_file(path: Path) -> None:
    """Remove a file durably; one that does not exist is fine."""
    path.unlink(missing_ok=True)
    # Also when it is gone: who removed it may have been killed before this.
    sync_folder(path.parent)


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold a folder against other processes that take the same lock; waits for its turn."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def abandoned_files(folder: Path) -> list[Path]:
    """Temporary files in `folder` whose writer is dead."""
    return [path for path in _temporary_files(folder) if _with_free_lock(path, remove=False)]


def clean_folder(folder: Path) -> list[Path]:
    """Remove the temporary files of dead writers; returns what was removed. Live writers are not harmed."""
    return [path for path in _temporary_files(folder) if _with_free_lock(path, remove=True)]


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors of the system name this path: its own name none for a write, and a temporary file for a rename."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _temporary_files(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{TEMPORARY_PREFIX}*")) if folder.is_dir() else []


def _create_locked(target: Path) -> tuple[Path, int]:
    while True:
        path = target.with_name(f"{TEMPORARY_PREFIX}{target.name}-{secrets.token_hex(4)}")
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        if _try_lock(descriptor) and os.fstat(descriptor).st_nlink:
            return path, descriptor
        # A cleaner took the file in the instant between its creation and its lock: take another name.
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _with_free_lock(path: Path, *, remove: bool) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False  # published or removed meanwhile
    try:
        # Shared: over NFS an exclusive lock needs a file that is open for writing.
        free = _try_lock(descriptor, fcntl.LOCK_SH)
        if free and remove:
            path.unlink(missing_ok=True)
        return free
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
