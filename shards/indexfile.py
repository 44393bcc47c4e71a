"""`index.parquet`: all commit records in one table, sorted by column and view.

Its bytes are a function of the records (and of the release of pyarrow that wrote them). It is written and read one row
group after the other, so that neither needs the memory of the whole table; what a row group's statistics say already
is not read at all.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from mvd_offline.shards.errors import CorruptionError, IdentityError
from mvd_offline.shards.schema import SCHEMA_VERSION, CommitRecord, SealRecord, StoreHeader, canonical_json

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

CODING_MEASURES: Final = ("relative_error", "cosine_min", "cosine_mean", "max_abs_error")
"""Fields of a record that say what coding cost."""

GROUP_ROWS: Final = 1 << 20
"""Rows of a row group."""

_METADATA_KEY: Final = b"mvd_offline.index"
_FEW_VALUES: Final = ["column", "status", "detail", "decoder"]
"""Texts of which many rows have the same."""
_HASHED_BYTES: Final = 1 << 20
_JOINED_ROWS: Final = 1 << 13


# ---- writing -----------------------------------------------------------------------------------------------------


def build_table(header: StoreHeader, columns: Mapping[str, Iterable[CommitRecord]]) -> pa.Table:
    """Records as one table; each column's come by ascending shard, one at a time in memory."""
    batches = [record_batch(record) for name in sorted(columns) for record in columns[name]]
    return join_batches(header, sorted(columns), batches)


def record_batch(record: CommitRecord) -> pa.RecordBatch:
    """The rows of one record in the index's columns."""
    import pyarrow as pa

    schema, rows = index_schema(), [vars(row) for row in record.rows]
    values = {one.name: [row[one.name] for row in rows] for one in schema if one.name not in ("column", "shard")}
    values |= {"column": [record.column] * len(rows), "shard": [record.shard] * len(rows)}
    return pa.RecordBatch.from_arrays([pa.array(values[one.name], one.type) for one in schema], schema=schema)


def join_batches(header: StoreHeader, columns: Sequence[str], batches: Sequence[pa.RecordBatch]) -> pa.Table:
    """The table of these batches, which come by column and shard."""
    import pyarrow as pa

    return pa.Table.from_batches(batches, schema=_schema_of(header, columns)).combine_chunks()


def index_bytes(header: StoreHeader, columns: Sequence[str], batches: Iterable[pa.RecordBatch]) -> memoryview:
    """The content of `index.parquet`; the batches come by column and shard, and are not kept."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink, schema = pa.BufferOutputStream(), _schema_of(header, sorted(columns))
    with pq.ParquetWriter(sink, schema, compression="zstd", compression_level=3, version="2.6") as writer:
        for table in _groups(schema, batches):
            writer.write_table(table, row_group_size=GROUP_ROWS)
    return memoryview(sink.getvalue()).cast("B")


def _groups(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The rows of all batches in tables of `GROUP_ROWS`, the last one less; an empty table where there is none."""
    import pyarrow as pa

    waiting: list[pa.RecordBatch] = []
    rows, whole = 0, 0
    for batch in _joined(schema, batches):
        waiting.append(batch)
        rows += len(batch)
        if rows >= GROUP_ROWS:
            table = pa.Table.from_batches(waiting, schema).combine_chunks()
            whole = rows - rows % GROUP_ROWS
            yield from (table.slice(start, GROUP_ROWS) for start in range(0, whole, GROUP_ROWS))
            waiting, rows = table.slice(whole).to_batches(), rows - whole
    if rows or not whole:
        yield pa.Table.from_batches(waiting, schema).combine_chunks()


def _joined(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same rows in fewer batches: one of a shard's few rows takes more memory than the rows."""
    import pyarrow as pa

    waiting: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        waiting.append(batch)
        rows += len(batch)
        if rows >= _JOINED_ROWS:
            yield from pa.Table.from_batches(waiting, schema).combine_chunks().to_batches()
            waiting, rows = [], 0
    yield from waiting


def index_schema() -> pa.Schema:
    """Columns of the index."""
    import pyarrow as pa

    kinds = {
        "column": pa.string(),
        "view_id": pa.int64(),
        "shard": pa.int32(),
        "status": pa.string(),
        "detail": pa.string(),
        "offset": pa.int64(),
        "length": pa.int64(),
        "crc32c": pa.uint32(),
        "pixels": pa.string(),
        "decoder": pa.string(),
        **dict.fromkeys(CODING_MEASURES, pa.float64()),
    }
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in kinds.items()])


def _schema_of(header: StoreHeader, columns: Sequence[str]) -> pa.Schema:
    identity = {
        "schema_version": SCHEMA_VERSION,
        "store_id": header.store_id,
        "columns": {name: header.columns[name].column_id for name in columns},
    }
    return index_schema().with_metadata({_METADATA_KEY: canonical_json(identity)})


