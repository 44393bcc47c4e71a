"""Small and read-only disks for tests, without rights: a mount that only a namespace of its own sees."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

TOOLS = ("unshare", "nsenter", "mount")


@dataclass(frozen=True)
class Disk:
    """A mounted folder. Commands see it as `path`; this process, which has no part in the mount, as `seen`."""

    holder: int
    path: Path

    @property
    def seen(self) -> Path:
        return Path(f"/proc/{self.holder}/root{self.path}")

    def inside(self, *words: str | Path) -> list[str]:
        """The command line that runs these words where the disk is mounted."""
        enter = ["nsenter", f"--target={self.holder}", "--user", "--mount", "--preserve-credentials", "--"]
        return [*enter, *map(str, words)]

    def run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        return subprocess.run(self.inside(*words), capture_output=True, text=True, timeout=120, env=environment)

    @property
    def free_bytes(self) -> int:
        return shutil.disk_usage(self.seen).free


@contextmanager
def mounted(path: Path, *mount: str) -> Iterator[Disk]:
    """A disk at the existing folder `path` for as long as the context is open, by `mount *mount path`.

    Skips the test where this machine does not let its users mount.
    """
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        pytest.skip(f"needs {', '.join(missing)} of util-linux to mount a small disk")
    script = 'mount "$@" && echo mounted && exec sleep 600'
    arguments = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", *mount, str(path)]
    holder = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stderr is not None
        if holder.stdout.readline() != "mounted\n":
            pytest.skip(f"this machine mounts no disk for its users: {holder.stderr.read().strip()}")
        yield Disk(holder.pid, path)
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
