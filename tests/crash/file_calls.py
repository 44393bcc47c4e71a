"""The file-system calls by which a store is written: recorded, made to fail, or the last thing that a process does.

Also a program: the real command line, with one of its calls struck.

    python tests/crash/file_calls.py ROOT --trace FILE -- extract ROOT --workers 1
    python tests/crash/file_calls.py ROOT --at "rename image/c.2.0.0" --moment before -- extract ROOT --workers 1
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Moment = Literal["before", "half", "after"]


@dataclass(frozen=True)
class Fault:
    """What happens at one call: the process is killed there, or the call fails with `error`."""

    at: int | str
    """Number or text of the call; the first one of that text counts."""
    moment: Moment = "before"
    """When the process is killed; `half`: with half of a write's bytes in the file."""
    error: int = 0
    """errno with which the call fails, instead of a kill."""


@dataclass(frozen=True)
class Call:
    """A call that changes something below the root, as `text`; a temporary file is called by its target and a `~`."""

    text: str
    operation: str = field(repr=False)
    path: str = field(repr=False)
    target: str = field(default="", repr=False)
    data: bytes = field(default=b"", repr=False)


class FileCalls:
    """While it is open: every call of this process that creates, writes, flushes, renames or removes below `root`.

    Replaces functions of `os`, by which all of the store's writing goes; `calls` says what came.
    """

    def __init__(self, root: Path, fault: Fault | None = None) -> None:
        self.calls: list[Call] = []
        self._root, self._fault = os.path.realpath(root), fault
        self._real: dict[str, Callable[..., Any]] = {}

    def __enter__(self) -> FileCalls:
        replaced = ("open", "write", "fsync", "rename", "replace", "unlink", "remove", "mkdir", "rmdir")
        self._real = {name: getattr(os, name) for name in replaced}
        for name in replaced:
            setattr(os, name, getattr(self, f"_{name}"))
        return self

    def __exit__(self, *error: object) -> None:
        for name, function in self._real.items():
            setattr(os, name, function)

    @property
    def texts(self) -> list[str]:
        return [call.text for call in self.calls]

    # ---- the replacements ----------------------------------------------------------------------------------------

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        def call() -> int:
            return self._real["open"](path, flags, mode, dir_fd=dir_fd)

        return self._step("create", self._path(path, dir_fd), call) if flags & os.O_CREAT else call()

    def _write(self, descriptor: int, data: Any) -> int:
        real = self._real["write"]
        return self._step(
            "write",
            self._path(descriptor),
            lambda: real(descriptor, data),
            half=lambda: real(descriptor, memoryview(data)[: len(data) // 2]),
            data=bytes(data),
        )

    def _fsync(self, descriptor: int) -> None:
        self._step("fsync", self._path(descriptor), lambda: self._real["fsync"](descriptor))

    def _rename(self, source: Any, target: Any, **options: Any) -> None:
        self._move("rename", source, target, options)

    def _replace(self, source: Any, target: Any, **options: Any) -> None:
        self._move("replace", source, target, options)

    def _move(self, name: str, source: Any, target: Any, options: dict[str, Any]) -> None:
        old, new = self._path(source, options.get("src_dir_fd")), self._path(target, options.get("dst_dir_fd"))
        self._step("rename", old, lambda: self._real[name](source, target, **options), target=new)

    def _unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._step("unlink", self._path(path, dir_fd), lambda: self._real["unlink"](path, dir_fd=dir_fd))

    _remove = _unlink

    def _mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        self._step("mkdir", self._path(path, dir_fd), lambda: self._real["mkdir"](path, mode, dir_fd=dir_fd))

    def _rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._step("rmdir", self._path(path, dir_fd), lambda: self._real["rmdir"](path, dir_fd=dir_fd))

    # ---- what all of them do -------------------------------------------------------------------------------------

    def _path(self, path: Any, folder: int | None = None) -> str:
        """Absolute path of a path or of an open descriptor."""
        if isinstance(path, int):
            return os.readlink(f"/proc/self/fd/{path}").removesuffix(" (deleted)")
        base = os.getcwd() if folder is None else os.readlink(f"/proc/self/fd/{folder}")
        place = os.path.join(base, os.fsdecode(path))
        return os.path.join(os.path.realpath(os.path.dirname(place)), os.path.basename(place))

    def _name(self, path: str) -> str:
        """Path below the root, without what is random in a temporary file's name."""
        folder, name = os.path.split(os.path.relpath(path, self._root))
        if name.startswith(".tmp-"):
            name = name.removeprefix(".tmp-").rpartition("-")[0] + "~"
        return os.path.join(folder, name)

    def _step(
        self,
        operation: str,
        path: str,
        call: Callable[[], Any],
        *,
        half: Callable[[], Any] | None = None,
        target: str = "",
        data: bytes = b"",
    ) -> Any:
        if path != self._root and not path.startswith(f"{self._root}/"):
            return call()
        text = f"{operation} {self._name(target or path)}"
        self.calls.append(Call(text, operation, path, target, data))
        fault = self._fault
        if fault is None or fault.at not in (len(self.calls) - 1, text):
            return call()
        self._fault = None
        if fault.error:
            named = operation not in ("write", "fsync")  # as the system does: a descriptor has no name
            raise OSError(fault.error, os.strerror(fault.error), *[path] * named)
        try:
            if fault.moment == "half" and half:
                half()
            elif fault.moment == "after":
                call()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)


def struck_command(store: Path, *options: str) -> list[str]:
    """The command line that extracts into a store, under these options of this program."""
    return [sys.executable, __file__, str(store), *options, "--", "extract", str(store), "--workers", "1"]


def main() -> int:
    parser = argparse.ArgumentParser(usage="%(prog)s ROOT [OPTIONS] -- COMMAND ...", allow_abbrev=False)
    parser.add_argument("root", type=Path, help="folder below which calls count")
    parser.add_argument("--trace", type=Path, help="JSON file for the texts of the calls")
    parser.add_argument("--at", default="", help="text of the call to strike, or its number")
    parser.add_argument("--moment", choices=["before", "half", "after"], default="before")
    parser.add_argument("--error", type=int, default=0, help="errno with which the call fails; 0: a kill")
    place = sys.argv.index("--")
    given, words = parser.parse_args(sys.argv[1:place]), sys.argv[place + 1 :]

    from mvd_offline.cli.main import main as run

    at = int(given.at) if given.at.isdigit() else given.at
    with FileCalls(given.root, Fault(at, given.moment, given.error) if given.at else None) as calls:
        status = run(words)
    if given.trace:
        given.trace.write_text(json.dumps(calls.texts), encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
