"""A store: created once, filled shard by shard by any number of processes, sealed, then read by view.

store.json                    identity and columns
plan.parquet                  the views
<column>/...                  shard files, and what other software needs to read them
commits/<column>/NNNNNN.json  a shard is done when its record is here
index.parquet                 all records in one file; commits/index.json, its record, seals the store
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mvd_offline.shards import atomic
from mvd_offline.shards.claims import store_lock
from mvd_offline.shards.codecs import get_codec
from mvd_offline.shards.committing import publish_shard, settle, withdraw
from mvd_offline.shards.containers import ShardLayout, get_container
from mvd_offline.shards.creation import (
    plan_views,
    prepare_folder,
    read_bases,
    read_file,
    read_header,
    some,
)
from mvd_offline.shards.errors import (
    CommitError,
    CorruptionError,
    IdentityError,
    MissingRowError,
    NotSealedError,
    StoreError,
    make_missing,
    nearest,
    repair_shard,
    restore_identity,
    write_derived,
)
from mvd_offline.shards.index import NO_ROW, ColumnIndex, SeenPixels
from mvd_offline.shards.indexfile import IndexFile, build_table, open_hashed, parts_of_table
from mvd_offline.shards.reader import RowReader
from mvd_offline.shards.schema import CLIPS, CommitRecord, SealRecord, StoreHeader, all_differences
from mvd_offline.shards.sealing import settled_seal, write_index
from mvd_offline.shards.shardfile import ShardWriter, check_file, forget_cached_pages
from mvd_offline.shards.space import full_disk_explained

_SHARD_NUMBER: Final = re.compile(r"[0-9]{6}|[1-9][0-9]{6,}")

__all__ = ["ShardWriter", "Store", "create_store", "open_store"]


def create_store(root: str | Path, header: StoreHeader, plan_bytes: bytes) -> Store:
    """Make a store, or find the same one; columns that it lacks are added.

    Args:
        plan_bytes: the plan, a Parquet table with columns `view_id` (ascending) and `shard` (view_id // rows_per_shard)
            among others.

    Raises:
        IdentityError: the folder holds another store (the message names the field), or something else; or the plan
            is not the header's.
    """
    root = Path(root)
    return Store(root, prepare_folder(root, header, plan_bytes))


def open_store(root: str | Path, *, sealed: bool = True, columns: Sequence[str] | None = None) -> Store:
    """Open a store.

    Args:
        sealed: require that every row of `columns` is there and indexed, as readers must.
        columns: the columns that will be read; all of them when None. A store stays readable in its old columns
            while a new one is being filled.

    Raises:
        NotAStoreError: the folder holds no store.
        NotSealedError: not every shard of these columns is committed.
        CorruptionError: a file of the store does not match its checksum.
    """
    root = Path(root)
    store = Store(root, read_header(root))
    repair = restore_identity(root)
    with ThreadPoolExecutor(1) as other:
        plan = other.submit(open_hashed, store.plan_path, repair)
        if sealed:
            # Meanwhile; what is wrong with the index is said below, after what is wrong with the plan.
            with contextlib.suppress(StoreError):
                store.hash_index()
        _, _, digest = plan.result()
    if digest != store.header.plan_sha256:
        raise CorruptionError(f"{store.plan_path}: the file does not match the sha256 in store.json. {repair}")
    if sealed:
        store.require_sealed(store.checked_columns(columns))
    return store


class Store:
    """An open store; get one from `open_store` or `create_store`. Threads and processes may share it for reading."""

    def __init__(self, root: Path, header: StoreHeader) -> None:
        self.root = root
        self.header = header
        self._indices: dict[str, ColumnIndex] = {}
        self._reader = RowReader(root, header)

    def __repr__(self) -> str:
        shape = f"{self.header.rows} rows in {self.shard_count} shards"
        return f"Store({str(self.root)!r}, {shape}, columns={list(self.columns)}, store_id={self.store_id[:12]})"

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "header": self.header, "_indices": self._indices}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        read_bases(self.root, self.header)  # it may be another process
        self._reader = RowReader(self.root, self.header)

    # ---- what it is ----------------------------------------------------------------------------------------------

    @property
    def store_id(self) -> str:
        return self.header.store_id

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self.header.columns)

    @property
    def target_columns(self) -> tuple[str, ...]:
        """The columns of teachers: all but the baked clips."""
        return tuple(name for name in self.columns if name != CLIPS)

    @property
    def shard_count(self) -> int:
        return self.header.shard_count

    @property
    def plan_path(self) -> Path:
        return self.root / "plan.parquet"

    @cached_property
    def view_ids(self) -> NDArray[np.int64]:
        """Views that the plan names, ascending."""
        return plan_views(self.plan_path)

    def shard_rows(self, shard: int) -> range:
        """Row numbers of a shard; the plan's views are some of them (see `shard_view_ids`)."""
        first = shard * self.header.rows_per_shard
        return range(first, min(first + self.header.rows_per_shard, self.header.rows))

    def shard_view_ids(self, shard: int) -> NDArray[np.int64]:
        """Views of a shard, ascending."""
        rows = self.shard_rows(shard)
        return self.view_ids[slice(*np.searchsorted(self.view_ids, (rows.start, rows.stop)))]

    def row_bytes(self, column: str) -> int:
        """Bytes of one row's payload; their mean so far where rows are packed."""
        spec = self.header.columns[column]
        codec = get_codec(spec.codec)
        if codec.packing is None:
            return codec.nbytes(spec.tokens, spec.width)
        index = self.status(column)
        return round(float(index.length[index.ok].mean())) if index.ok.any() else 0

    def layout(self, column: str, shard: int) -> ShardLayout:
        return ShardLayout(self.header.columns[column], shard, self.header.rows_per_shard)

    def shard_path(self, column: str, shard: int) -> Path:
        return self.root / column / get_container(self.header.columns[column].container).shard_file(shard)

    def record_path(self, column: str, shard: int) -> Path:
        return self.root / "commits" / column / f"{shard:06d}.json"

    def next_record_path(self, column: str, shard: int) -> Path:
        """Where the new record stands while a shard is exchanged."""
        return self.record_path(column, shard).with_suffix(".next")

    @property
    def index_path(self) -> Path:
        return self.root / "index.parquet"

    @property
    def seal_path(self) -> Path:
        return self.root / "commits" / "index.json"

    def checked_columns(self, columns: Sequence[str] | None) -> tuple[str, ...]:
        """The names given, or all; raises MissingRowError for a column that the store does not have."""
        names = self.columns if columns is None else tuple(columns)
        unknown = [name for name in names if name not in self.header.columns]
        if unknown:
            raise MissingRowError(
                f"{self.root} has no column {', '.join(unknown)}; it has {', '.join(self.columns)}."
                + nearest(unknown[0], self.columns)
            )
        return names

    def require_columns(self) -> None:
        """Raises IdentityError when a column was dropped or exchanged since the store was opened."""
        now = read_header(self.root).columns
        lost = [name for name, spec in self.header.columns.items() if name not in now or now[name] != spec]
        if lost:
            raise IdentityError(
                f"{self.root}: column {', '.join(lost)} was dropped while this run was at work. Run it again; it goes "
                "on with the columns that are left."
            )

    # ---- what is done --------------------------------------------------------------------------------------------

    def committed(self, column: str) -> set[int]:
        """Shards whose commit record exists, and is not being exchanged."""
        (name,) = self.checked_columns([column])
        found: dict[str, set[int]] = {".json": set(), ".next": set()}
        folder = self.root / "commits" / name
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.suffix in found and _SHARD_NUMBER.fullmatch(path.stem):
                found[path.suffix].add(int(path.stem))
        return found[".json"] - found[".next"]

    def is_committed(self, column: str, shard: int) -> bool:
        """Whether the shard is among `committed`, without looking at the others."""
        return self.record_path(column, shard).exists() and not self.next_record_path(column, shard).exists()

    def pending(self, column: str) -> list[int]:
        """Shards that are still to be written, ascending."""
        done = self.committed(column)
        return [shard for shard in range(self.shard_count) if shard not in done]

    def record(self, column: str, shard: int) -> CommitRecord:
        """The commit record of a shard, checked to be this store's."""
        path = self.record_path(column, shard)
        if not self.is_committed(column, shard):
            raise MissingRowError(f"column {column}, shard {shard} is not committed. {make_missing(self.root)}")
        repair = repair_shard(self.root)
        record = CommitRecord.from_bytes(read_file(path, repair), str(path), repair)
        expected = {
            "store_id": self.store_id,
            "column": column,
            "column_id": self.header.columns[column].column_id,
            "shard": shard,
            "file": self.shard_path(column, shard).name,
        }
        if differences := all_differences({key: getattr(record, key) for key in expected}, expected):
            wrong = ", ".join(f"{field} is {found!r} where {wanted!r} belongs" for field, found, wanted in differences)
            raise IdentityError(f"{path}: {wrong}: the record comes from elsewhere. {repair}")
        return record

    @cached_property
    def seal_record(self) -> SealRecord | None:
        """What the index covers; None for a store that is not sealed. Read once; see `refresh`."""
        repair = write_derived(self.root)
        try:
            data = self.seal_path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError:
            data = read_file(self.seal_path, repair)  # which says what is wrong
        seal = SealRecord.from_bytes(data, str(self.seal_path), repair)
        if seal.store_id != self.store_id:
            raise IdentityError(
                f"{self.seal_path}: made for store {seal.store_id[:12]}, this is {self.store_id[:12]}. {repair}"
            )
        return seal

    def is_indexed(self, column: str) -> bool:
        """Whether readers can use the column."""
        covered = self.seal_record.columns if self.seal_record else {}
        return covered.get(column) == self.header.columns[column].column_id

    @property
    def sealed(self) -> bool:
        """Whether every column is indexed. Read once; see `refresh`."""
        return all(self.is_indexed(name) for name in self.columns)

    def require_sealed(self, columns: Sequence[str]) -> None:
        """Raises NotSealedError unless these columns can be read, CorruptionError when the index is damaged."""
        waiting = self._not_indexed(columns)
        if waiting and not any(map(self.pending, waiting)):
            with settled_seal(self.root):
                self._forget_seal()
                waiting = self._not_indexed(columns)
        if not waiting:
            for name in columns:
                self.status(name)
            # Where index and seal did not match, both were read again, and the seal may be gone now.
            waiting = self._not_indexed(columns)
        if waiting:
            missing = [f"{len(self.pending(name))} of {self.shard_count} shards of column {name}" for name in waiting]
            if any(self.pending(name) for name in waiting):
                raise NotSealedError(
                    f"{self.root} is not complete: {' and '.join(missing)} are missing. "
                    f"Run `mvd-offline extract {self.root}`, which makes only these."
                )
            raise NotSealedError(
                f"{self.root}: every shard is committed, but there is no index of column {', '.join(waiting)}. "
                f"Run `mvd-offline shards seal {self.root}`."
            )

    def hash_index(self) -> None:
        """Check a sealed store's index now; otherwise it is checked when it is first read. Raises CorruptionError."""
        if self.seal_record:
            _ = self._index_file

    def _not_indexed(self, columns: Sequence[str]) -> list[str]:
        return [name for name in columns if not self.is_indexed(name)]

    def refresh(self) -> None:
        """Forget what was read of the store's progress; other processes may have gone on."""
        self._forget_seal()
        self._indices.clear()
        self._reader.close_files()

    # ---- writing -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def write_shard(
        self, column: str, shard: int, *, producer: Mapping[str, str], replace: bool = False
    ) -> Iterator[ShardWriter]:
        """Write and commit one shard: published on a clean exit, and not at all on an exception.

        Args:
            producer: software and device that compute the targets, with versions.
            replace: allow a shard that is committed already. It is uncommitted while it is exchanged, at the very
                end; whenever that is interrupted, `settle` finds the old or the new shard whole. The store must be
                sealed again.

        Raises:
            CommitError: the shard is committed already, or its rows are not the plan's.
            CorruptionError: the file does not read back as it was written; nothing is published.
            DiskFullError: there is no room for it.
        """
        (column,) = self.checked_columns([column])
        if not 0 <= shard < self.shard_count:
            raise CommitError(f"shard {shard} does not exist; {self.root} has shards 0 to {self.shard_count - 1}")
        if not replace and self.is_committed(column, shard):
            raise CommitError(
                f"column {column}, shard {shard} is committed already; pass replace=True to make it again"
            )
        layout = self.layout(column, shard)
        with full_disk_explained(self), atomic.temporary_file(self.shard_path(column, shard)) as temporary:
            views = self.shard_view_ids(shard).tolist()
            writer = ShardWriter(self.header, layout, views, temporary.stream, producer)
            yield writer
            if writer.discarded:
                return
            record = writer.finish()
            temporary.flush_to_disk()
            forget_cached_pages(temporary.path)
            faults = check_file(temporary.path, record, layout)
            if faults:
                raise CorruptionError(
                    f"column {column}, shard {shard}: the file does not read back as it was written "
                    f"({faults[0].what}). Nothing was published. Check the disk, then run "
                    f"`mvd-offline extract {self.root}` again."
                )
            publish_shard(self, temporary, record)
        self.refresh()

    def withdraw(self, column: str, shard: int) -> bool:
        """Take back a shard's commit, and the seal that covers it; `extract` then makes the shard again.

        Returns whether it was committed.
        """
        return withdraw(self, column, shard)

    def settle(self, column: str, shard: int) -> None:
        """Finish or take back an exchange of a shard that a killed writer left half done."""
        settle(self, column, shard)

    def clean_temporary(self) -> list[Path]:
        """Remove what killed writers left behind; files of living writers stay. Returns what was removed."""
        return [path for folder in self.folders() for path in atomic.clean_folder(folder)]

    def folders(self) -> list[Path]:
        """Every folder that the store writes to."""
        commits = self.root / "commits"
        return [self.root, commits, *(base / name for name in self.columns for base in (self.root, commits))]

    def seal(self) -> None:
        """Write the index, once every shard of every column is committed. Sealing again changes nothing.

        Raises:
            NotSealedError: shards are missing; lists them.
            CorruptionError: a shard file is gone or has another size than its record says.
        """
        missing = [
            f"column {name}: {some(self.pending(name))} of {self.shard_count}"
            for name in self.columns
            if self.pending(name)
        ]
        if missing:
            raise NotSealedError(
                f"{self.root} cannot be sealed, shards are missing: {'; '.join(missing)}. "
                f"Run `mvd-offline extract {self.root}`, which makes only these."
            )
        with store_lock(self.root):
            # Others may have added or dropped a column since this store was opened.
            write_index(Store(self.root, read_header(self.root)))
        self.refresh()

    # ---- reading -------------------------------------------------------------------------------------------------

    def read(
        self, view_ids: Sequence[int] | NDArray[Any], columns: Sequence[str] | None = None
    ) -> dict[str, NDArray[Any]]:
        """Targets of these views, in this order: column to (len(view_ids), N, D), float16 or float32 by its codec; of
        column `clips` the pixels, uint8 (len(view_ids), T, S, S, 3).

        Raises:
            MissingRowError: a view has no target; never zeros instead.
            CorruptionError: stored bytes do not match their checksum.
        """
        return {
            name: get_codec(self.header.columns[name].codec).decode(self.read_coded(name, view_ids))
            for name in self.checked_columns(columns)
        }

    def read_coded(
        self, column: str, view_ids: Sequence[int] | NDArray[Any], *, out: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """Targets as they are stored (see `codecs`): (len(view_ids), *codec.shape) in the codec's dtype.

        Args:
            out: an array of that shape and dtype to fill and return. Best one that an earlier call returned: writing
                to new memory takes several times as long.

        Raises like `read`.
        """
        (column,) = self.checked_columns([column])
        ids = _indices("view_ids", view_ids).reshape(-1)
        return self._reader.rows(self._ledger(column, ids), ids, out)

    def read_payloads(self, column: str, view_ids: Sequence[int] | NDArray[Any]) -> list[memoryview]:
        """The bytes of each view's row as they are stored, checked. Raises like `read`."""
        (column,) = self.checked_columns([column])
        ids = _indices("view_ids", view_ids).reshape(-1)
        return self._reader.payloads(self._ledger(column, ids), ids)

    def read_tokens(
        self,
        column: str,
        view_ids: Sequence[int] | NDArray[Any],
        token_index: NDArray[Any],
        *,
        out: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """Some tokens of each view as they are stored, for `token_index` (B, M): (B, M, columns) in the codec's dtype.

        The codec's `extra_rows`, which decoding needs, follow the M tokens. Raises like `read`; a row is read and
        checked whole before its tokens are taken.

        Args:
            out: an array of that shape and dtype to fill and return.
        """
        (column,) = self.checked_columns([column])
        ids, tokens = _indices("view_ids", view_ids).reshape(-1), _indices("token_index", token_index)
        return self._reader.tokens(self._ledger(column, ids), ids, tokens, out)

    def status(self, column: str) -> ColumnIndex:
        """The column's ledger as arrays. A column that is not sealed shows what is committed so far."""
        (column,) = self.checked_columns([column])
        if column not in self._indices:
            sealed = self._sealed_index(column)
            if sealed:
                index = ColumnIndex(self.root, column, self.header.rows, sealed.parts(column))
            else:
                parts = parts_of_table(build_table(self.header, {column: self._records(column)}), column)
                index = ColumnIndex(self.root, column, self.header.rows, parts).load()
            self._indices[column] = index
        return self._indices[column]

    def catch_up(self, column: str, shards: Iterable[int]) -> ColumnIndex:
        """The column's ledger with the records of these shards, as far as they are committed by now.

        For a store that is still being filled: what was read of a shard stays, what was committed since is added.
        """
        index = self.status(column)
        for shard in shards:
            rows = self.shard_rows(shard)
            if (index.status[rows.start : rows.stop] == NO_ROW).all():
                with contextlib.suppress(MissingRowError):
                    index.take_in(self.record(column, shard))
        return index

    def _ledger(self, column: str, view_ids: NDArray[np.int64]) -> ColumnIndex:
        """The column's ledger; looks once more for records of these views that it lacks."""
        index = self.status(column)
        if not index.has_records(view_ids):
            inside = view_ids[(view_ids >= 0) & (view_ids < self.header.rows)]
            self.catch_up(column, np.unique(inside // self.header.rows_per_shard).tolist())
        return index

    def _sealed_index(self, column: str) -> IndexFile | None:
        """The index, if it covers the column."""
        try:
            return self._index_file if self.is_indexed(column) else None
        except (CorruptionError, IdentityError):
            with settled_seal(self.root):
                self._forget_seal()
                return self._index_file if self.is_indexed(column) else None

    def _records(self, column: str) -> Iterator[CommitRecord]:
        """What is committed of a column; less what is taken back or exchanged meanwhile."""
        for shard in sorted(self.committed(column)):
            with contextlib.suppress(MissingRowError):
                yield self.record(column, shard)

    def _forget_seal(self) -> None:
        self.__dict__.pop("seal_record", None)
        self.__dict__.pop("_index_file", None)

    def ok_rows(self, columns: Sequence[str] | None = None) -> NDArray[np.int64]:
        """Views that have a target in all of these columns, ascending."""
        ok = np.ones(self.header.rows, bool)
        for name in self.checked_columns(columns):
            ok &= self.status(name).ok
        return np.flatnonzero(ok).astype(np.int64)

    def pixels_of(self, view_id: int, columns: Sequence[str] | None = None) -> SeenPixels:
        """The hash of this view's pixels and who decoded them: from the first column with a target.

        Args:
            columns: those that are read; when None all that are indexed, or all where none is.

        Raises:
            MissingRowError: no column has a record of the view.
            CorruptionError: the columns' targets come from different pixels.
        """
        # A column that is still being filled would have all its records read.
        indexed = [name for name in self.columns if self.is_indexed(name)] or None
        names = self.checked_columns(indexed if columns is None else columns)
        ledgers = [self._ledger(name, np.array([view_id])) for name in names]
        known = [ledger for ledger in ledgers if view_id in ledger] or ledgers[:1]
        seen = {ledger.column: ledger.seen_pixels(view_id) for ledger in known}
        hashed = {name: one for name, one in seen.items() if one.pixels}
        if len({one.pixels for one in hashed.values()}) > 1:
            found = ", ".join(f"{one.pixels} with {one.decoder} in {name}" for name, one in hashed.items())
            raise CorruptionError(
                f"{self.root}: the columns' targets of view {view_id} come from different pixels: hash {found}. "
                f"{repair_shard(self.root)}"
            )
        return next(iter((hashed or seen).values()))

    def pixel_hash(self, view_id: int, columns: Sequence[str] | None = None) -> str:
        """xxh3 (hex) of the pixels that the columns' teachers saw; empty for a view without target. See `pixels_of`."""
        return self.pixels_of(view_id, columns).pixels

    @cached_property
    def _index_file(self) -> IndexFile:
        assert self.seal_record is not None
        return IndexFile(self.index_path, self.header, self.seal_record, write_derived(self.root))


def _indices(name: str, given: Sequence[int] | NDArray[Any]) -> NDArray[np.int64]:
    """Row or token numbers as int64; a mask or fractions would silently become other numbers."""
    array = np.asarray(given)
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise IdentityError(f"{name} must be integers, not {array.dtype}: a mask is given by np.flatnonzero(mask)")
    return array.astype(np.int64)
