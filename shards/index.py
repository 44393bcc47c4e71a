"""The ledger of a store as arrays: `index.parquet` on disk, one `ColumnIndex` a column in memory.

`index.parquet` is all commit records in one table, sorted by column and view. Its bytes are a function of the records
(and of the release of pyarrow that wrote them).
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from mvd_offline.shards.errors import CorruptionError, IdentityError, MissingRowError
from mvd_offline.shards.schema import (
    SCHEMA_VERSION,
    STATUSES,
    CommitRecord,
    RowRecord,
    SealRecord,
    StoreHeader,
    canonical_json,
)

if TYPE_CHECKING:
    import pyarrow as pa

NO_ROW: Final = 255
"""Status code of a view_id that has no record."""

CODING_MEASURES: Final = ("relative_error", "cosine_min", "cosine_mean", "max_abs_error")
"""Fields of a record that say what coding cost."""

_METADATA_KEY: Final = b"mvd_offline.index"


@dataclass(frozen=True, eq=False)
class ColumnIndex:
    """Where each row of one column is: arrays over the whole height of the table, indexed by view_id."""

    root: Path
    """Of the store; for what errors say."""
    column: str
    status: NDArray[np.uint8]
    """Position in STATUSES, or NO_ROW."""
    offset: NDArray[np.int64]
    length: NDArray[np.int64]
    crc32c: NDArray[np.uint32]
    pixels: NDArray[np.uint64]
    """xxh3 of the rendered pixels, where the row is ok."""
    decoder: NDArray[np.uint16]
    """Position in `decoders`."""
    decoders: list[str]
    coding: Mapping[str, NDArray[np.float64]] = field(repr=False)
    """What coding cost each row, by measure: see `codecs.CodingError`; 0 where the row is not ok."""
    details: dict[int, str] = field(repr=False)
    """Reason by view_id, for rows that are not ok."""

    @property
    def ok(self) -> NDArray[np.bool_]:
        """Which view_ids have a payload."""
        return self.status == 0

    @property
    def view_ids(self) -> NDArray[np.int64]:
        """Views that have a record, ascending."""
        return np.flatnonzero(self.status != NO_ROW).astype(np.int64)

    def __contains__(self, view_id: int) -> bool:
        """Whether the view has a record."""
        return 0 <= view_id < len(self.status) and bool(self.status[view_id] != NO_ROW)

    def counts(self) -> dict[str, int]:
        """Rows by status."""
        found = Counter(self.status.tolist())
        return {name: found[code] for code, name in enumerate(STATUSES) if found[code]}

    def require_ok(self, view_ids: NDArray[np.int64]) -> None:
        """Raises MissingRowError for the first view that has no payload."""
        inside = (view_ids >= 0) & (view_ids < len(self.status))
        if inside.all() and not self.status[view_ids].any():
            return
        bad = ~inside
        bad[inside] = self.status[view_ids[inside]] != 0
        raise MissingRowError(self._explain(int(view_ids[bad][0]), int(bad.sum())))

    def row(self, view_id: int) -> RowRecord:
        """The record of one view; raises MissingRowError when there is none."""
        if view_id not in self:
            raise MissingRowError(self._explain(view_id, 1))
        ok = self.status[view_id] == 0
        return RowRecord(
            view_id=view_id,
            status=STATUSES[self.status[view_id]],
            detail=self.details.get(view_id, ""),
            offset=int(self.offset[view_id]),
            length=int(self.length[view_id]),
            crc32c=int(self.crc32c[view_id]),
            pixels=f"{int(self.pixels[view_id]):016x}" if ok else "",
            decoder=self.decoders[self.decoder[view_id]],
            **{name: float(values[view_id]) for name, values in self.coding.items()},
        )

    def has_records(self, view_ids: NDArray[np.int64]) -> bool:
        """Whether each of these views has a record."""
        inside = (view_ids >= 0) & (view_ids < len(self.status))
        return bool(inside.all() and (self.status[view_ids] != NO_ROW).all())

    def take_in(self, record: CommitRecord) -> None:
        """Add the rows of a commit record, in place; other threads may read meanwhile."""
        for row in record.rows:
            place = row.view_id
            if row.decoder not in self.decoders:
                self.decoders.append(row.decoder)
            self.decoder[place] = self.decoders.index(row.decoder)
            self.offset[place], self.length[place], self.crc32c[place] = row.offset, row.length, row.crc32c
            self.pixels[place] = int(row.pixels or "0", 16)
            for measure, values in self.coding.items():
                values[place] = getattr(row, measure)
            if row.detail:
                self.details[place] = row.detail
            # Last: it says that the rest is there.
            self.status[place] = STATUSES.index(row.status)

    def _explain(self, view_id: int, count: int) -> str:
        others = f" (and {count - 1} more of the rows asked for)" if count > 1 else ""
        where = f"column {self.column}, row {view_id}{others}: "
        if not 0 <= view_id < len(self.status):
            return f"{where}no such row; the table has rows 0 to {len(self.status) - 1}."
        if self.status[view_id] == NO_ROW:
            return f"{where}no record: the plan has no such view, or its shard is not committed yet."
        status = STATUSES[self.status[view_id]]
        return (
            f"{where}there is no target, its status is {status}: {self.details.get(view_id, '')}. Ask "
            f"`Store.ok_rows()` for the rows that have one, or run `mvd-offline extract {self.root} --retry {status}` "
            "once its video can be read."
        )


def build_table(header: StoreHeader, columns: Mapping[str, Iterable[CommitRecord]]) -> pa.Table:
    """Records as one table; each column's come by ascending shard, one at a time in memory."""
    batches = [record_batch(record) for name in sorted(columns) for record in columns[name]]
    return join_batches(header, sorted(columns), batches)


