"""How an error reads on the command line: one paragraph that says what is wrong and what to do."""

from __future__ import annotations

import errno
import os
import pwd
import shutil
import stat
from pathlib import Path

from mvd_offline.cli.common import human_bytes
from mvd_offline.errors import MvdError


def describe(error: Exception) -> str:
    """The paragraph for an error that ends a command."""
    if isinstance(error, MvdError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return describe_system_error(error)
    return f"unexpected {type(error).__name__}: {error}; this is a bug: run again with --debug"


def describe_system_error(error: OSError) -> str:
    """What the system refused, with what a user can do about the refusals that disks and folders make."""
    path = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else None
    where = f"{path}: " if path else ""
    match error.errno:
        case errno.ENOSPC:
            found, remedy = "the disk is full" + _room(path), "Make room on that disk, then run the same command again."
        case errno.EDQUOT:
            found, remedy = (
                "the disk quota is used up",
                "Remove files or ask for more, then run the same command again.",
            )
        case errno.EROFS:
            found = "this cannot be written, its file system is read-only"
            remedy = "Have it mounted for writing, or work on a copy elsewhere. Reading a sealed store writes nothing."
        case errno.EACCES | errno.EPERM:
            found = "permission denied" + _rights(path)
            remedy = "Run the command as a user who may, or change the rights with chmod or chown."
        case errno.EIO:
            found = "the disk failed (input/output error)"
            remedy = "Look at the system's log before you trust this disk again, then run the same command again."
        case _:
            return f"{where}{error.strerror}"
    return f"{where}{found}. {remedy}"


def _room(path: Path | None) -> str:
    """How much room there is where the path belongs: bytes, or files when these ran out."""
    if path is None:
        return ""
    place = _nearest(path)
    left = os.statvfs(place)
    if left.f_files and not left.f_favail:
        return f" ({place} has room for no more files: all {left.f_files} are used)"
    return f" ({human_bytes(shutil.disk_usage(place).free)} are free in {place})"


def _rights(path: Path | None) -> str:
    """Who may do what with the nearest file or folder that exists, and who is asking."""
    if path is None:
        return ""
    place = _nearest(path)
    facts = place.stat()
    mode, owner = stat.filemode(facts.st_mode), _name(facts.st_uid)
    return f" to user {_name(os.geteuid())} ({place} is {mode}, its owner is {owner})"


def _nearest(path: Path) -> Path:
    return next((place for place in (path, *path.absolute().parents) if os.access(place, os.F_OK)), Path("/"))


def _name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:  # containers run under numbers that have no name
        return str(user)
