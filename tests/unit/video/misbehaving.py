"""Probes for the scan's tests: they run in the scan's processes, so they live in a module that those can import."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from mvd_offline.video.decode import VideoInfo, probe


def by_file_name(path: Path) -> VideoInfo:
    """Hangs, crashes or fails where the file's name asks for it; otherwise the real probe."""
    if path.stem.startswith("hang"):
        time.sleep(600)
    if path.stem.startswith("crash"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if path.stem.startswith("odd"):
        raise ValueError("a decoder's own complaint")
    return probe(path)


def refuses(path: Path) -> VideoInfo:
    """For rescans that must read nothing."""
    raise AssertionError(f"{path.name} was read again")


def leaves_a_mark(path: Path) -> VideoInfo:
    """Writes `<name>.seen` beside the file that it probes."""
    path.with_suffix(".seen").touch()
    return probe(path)