def record_batch(record: CommitRecord) -> pa.RecordBatch:
    """The rows of one record in the index's columns."""
    import pyarrow as pa

    shared = {"column": record.column, "shard": record.shard}
    return pa.RecordBatch.from_pylist([{**row.to_json(), **shared} for row in record.rows], schema=_arrow_schema())


def join_batches(header: StoreHeader, columns: Sequence[str], batches: Sequence[pa.RecordBatch]) -> pa.Table:
    """The table of these batches, which come by column and shard."""
    import pyarrow as pa

    table = pa.Table.from_batches(batches, schema=_arrow_schema()).combine_chunks()
    identity = {
        "schema_version": SCHEMA_VERSION,
        "store_id": header.store_id,
        "columns": {name: header.columns[name].column_id for name in columns},
    }
    return table.replace_schema_metadata({_METADATA_KEY: canonical_json(identity)})


def table_bytes(table: pa.Table) -> bytes:
    """The content of `index.parquet`."""
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", compression_level=3, version="2.6", row_group_size=1 << 20)
    return sink.getvalue()


def read_table(data: bytes, header: StoreHeader, seal: SealRecord, repair: str) -> pa.Table:
    """The table in `index.parquet`, checked against its seal record and the store's identity.

    Args:
        repair: what to do when it does not match.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if len(data) != seal.size or hashlib.sha256(data).hexdigest() != seal.sha256:
        raise CorruptionError(
            "index.parquet: the file does not match its digest in commits/index.json. The commit records hold all that "
            f"is in it. {repair}"
        )
    # On one thread: the pool would cost more than it saves, and must not exist before a loader forks.
    table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
    expected = {"schema_version": SCHEMA_VERSION, "store_id": header.store_id, "columns": dict(seal.columns)}
    if (table.schema.metadata or {}).get(_METADATA_KEY) != canonical_json(expected):
        raise IdentityError(
            f"index.parquet: it was made for another store or other columns than store.json names. {repair}"
        )
    return table


def column_index(table: pa.Table, header: StoreHeader, column: str, root: Path) -> ColumnIndex:
    """The rows of one column of the store at `root`, as arrays."""
    import pyarrow.compute as pc

    part = table.filter(pc.equal(table["column"], column))
    ids = part["view_id"].to_numpy()
    if len(ids) and not (ids.min() >= 0 and ids.max() < header.rows):
        raise CorruptionError(f"the records of column {column} name rows outside 0 to {header.rows - 1}")

    def spread(values: NDArray[Any], dtype: Any, empty: int = 0) -> NDArray[Any]:
        array = np.full(header.rows, empty, dtype)
        array[ids] = values
        return array

    def codes(name: str) -> tuple[NDArray[np.int64], list[str]]:
        encoded = part[name].combine_chunks().dictionary_encode()
        return encoded.indices.to_numpy(), encoded.dictionary.to_pylist()

    status_codes, status_names = codes("status")
    order = np.array([STATUSES.index(name) for name in status_names], np.uint8)
    decoder_codes, decoders = codes("decoder")
    hashed, explained = (
        part.select(["view_id", name]).filter(pc.not_equal(part[name], "")) for name in ("pixels", "detail")
    )
    pixels = np.zeros(header.rows, np.uint64)
    pixels[hashed["view_id"].to_numpy()] = _hash_values(hashed["pixels"])
    return ColumnIndex(
        root=root,
        column=column,
        status=spread(order[status_codes] if len(ids) else order, np.uint8, NO_ROW),
        offset=spread(part["offset"].to_numpy(), np.int64),
        length=spread(part["length"].to_numpy(), np.int64),
        crc32c=spread(part["crc32c"].to_numpy(), np.uint32),
        pixels=pixels,
        decoder=spread(decoder_codes, np.uint16),
        decoders=decoders,
        coding={name: spread(part[name].to_numpy(), np.float64) for name in CODING_MEASURES},
        details=dict(zip(explained["view_id"].to_pylist(), explained["detail"].to_pylist(), strict=True)),
    )


def _hash_values(texts: pa.ChunkedArray) -> NDArray[np.uint64]:
    """Numbers of hashes of 16 hexadecimal digits each: all at once, for millions of rows."""
    return np.frombuffer(bytes.fromhex("".join(texts.to_pylist())), ">u8").astype(np.uint64)


def _arrow_schema() -> pa.Schema:
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
