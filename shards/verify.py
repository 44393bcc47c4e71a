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
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from mvd_offline.shards import atomic
from mvd_offline.shards.creation import column_files, read_file
from mvd_offline.shards.errors import MvdError, NotAStoreError, StoreError, repair_shard
from mvd_offline.shards.index import join_batches, read_table, record_batch
from mvd_offline.shards.schema import CommitRecord, StoreHeader
from mvd_offline.shards.shardfile import check_file, check_rows
from mvd_offline.shards.store import Store

if TYPE_CHECKING:
    import pyarrow as pa

Level = Literal["quick", "sample", "full"]
LEVELS: Final[tuple[Level, ...]] = ("quick", "sample", "full")

_PLAN: Final = (
    "Restore the file from a copy, or remove it and run `mvd-offline plan` again with the recipe and the catalog that "
    "the store was made with; its shards are kept."
)
_SEAL: Final = "Run `mvd-offline shards seal STORE`, which writes it anew."
_EXTRACT: Final = "Run `mvd-offline extract STORE`, which makes only what is missing."
_REMOVE: Final = "Remove it, or move it elsewhere."


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be; shard and row are None where the finding is wider than one."""

    column: str
    shard: int | None
    row: int | None
    what: str
    repair: str
    is_damaged_shard: bool = False
    """Whether making the shard again repairs it."""


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

    @property
    def ok(self) -> bool:
        return not self.findings


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
    check = _Check(Path(root), level, sample_rows, seed, on_shard or (lambda done, total: None))
    findings = tuple(check.run())
    return VerifyReport(level, check.store_id, findings, check.shards, check.rows, check.bytes_read)


def withdraw_damaged(root: str | Path, report: VerifyReport) -> list[tuple[str, int]]:
    """Withdraw the commits of the shards that a report found damaged, so that `extract` makes them again.

    Returns (column, shard) of each.
    """
    damaged = sorted({(f.column, f.shard) for f in report.findings if f.shard is not None and f.is_damaged_shard})
    if damaged:
        root = Path(root)
        store = Store(root, StoreHeader.from_bytes(read_file(root / "store.json"), "store.json"))
        for column, shard in damaged:
            store.withdraw(column, shard)
    return damaged


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
            self.store = Store(self.root, StoreHeader.from_bytes(read_file(path), str(path)))
        except MvdError as error:
            yield Finding("", None, None, f"store.json cannot be used, so nothing else was checked: {error}", _PLAN)
            return
        self.store_id = self.store.store_id
        self._pixels = np.zeros(self.store.header.rows, np.uint64)
        self._batches: list[pa.RecordBatch] = []
        yield from self._identity()
        for column in self.store.columns:
            yield from self._column(column)
        yield from self._index()
        yield from self._strays()

    def _identity(self) -> Iterator[Finding]:
        header = self.store.header
        plan = _content(self.store.plan_path)
        self._plan_is_good = plan is not None and hashlib.sha256(plan).hexdigest() == header.plan_sha256
        if not self._plan_is_good:
            yield Finding("", None, None, "plan.parquet is gone or does not match its sha256 in store.json", _PLAN)
        for name, data in column_files(header).items():
            if _content(self.root / name) != data:
                yield Finding(name.split("/")[0], None, None, f"{name} is gone or altered", _SEAL)

    # ---- one column ----------------------------------------------------------------------------------------------

    def _column(self, column: str) -> Iterator[Finding]:
        store = self.store
        if pending := store.pending(column):
            what = f"{len(pending)} of {store.shard_count} shards are not committed, the first is shard {pending[0]}"
            yield Finding(column, pending[0], None, what, _EXTRACT)
        committed = sorted(shard for shard in store.committed(column) if shard < store.shard_count)
        sampled = self._sampled_rows(column)
        for done, shard in enumerate(committed):
            self.on_shard(done, len(committed))
            try:
                record = store.record(column, shard)
            except MvdError as error:
                yield self._damaged(column, shard, None, f"the commit record cannot be used: {error}")
                continue
            self._batches.append(record_batch(record))
            yield from self._record(record)
            yield from self._file(record, sampled)

    def _sampled_rows(self, column: str) -> set[int]:
        if self.level != "sample":
            return set()
        views = self.store.view_ids.tolist() if self._plan_is_good else range(self.store.header.rows)
        draw = random.Random(f"{self.seed} {column}")
        return set(draw.sample(views, min(self.sample_rows, len(views))))

    def _record(self, record: CommitRecord) -> Iterator[Finding]:
        """Does the record name the plan's views, and did all columns see the same pixels?"""
        ids = [row.view_id for row in record.rows]
        if self._plan_is_good and ids != self.store.shard_view_ids(record.shard).tolist():
            what = "the commit record names other views than the plan"
            yield self._damaged(record.column, record.shard, None, what)
            return
        for row in record.rows:
            if row.status == "ok":
                before, now = int(self._pixels[row.view_id]), int(row.pixels, 16)
                self._pixels[row.view_id] = now
                if before not in (0, now):
                    what = f"its teacher saw other pixels ({now:016x}) than that of a column before it ({before:016x})"
                    yield self._damaged(record.column, record.shard, row.view_id, what)

    def _file(self, record: CommitRecord, sampled: set[int]) -> Iterator[Finding]:
        path, layout = (
            self.store.shard_path(record.column, record.shard),
            self.store.layout(record.column, record.shard),
        )
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

    def _damaged(self, column: str, shard: int, row: int | None, what: str) -> Finding:
        return Finding(column, shard, row, what, repair_shard(self.root), is_damaged_shard=True)

    # ---- the whole -----------------------------------------------------------------------------------------------

    def _index(self) -> Iterator[Finding]:
        """Does the index say what the records say?"""
        store = self.store
        complete = not any(store.pending(column) for column in store.columns)
        try:
            seal = store.seal_record
            if seal is None:
                if complete:
                    yield Finding("", None, None, "every shard is committed, but the store is not sealed", _SEAL)
                return
            table = read_table(read_file(store.index_path), store.header, seal)
        except MvdError as error:
            yield Finding("", None, None, f"the index cannot be used: {error}", _SEAL)
            return
        covered = sorted(column for column in seal.columns if column in store.columns)
        batches = [batch for batch in self._batches if batch.num_rows and batch["column"][0].as_py() in covered]
        if not join_batches(store.header, covered, batches).equals(table, check_metadata=True):
            yield Finding("", None, None, "index.parquet differs from the commit records", _SEAL)
        elif complete and not store.sealed:
            yield Finding("", None, None, "every shard is committed, but not every column is in the index", _SEAL)

    def _strays(self) -> Iterator[Finding]:
        """Files inside the store's folders that are no part of it; temporary ones of living writers are."""
        store = self.store
        described = set(column_files(store.header))
        for column in store.columns:
            shards = range(store.shard_count)
            known = {store.shard_path(column, shard) for shard in shards}
            known |= {store.record_path(column, shard) for shard in shards}
            known |= {self.root / name for name in described}
            for folder in (self.root / column, self.root / "commits" / column):
                for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                    if path not in known and not path.name.startswith(atomic.TEMPORARY_PREFIX):
                        name = path.relative_to(self.root).as_posix()
                        yield Finding(column, None, None, f"{name} is no part of the store", _REMOVE)
        for folder in store.folders():
            for path in atomic.abandoned_files(folder):
                name = path.relative_to(self.root).as_posix()
                yield Finding("", None, None, f"{name} was left behind by a killed writer", _EXTRACT)


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
