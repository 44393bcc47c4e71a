"""Is a store what it says? Every document, every file, every row, as thoroughly as asked.

| level  | checks                                                                                          |
|--------|-------------------------------------------------------------------------------------------------|
| quick  | identity, plan, zarr.json, every commit record, size of every shard file, the index, stray files  |
| sample | quick, and the payload of some rows                                                              |
| full   | quick, and every byte of every shard file                                                       |
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from mvd_offline.shards import atomic
from mvd_offline.shards.creation import LOCAL_FILE, column_files, read_bases, read_file
from mvd_offline.shards.errors import (
    CorruptionError,
    MissingRowError,
    MvdError,
    NotAStoreError,
    StoreError,
    make_missing,
    repair_shard,
    restore_identity,
    write_derived,
)
from mvd_offline.shards.exportfolder import EXPORT_FILE
from mvd_offline.shards.indexfile import IndexFile, join_batches, record_batch
from mvd_offline.shards.schema import QUARANTINE, CommitRecord, SealRecord, StoreHeader
from mvd_offline.shards.shardfile import check_file, check_rows
from mvd_offline.shards.store import Store

if TYPE_CHECKING:
    import pyarrow as pa

Level = Literal["quick", "sample", "full"]
LEVELS: Final[tuple[Level, ...]] = ("quick", "sample", "full")


class Remedy(StrEnum):
    """How a finding is put right; see `repair`."""

    remake = "remake"
    """The shard is put aside, and made again by `extract`."""
    set_aside = "set_aside"
    """The file is no part of the store: it is put aside."""
    rewrite = "rewrite"
    """The file follows from the commit records, and is written anew."""
    clean = "clean"
    """A killed writer's temporary file, which is removed."""
    extract = "extract"
    """Something is not there yet."""
    restore = "restore"
    """Nothing in the store can replace the file."""


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be; shard and row are None where the finding is wider than one."""

    column: str
    shard: int | None
    row: int | None
    what: str
    remedy: Remedy
    repair: str
    """The remedy in words, with the command."""
    path: str = ""
    """Below the store's folder: the file that `set_aside` is about."""


@dataclass(frozen=True)
class VerifyReport:
    """What was looked at, and what was found; `ok` when nothing was."""

    level: str
    store_id: str
    findings: tuple[Finding, ...]
    shards_checked: int
    """Commit records read and files looked at."""
    rows_checked: int
    """Payloads read and compared to their crc32c."""
    bytes_read: int
    quarantine_files: int
    """What `--repair` put aside and nobody has removed yet: files, and their bytes. They are not looked into."""
    quarantine_bytes: int

    @property
    def ok(self) -> bool:
        return not self.findings

    @property
    def damaged_shards(self) -> list[tuple[str, int]]:
        """(column, shard) of each shard that must be made again."""
        found = {(f.column, f.shard) for f in self.findings if f.remedy is Remedy.remake and f.shard is not None}
        return sorted(found)


