"""Putting right what `verify` finds: what is damaged goes to `quarantine/`, what follows from other files is rewritten.

Nothing of a store's content is deleted. A shard's commit record is moved before its file, so that whenever this is
interrupted the shard counts as not committed: `extract` makes it again, to the bit.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mvd_offline.shards import atomic
from mvd_offline.shards.claims import Claims, store_lock
from mvd_offline.shards.creation import read_header
from mvd_offline.shards.errors import StoreError
from mvd_offline.shards.schema import QUARANTINE
from mvd_offline.shards.sealing import write_index
from mvd_offline.shards.store import Store
from mvd_offline.shards.verify import Finding, Level, Remedy, VerifyReport, verify


@dataclass(frozen=True)
class Repaired:
    """What a repair did, and what remains to be done."""

    set_aside: tuple[str, ...] = ()
    """Where files are now, below the store's folder."""
    remake: tuple[tuple[str, int], ...] = ()
    """(column, shard) of each shard that was put aside."""
    removed: tuple[str, ...] = ()
    """Temporary files of killed writers."""
    remaining: tuple[Finding, ...] = ()
    """What only a copy, or another `plan`, can restore."""
    next_step: str = ""
    """A command, or what to restore; empty when there was nothing to repair."""


def repair(
    root: str | Path,
    level: Level = "quick",
    *,
    sample_rows: int = 64,
    seed: int = 0,
    on_shard: Callable[[int, int], None] | None = None,
) -> tuple[VerifyReport, Repaired]:
    """Check a store as `verify` does, and put right what can be, while no other run works on it.

    Returns what was found (before the repair), and what was done.

    Raises:
        NotAStoreError: there is nothing to check.
        ClaimError: a run is at work on the store.
    """
    root = Path(root)
    with _alone(root):
        report = verify(root, level, sample_rows=sample_rows, seed=seed, on_shard=on_shard)
        return report, _act(root, report)


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Have all shards of a store, so that no other run works on it meanwhile."""
    plan = root / "plan.parquet"
    with contextlib.ExitStack() as stack:
        try:
            shards = read_header(root).shard_count
        except StoreError:
            shards = 0
        # Without store.json and plan nobody can work on a store.
        if shards and plan.is_file():
            stack.enter_context(stack.enter_context(Claims(plan)).all_of(shards))
        yield


def _act(root: Path, report: VerifyReport) -> Repaired:
    remaining = tuple(finding for finding in report.findings if finding.remedy is Remedy.restore)
    if report.ok or not report.store_id:
        return Repaired(remaining=remaining, next_step=_restore(remaining[0]) if remaining else "")
    store = Store(root, read_header(root))
    with store_lock(root):
        damaged = report.damaged_shards
        if damaged:
            atomic.remove_file(store.seal_path)  # its index covers what is about to go
        places = [
            path
            for column, shard in damaged
            for path in (store.record_path(column, shard), store.shard_path(column, shard))
        ]
        places += [root / finding.path for finding in report.findings if finding.path]
        moved = [set_aside(root, path) for path in places]
        removed = store.clean_temporary()
        for folder in store.folders():
            atomic.make_folder(folder)
        if any(finding.remedy in (Remedy.remake, Remedy.rewrite) for finding in report.findings):
            store.refresh()
            write_index(store)
    return Repaired(
        set_aside=tuple(place for place in moved if place),
        remake=tuple(damaged),
        removed=tuple(path.relative_to(root).as_posix() for path in removed),
        remaining=remaining,
        next_step=_next_step(store, remaining),
    )


def _next_step(store: Store, remaining: tuple[Finding, ...]) -> str:
    if remaining:
        return _restore(remaining[0])
    if any(store.pending(column) for column in store.columns):
        return f"mvd-offline extract {store.root}"
    return f"mvd-offline shards verify {store.root} --level full"


def _restore(finding: Finding) -> str:
    return f"{finding.what}. {finding.repair}"


def set_aside(root: Path, path: Path) -> str:
    """Move a file or folder of a store to the same place below `quarantine/`, durably; returns where it is now.

    Its name there ends with the first 8 digits of its content's sha256, and a number where that is taken. Returns an
    empty string when there is no such file.
    """
    if not os.path.lexists(path):
        return ""
    name = f"{path.name}.{_digest(path)}"
    folder = root / QUARANTINE / path.relative_to(root).parent
    atomic.make_folder(folder)
    place, number = folder / name, 2
    while os.path.lexists(place):
        place, number = folder / f"{name}-{number}", number + 1
    os.rename(path, place)
    atomic.sync_folder(folder)
    atomic.sync_folder(path.parent)
    return place.relative_to(root).as_posix()


def _digest(path: Path) -> str:
    if path.is_symlink() or not path.is_file():
        return "other"
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:8]
    except OSError:
        return "unreadable"
