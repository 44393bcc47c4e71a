"""Removing a column: first from the store's identity, then from its index, then from the disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from mvd_offline.shards import atomic
from mvd_offline.shards.claims import Claims, store_lock
from mvd_offline.shards.creation import read_header, remove_column_files
from mvd_offline.shards.errors import CommitError, MissingRowError, nearest
from mvd_offline.shards.schema import CLIPS, COLUMN_NAME, RESERVED_NAMES
from mvd_offline.shards.sealing import write_index
from mvd_offline.shards.store import Store


@dataclass(frozen=True)
class Dropped:
    """What removing a column freed."""

    column: str
    files: int
    bytes: int


def drop_column(root: Path, name: str) -> Dropped:
    """Remove a column and its files; killed anywhere, another call finishes the work.

    Raises:
        MissingRowError: there is no such column, nor what is left of one.
        CommitError: it is the only column.
        ClaimError: a run is at work on the store.
    """
    records = root / "commits" / name
    shards = read_header(root).shard_count
    with Claims(root / "plan.parquet") as claims, claims.all_of(shards), store_lock(root):
        _forget(root, name, records)
        write_index(Store(root, read_header(root)))
        files = [path for folder in (records, root / name) for path in _files(folder)]
        freed = Dropped(name, len(files), sum(path.stat().st_size for path in files))
        remove_column_files(root, name)
    return freed


def _forget(root: Path, name: str, records: Path) -> None:
    """Take the column out of store.json, unless that is done already."""
    header = read_header(root)
    if name not in header.columns:
        if not COLUMN_NAME.fullmatch(name) or name in RESERVED_NAMES or not records.is_dir():
            raise MissingRowError(
                f"{root} has no column {name}; it has {', '.join(header.columns)}.{nearest(name, header.columns)}"
            )
        return
    if len(header.columns) == 1:
        raise CommitError(
            f"{root}: {name} is the only column, and a store has at least one. Remove the folder to be rid of all."
        )
    if name == CLIPS:
        raise CommitError(
            f"{root}: the other columns' teachers saw these clips, and not quite what the videos render to. Drop their "
            "columns first, or keep the clips."
        )
    rest = {key: spec for key, spec in header.columns.items() if key != name}
    atomic.publish_bytes(root / "store.json", replace(header, columns=rest).to_bytes())


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())
