"""What a disk may hold after power is lost, by what POSIX promises: flushed bytes, flushed folders, and nothing else.

Everything that was not flushed may have reached the disk or not, each change of a name by itself; bytes that were not
flushed are there as a whole or not at all.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from file_calls import Call

FOLDER = b"<folder>"


@dataclass(frozen=True)
class State:
    """Folders and files of a disk, by path below the root; `.` is the root itself."""

    folders: tuple[str, ...]
    files: tuple[tuple[str, bytes], ...]

    def write(self, root: Path) -> None:
        for name in self.folders:
            (root / name).mkdir(parents=True)
        for name, data in self.files:
            (root / name).write_bytes(data)


class _File:
    """A file's bytes, now and as far as they were flushed."""

    def __init__(self, data: bytes = b"") -> None:
        self.data = self.flushed = data


@dataclass(frozen=True)
class _Change:
    """Changes of names in one folder that come together: path to what it names, None for a removal."""

    folder: str
    names: tuple[tuple[str, _File | bytes | None], ...]


class _Disk:
    def __init__(self, files: Mapping[str, bytes], folders: Iterable[str]) -> None:
        self.names: dict[str, _File | bytes] = {name: _File(data) for name, data in files.items()}
        self.names |= dict.fromkeys(folders, FOLDER)
        self.flushed = dict(self.names)
        self.pending: list[_Change] = []

    def do(self, operation: str, path: str, target: str, data: bytes) -> None:
        if operation == "create":
            self._change((path, _File()))
        elif operation == "mkdir":
            if path in self.names or os.path.dirname(path) not in {*self._folders(), ""}:
                return  # it failed: it is there already, or what it should be in is not
            self._change((path, FOLDER))
        elif operation == "rename":
            self._change((target, self.names[path]), (path, None))
        elif operation in ("unlink", "rmdir"):
            if path in self.names:
                self._change((path, None))
        elif operation == "write":
            self._file(path).data += data
        elif operation == "fsync":
            self._flush(path)

    def _folders(self) -> list[str]:
        return [name for name, what in self.names.items() if what is FOLDER]

    def _file(self, path: str) -> _File:
        found = self.names[path]
        assert isinstance(found, _File)
        return found

    def _change(self, *names: tuple[str, _File | bytes | None]) -> None:
        change = _Change(os.path.dirname(names[0][0]) or ".", names)
        self.pending.append(change)
        _apply(self.names, change)

    def _flush(self, path: str) -> None:
        if self.names.get(path, FOLDER) is not FOLDER:
            self._file(path).flushed = self._file(path).data
            return
        for change in [change for change in self.pending if change.folder == path]:
            _apply(self.flushed, change)
            self.pending.remove(change)

    def states(self) -> Iterable[State]:
        for kept in itertools.product((False, True), repeat=len(self.pending)):
            names = dict(self.flushed)
            for change in itertools.compress(self.pending, kept):
                _apply(names, change)
            for bytes_too in (False, True):
                yield _state(names, bytes_too)


def _apply(names: dict[str, _File | bytes], change: _Change) -> None:
    for path, what in change.names:
        if what is None:
            names.pop(path, None)
        else:
            names[path] = what


def _state(names: Mapping[str, _File | bytes], bytes_too: bool) -> State:
    """What can be reached by its path."""
    folders = {"."} if "." in names else set()
    for name in sorted(name for name, what in names.items() if what is FOLDER and name != "."):
        if (os.path.dirname(name) or ".") in folders:
            folders.add(name)
    files = {
        name: what.data if bytes_too else what.flushed
        for name, what in names.items()
        if isinstance(what, _File) and (os.path.dirname(name) or ".") in folders
    }
    return State(tuple(sorted(folders)), tuple(sorted(files.items())))


def states_after_power_loss(
    calls: Sequence[Call], root: str, files: Mapping[str, bytes], folders: Iterable[str]
) -> list[State]:
    """Every different state in which the disk may be, when power is lost before, between or after these calls.

    Args:
        files, folders: what is below `root` before the first call, safely on the disk.
    """
    base = os.path.realpath(root)
    disk = _Disk(files, [*folders, *["."] * bool(files)])
    found: dict[State, None] = dict.fromkeys(disk.states())
    for call in calls:
        path, target = (os.path.relpath(name, base) if name else "" for name in (call.path, call.target))
        disk.do(call.operation, path, target, call.data)
        found.update(dict.fromkeys(disk.states()))
    return list(found)