def verify(
    root: str | Path,
    level: Level = "quick",
    *,
    sample_rows: int = 64,
    seed: int = 0,
    on_shard: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """Check a store, sealed or not; damage is reported, never raised.

    Args:
        sample_rows: rows of each column whose payload `sample` reads; which ones, `seed` decides.
        on_shard: called with (shards done, shards in all).

    Raises:
        NotAStoreError: there is nothing to check.
    """
    if level not in LEVELS:
        raise StoreError(f"level {level!r} is unknown; known: {', '.join(LEVELS)}")
    root = Path(root)
    check = _Check(root, level, sample_rows, seed, on_shard or (lambda done, total: None))
    findings = tuple(check.run())
    aside = [path for path in (root / QUARANTINE).rglob("*") if path.is_file()]
    return VerifyReport(
        level=level,
        store_id=check.store_id,
        findings=findings,
        shards_checked=check.shards,
        rows_checked=check.rows,
        bytes_read=check.bytes_read,
        quarantine_files=len(aside),
        quarantine_bytes=sum(path.stat().st_size for path in aside),
    )


class _Check:
    """One pass over a store; yields findings and counts what it looked at."""

    def __init__(
        self, root: Path, level: Level, sample_rows: int, seed: int, on_shard: Callable[[int, int], None]
    ) -> None:
        self.root, self.level, self.sample_rows, self.seed, self.on_shard = root, level, sample_rows, seed, on_shard
        self.store_id = ""
        self.shards = self.rows = self.bytes_read = 0

    def run(self) -> Iterator[Finding]:
        path = self.root / "store.json"
        if not path.exists() and not (self.root / "commits").is_dir():
            raise NotAStoreError(f"{self.root} holds no store (no store.json).")
        try:
            header = StoreHeader.from_bytes(read_file(path), str(path))
        except CorruptionError as error:
            yield self._lost(f"store.json cannot be used, so nothing else was checked: {error}")
            return
        except StoreError as error:  # another release's
            what = "store.json cannot be used, so nothing else was checked"
            yield Finding("", None, None, what, Remedy.restore, str(error))
            return
        try:
            read_bases(self.root, header)
        except CorruptionError as error:
            yield self._lost(f"a basis of codec klt cannot be used, so nothing else was checked: {error}")
            return
        self.store = Store(self.root, header)
        self.store_id = self.store.store_id
        self._pixels = {name: np.zeros(self.store.header.rows, np.uint64) for name in self.store.columns}
        self._batches: dict[tuple[str, int], pa.RecordBatch] = {}
        yield from self._identity()
        for column in self.store.columns:
            yield from self._column(column)
        yield from self._other_pixels()
        yield from self._index()
        yield from self._strays()

    def _identity(self) -> Iterator[Finding]:
        header = self.store.header
        plan = _content(self.store.plan_path)
        self._plan_is_good = plan is not None and hashlib.sha256(plan).hexdigest() == header.plan_sha256
        if not self._plan_is_good:
            yield self._lost("plan.parquet is gone or does not match its sha256 in store.json")
        for name, data in column_files(header).items():
            if _content(self.root / name) != data:
                yield self._derived(f"{name} is gone or altered", name.split("/")[0])

    # ---- one column ----------------------------------------------------------------------------------------------

    def _column(self, column: str) -> Iterator[Finding]:
        store = self.store
        if pending := store.pending(column):
            what = f"{len(pending)} of {store.shard_count} shards are not committed, the first is shard {pending[0]}"
            yield Finding(column, pending[0], None, what, Remedy.extract, make_missing(self.root))
        committed = sorted(shard for shard in store.committed(column) if shard < store.shard_count)
        sampled = self._sampled_rows(column)
        for done, shard in enumerate(committed):
            self.on_shard(done, len(committed))
            try:
                record = store.record(column, shard)
            except MissingRowError:
                continue  # taken back since the folder was listed
            except MvdError as error:
                yield self._damaged(column, shard, None, f"the commit record cannot be used: {error}")
                continue
            self._batches[column, shard] = record_batch(record)
            yield from self._record(record)
            yield from self._file(record, sampled)

    def _sampled_rows(self, column: str) -> set[int]:
        if self.level != "sample":
            return set()
        views = self.store.view_ids.tolist() if self._plan_is_good else range(self.store.header.rows)
        draw = random.Random(f"{self.seed} {column}")
        return set(draw.sample(views, min(self.sample_rows, len(views))))

    def _record(self, record: CommitRecord) -> Iterator[Finding]:
        """Does the record name the plan's views? Notes the pixels that their teacher saw."""
        ids = [row.view_id for row in record.rows]
        if self._plan_is_good and ids != self.store.shard_view_ids(record.shard).tolist():
            what = "the commit record names other views than the plan"
            yield self._damaged(record.column, record.shard, None, what)
            return
        for row in record.rows:
            if row.status == "ok":
                self._pixels[record.column][row.view_id] = int(row.pixels, 16)

    def _other_pixels(self) -> Iterator[Finding]:
        """Findings for views whose columns saw different pixels: no record says which of them is right."""
        if len(self._pixels) < 2:
            return
        hashes = np.stack(list(self._pixels.values()))
        most = hashes.max(axis=0)
        least = np.where(hashes > 0, hashes, most).min(axis=0)
        for view_id in np.flatnonzero(least != most).tolist():
            seen = {name: f"{pixels[view_id]:016x}" for name, pixels in self._pixels.items() if pixels[view_id]}
            said = ", ".join(f"{pixels} in {name}" for name, pixels in seen.items())
            for column in seen:
                what = f"the columns' teachers saw different pixels of it ({said})"
                yield self._damaged(column, view_id // self.store.header.rows_per_shard, view_id, what)

    def _file(self, record: CommitRecord, sampled: set[int]) -> Iterator[Finding]:
        path = self.store.shard_path(record.column, record.shard)
        layout = self.store.layout(record.column, record.shard)
        ok = [row for row in record.rows if row.status == "ok"]
        if self.level == "full":
            faults = check_file(path, record, layout)
        else:
            ok = [row for row in ok if row.view_id in sampled]
            faults = check_rows(path, record, ok, layout)
        self.shards += 1
        self.rows += len(ok)
        self.bytes_read += record.size if self.level == "full" else sum(row.length for row in ok)
        for fault in faults:
            yield self._damaged(record.column, record.shard, fault.row, fault.what)

    # ---- the whole -----------------------------------------------------------------------------------------------

    def _index(self) -> Iterator[Finding]:
        """Does the index say what the records say?"""
        store = self.store
        # A store of views alone has nothing to seal.
        complete = bool(store.columns) and not any(store.pending(column) for column in store.columns)
        try:
            seal = store.seal_record
            if seal is None:
                if complete:
                    yield self._derived("every shard is committed, but the store is not sealed")
                return
            table = IndexFile(store.index_path, store.header, seal, repair="").table()
        except MvdError as error:
            yield self._derived(f"the index cannot be used: {error}")
            return
        if not self._agrees(seal, table):
            yield self._derived("index.parquet differs from the commit records")
        elif complete and not store.sealed:
            yield self._derived("every shard is committed, but not every column is in the index")

    def _agrees(self, seal: SealRecord, table: pa.Table) -> bool:
        """Whether the index is what follows from the records; of shards that have no usable record nothing is said."""
        covered = sorted(column for column in seal.columns if column in self.store.columns)
        shards = [(column, shard) for column in covered for shard in range(self.store.shard_count)]
        if lost := set(shards) - self._batches.keys():
            places = zip(table["column"].to_pylist(), table["shard"].to_pylist(), strict=True)
            table = table.filter([place not in lost for place in places])
        batches = [self._batches[place] for place in shards if place in self._batches]
        expected = join_batches(self.store.header, covered, batches)
        return bool(expected.equals(table.cast(expected.schema)))

    def _strays(self) -> Iterator[Finding]:
        """Files inside the store's folder that are no part of it; temporary ones of living writers are."""
        for path in self._foreign_files():
            name = path.relative_to(self.root).as_posix()
            column = next((part for part in path.relative_to(self.root).parts if part in self.store.columns), "")
            repair = f"Move it elsewhere, or run `mvd-offline shards verify {self.root} --repair`, which puts it aside."
            yield Finding(column, None, None, f"{name} is no part of the store", Remedy.set_aside, repair, name)
        for folder in self.store.folders():
            for path in atomic.abandoned_files(folder):
                what = f"{path.relative_to(self.root).as_posix()} was left behind by a killed writer"
                repair = f"Run `mvd-offline extract {self.root}`, which removes it."
                yield Finding("", None, None, what, Remedy.clean, repair)

    def _foreign_files(self) -> Iterator[Path]:
        store, root = self.store, self.root
        known = {
            root / name for name in ("store.json", LOCAL_FILE, EXPORT_FILE, QUARANTINE, *column_files(store.header))
        }
        known |= {store.plan_path, store.index_path, store.seal_path, *store.folders()}
        for column in store.columns:
            for shard in range(store.shard_count):
                known |= {store.shard_path(column, shard), store.record_path(column, shard)}
                known.add(store.next_record_path(column, shard))
        for folder in store.folders():
            for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                if path not in known and not path.name.startswith(atomic.TEMPORARY_PREFIX):
                    yield path

    # ---- findings ------------------------------------------------------------------------------------------------

    def _damaged(self, column: str, shard: int, row: int | None, what: str) -> Finding:
        return self._finding(column, shard, row, what, Remedy.remake, repair_shard(self.root))

    def _derived(self, what: str, column: str = "") -> Finding:
        return self._finding(column, None, None, what, Remedy.rewrite, write_derived(self.root))

    def _lost(self, what: str) -> Finding:
        return self._finding("", None, None, what, Remedy.restore, restore_identity(self.root))

    def _finding(
        self, column: str, shard: int | None, row: int | None, what: str, remedy: Remedy, repair: str
    ) -> Finding:
        # An error that was caught ends with the same advice.
        return Finding(column, shard, row, what.removesuffix(repair).rstrip(" ."), remedy, repair)


def _content(path: Path) -> bytes | None:
    """What a file holds; None when it is gone or cannot be read."""
    try:
        return read_file(path)
    except CorruptionError:
        return None