# ---- reading -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class IndexPart:
    """Rows of one column that follow each other in the index; their values are read when they are asked for."""

    rows: int
    ranges: Mapping[str, tuple[Any, Any]]
    """Least and greatest value of some of the index's columns, where they are known without reading it."""
    read: Callable[[str], pa.Array] = field(repr=False)

    def places(self) -> slice | NDArray[np.int64]:
        """The rows' view_ids."""
        low, high = self.ranges.get("view_id", (0, -1))
        if high - low + 1 == self.rows:
            return slice(low, high + 1)  # they ascend, each is there once
        found: NDArray[np.int64] = self.read("view_id").to_numpy()
        return found

    def numbers(self, name: str) -> NDArray[Any] | int:
        """The values of a column of numbers; one for all where they are the same."""
        low, high = self.ranges.get(name, (0, 1))
        return low if low == high else self.read(name).to_numpy()

    def codes(self, name: str) -> tuple[NDArray[np.int64] | int, list[str]]:
        """The values of a column of text: positions in the list of those that there are."""
        low, high = self.ranges.get(name, ("", "more"))
        if low == high:
            return 0, [low]
        encoded = self.read(name).dictionary_encode()
        return encoded.indices.to_numpy(), encoded.dictionary.to_pylist()


def parts_of_table(table: pa.Table, column: str) -> list[IndexPart]:
    """The rows of one column of a table in memory."""
    import pyarrow.compute as pc

    found = table.filter(pc.equal(table["column"], column))
    return [IndexPart(len(found), {}, lambda name: found[name].combine_chunks())]


class IndexFile:
    """An index whose bytes were checked. It stays open: what is read later comes from the very file that was checked.

    Threads and forked processes may share it.
    """

    def __init__(self, path: Path, header: StoreHeader, seal: SealRecord, repair: str) -> None:
        """Opens it, and checks it against its seal record and the store's identity.

        Args:
            repair: what to do when it is not what they say.

        Raises:
            CorruptionError, IdentityError.
        """
        import pyarrow.parquet as pq

        self._file, size, digest = open_hashed(path, repair)
        if (size, digest) != (seal.size, seal.sha256):
            raise CorruptionError(
                "index.parquet: the file does not match its digest in commits/index.json. The commit records hold all "
                f"that is in it. {repair}"
            )
        self._metadata = pq.read_metadata(self._file)
        expected = {"schema_version": SCHEMA_VERSION, "store_id": header.store_id, "columns": dict(seal.columns)}
        if (self._metadata.metadata or {}).get(_METADATA_KEY) != canonical_json(expected):
            raise IdentityError(
                f"index.parquet: it was made for another store or other columns than store.json names. {repair}"
            )

    def table(self) -> pa.Table:
        """All of it."""
        return self._reader().read(use_threads=False)

    def parts(self, column: str) -> list[IndexPart]:
        """The rows of one column of the store, by row group."""
        found = []
        for group in range(self._metadata.num_row_groups):
            rows, ranges = self._metadata.row_group(group).num_rows, self._ranges(group)
            low, high = ranges.get("column", ("", column))
            if low == high == column:
                found.append(IndexPart(rows, ranges, partial(self._read, group, slice(rows))))
            elif low <= column <= high:
                names = self._read(group, slice(rows), "column")
                places = np.flatnonzero(names.indices.to_numpy() == names.dictionary.index(column).as_py())
                if len(places):
                    # One run: the table is sorted by column.
                    run = slice(int(places[0]), int(places[-1]) + 1)
                    found.append(IndexPart(len(places), {}, partial(self._read, group, run)))
        return found

    def _ranges(self, group: int) -> dict[str, tuple[Any, Any]]:
        """What a row group's statistics say. Not of floating-point numbers: theirs leave NaN out."""
        facts, found = self._metadata.row_group(group), {}
        for place in range(facts.num_columns):
            one = facts.column(place)
            if one.is_stats_set and one.statistics.has_min_max and one.physical_type != "DOUBLE":
                found[one.path_in_schema] = (one.statistics.min, one.statistics.max)
        return found

    def _read(self, group: int, run: slice, name: str) -> pa.Array:
        table = self._reader(_FEW_VALUES).read_row_group(group, [name], use_threads=False)
        return table[name].combine_chunks()[run]

    def _reader(self, read_dictionary: Sequence[str] = ()) -> pq.ParquetFile:
        # One for each call: threads cannot share one. And none that reads ahead: the pool of threads that does would
        # cost more than it saves, and must not exist before a loader forks.
        import pyarrow.parquet as pq

        return pq.ParquetFile(
            self._file, metadata=self._metadata, read_dictionary=list(read_dictionary), pre_buffer=False
        )


def open_hashed(path: Path, repair: str) -> tuple[pa.NativeFile, int, str]:
    """A file, opened, with its size and the sha256 of its content, which is not held in memory.

    Raises:
        CorruptionError: it is gone or cannot be read; ends with `repair`.
    """
    import pyarrow as pa

    digest, size, buffer = hashlib.sha256(), 0, memoryview(bytearray(_HASHED_BYTES))
    try:
        file = pa.OSFile(str(path))
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            size += count
    except FileNotFoundError:
        raise CorruptionError(f"{path} is gone. {repair}".rstrip()) from None
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise CorruptionError(f"{path} cannot be read ({why}). {repair}".rstrip()) from None
    return file, size, digest.hexdigest()
