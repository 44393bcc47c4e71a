"""A store in another form: its rows in another container, or as plain numpy files.

Both go shard by shard, hold one row in memory, and may be killed: run again, they keep what is done.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mvd_offline.shards import atomic
from mvd_offline.shards.claims import Claims
from mvd_offline.shards.codecs import get_codec
from mvd_offline.shards.containers import npy_header
from mvd_offline.shards.creation import LOCAL_FILE, read_file, read_header
from mvd_offline.shards.errors import CorruptionError, IdentityError
from mvd_offline.shards.exportfolder import EXPORT_FILE, ExportFolder
from mvd_offline.shards.schema import (
    CLIPS,
    SCHEMA_VERSION,
    ColumnSpec,
    CommitRecord,
    RowRecord,
    StoreHeader,
    seal_document,
)
from mvd_offline.shards.store import Store, create_store

FRAMING: Final = ("offset", "length", "crc32c")
"""Fields of a row's record that say where its payload lies in the store, and nothing about the view."""


@dataclass
class ExportSummary:
    """What an export did. A view counts once for each column that is a file of its own."""

    shards: int = 0
    """Shard files written."""
    shards_kept: int = 0
    """Shard files that an earlier run had finished."""
    rows: int = 0
    """Rows with a target, in all files."""
    rows_without_target: int = 0
    bytes_written: int = 0


def export_store(
    source: Store,
    out: Path,
    container: str,
    *,
    columns: Sequence[str] | None = None,
    on_rows: Callable[[int, int], None] = lambda done, written: None,
) -> ExportSummary:
    """Make a complete, sealed store of the same rows in another container.

    Plan, store_id, records and payload bytes are those of `source`; each payload's crc32c is checked on the way.
    `export.json` is in the folder until all is there: only then are shards that differ from the source's exchanged.

    Args:
        source: a store whose `columns` are sealed.
        columns: what the new store holds; every column when None. One that holds others of `source` gets these too.
        on_rows: called with the numbers of rows done and bytes written.

    Raises:
        IdentityError: `out` lies inside the store, or holds something else, such as a store with other rows that is
            no unfinished export. CorruptionError: a row is damaged.
        ClaimError: another export into `out` is at work.
    """
    require_outside(source, out)
    names = source.checked_columns(columns)
    header = _in_container(source.header, names, container)
    _require_no_other_rows(source, out, header)
    target = create_store(out, header, read_file(source.plan_path))
    summary, done = ExportSummary(), 0
    with Claims(target.plan_path) as claims, claims.all_of(target.shard_count):
        _mark(target, export_identity(source, container, names))
        _copy_local_notes(source, target)
        target.clean_temporary()
        for column, shard in product(target.columns, range(source.shard_count)):
            record = checked_record(source, column, shard)
            # An export may have been killed while it exchanged the shard.
            target.settle(column, shard)
            kept = _holds(target, record)
            if not kept:
                _require_replaceable(target, column, shard)
                _copy_shard(source, target, record)
                summary.bytes_written += target.record(column, shard).size
            done += _count(summary, record, kept=kept)
            on_rows(done, summary.bytes_written)
        # Before the seal: a finished store is never marked, wherever this is killed.
        atomic.remove_file(target.root / EXPORT_FILE)
        target.seal()
    return summary


def export_npy(
    source: Store,
    out: Path,
    *,
    columns: Sequence[str] | None = None,
    on_rows: Callable[[int, int], None] = lambda done, written: None,
) -> ExportSummary:
    """Write `<column>/NNNNNN.npy`: the decoded targets (rows, N, D) of a shard's rows that have one, by ascending view.

    float16 targets stay float16, all others become float32, and clips are uint8 (rows, T, S, S, 3): what `Store.read`
    gives. `<column>/NNNNNN.json` beside it
    names the views in the array's order (`view_ids`), and every view of the shard with its status (`rows`).
    `plan.parquet` says what the views are. Arguments and errors as of `export_store`.
    """
    require_outside(source, out)
    names = source.checked_columns(columns)
    folder = ExportFolder(out, export_identity(source, "npy", names), names)
    folder.publish("plan.parquet", read_file(source.plan_path))
    summary, done = ExportSummary(), 0
    for column, shard in product(names, range(source.shard_count)):
        record, name = checked_record(source, column, shard), f"{column}/{shard:06d}.npy"
        digests = source_digests([record])
        kept = folder.is_done(name, digests)
        if not kept:
            facts = _npy_facts(source.header.columns[column], record)
            with folder.write(name, facts, digests) as sink:
                for part in _npy_parts(source, column, facts):
                    sink.write(part)
            summary.bytes_written += sink.size
        done += _count(summary, record, kept=kept)
        on_rows(done, summary.bytes_written)
    return summary


# ---- what exports share ------------------------------------------------------------------------------------------


def require_outside(source: Store, out: Path) -> None:
    """Raises IdentityError for a folder that is the store, or inside it."""
    root, folder = source.root.resolve(), out.resolve()
    if folder == root or root in folder.parents:
        raise IdentityError(
            f"{out} lies inside the store {source.root}: nothing is exported there. Choose another folder."
        )


def export_identity(source: Store, form: str, columns: Sequence[str], **options: Any) -> dict[str, Any]:
    """What `export.json` says: the form, the store, its columns as `store.json` describes them, and options."""
    specs = {name: source.header.columns[name].to_json() for name in columns}
    return {**source.header.identity, "store_id": source.store_id, "columns": specs, "format": form, **options}


def source_digests(records: Iterable[CommitRecord]) -> dict[str, str]:
    """sha256 of each commit record that a file is made of, by column."""
    return {record.column: hashlib.sha256(record.to_bytes()).hexdigest() for record in records}


def checked_record(source: Store, column: str, shard: int) -> CommitRecord:
    """The commit record of a shard, checked to be what the index says."""
    (column,) = source.checked_columns([column])
    record, index = source.record(column, shard), source.status(column)
    views = source.shard_view_ids(shard).tolist()
    if [row.view_id for row in record.rows] != views or any(row != index.row(row.view_id) for row in record.rows):
        raise CorruptionError(
            f"column {column}, shard {shard}: the commit record and index.parquet do not say the same. "
            f"Run `mvd-offline shards verify {source.root}`, which says what to do."
        )
    return record


def _count(summary: ExportSummary, record: CommitRecord, *, kept: bool) -> int:
    ok = sum(row.status == "ok" for row in record.rows)
    summary.rows += ok
    summary.rows_without_target += len(record.rows) - ok
    summary.shards += not kept
    summary.shards_kept += kept
    return len(record.rows)


# ---- another container -------------------------------------------------------------------------------------------


def _in_container(header: StoreHeader, columns: Sequence[str], container: str) -> StoreHeader:
    specs = {name: header.columns[name].to_json() | {"container": container} for name in columns}
    fields = {name: getattr(header, name) for name in StoreHeader.__dataclass_fields__}
    return StoreHeader(**{**fields, "columns": {name: ColumnSpec.from_json(spec) for name, spec in specs.items()}})


def _holds(target: Store, record: CommitRecord) -> bool:
    """Whether a shard is there with the same rows; those of the source may have been tried again since."""
    if not target.is_committed(record.column, record.shard):
        return False
    there = target.record(record.column, record.shard)
    return there.producer == record.producer and _placeless(there) == _placeless(record)


def _placeless(record: CommitRecord) -> list[RowRecord]:
    return [dataclasses.replace(row, offset=0) for row in record.rows]


def _is_unfinished_export(target: Store) -> bool:
    """Whether the folder is marked; one that another run has finished and sealed since is that run's."""
    return (target.root / EXPORT_FILE).exists() and not target.seal_path.exists()


def _mark(target: Store, identity: dict[str, Any]) -> None:
    """Say that an export fills the folder, unless it holds shards already."""
    if not any(target.committed(column) for column in target.columns):
        atomic.publish_bytes(target.root / EXPORT_FILE, seal_document({**identity, "schema_version": SCHEMA_VERSION}))


def _require_no_other_rows(source: Store, out: Path, header: StoreHeader) -> None:
    """Refuse a store whose shards the export would have to exchange, before anything is written to it."""
    if not (out / "store.json").exists() or (there := read_header(out)).store_id != header.store_id:
        return
    target = Store(out, there)
    # Another description of a column is refused when the columns are joined.
    shared = [name for name, spec in there.columns.items() if header.columns.get(name) == spec]
    for column in [] if _is_unfinished_export(target) else shared:
        for shard in sorted(target.committed(column)):
            if not _holds(target, checked_record(source, column, shard)):
                _require_replaceable(target, column, shard)


def _require_replaceable(target: Store, column: str, shard: int) -> None:
    """Raises IdentityError for a committed shard of a store that is no unfinished export."""
    if target.is_committed(column, shard) and not _is_unfinished_export(target):
        raise IdentityError(
            f"{target.root} holds a store with other rows: column {column}, shard {shard} differs from the source's, "
            f"and the folder is no unfinished export (those hold {EXPORT_FILE}), so nothing of it is replaced. Choose "
            "another folder, or remove this one if it is an older export that you no longer need."
        )


def _copy_shard(source: Store, target: Store, record: CommitRecord) -> None:
    with target.write_shard(record.column, record.shard, producer=record.producer, replace=True) as writer:
        for row in record.rows:
            if row.status == "ok":
                (payload,) = source.read_payloads(record.column, [row.view_id])
                writer.keep(row, payload)
            else:
                writer.fail(row.view_id, row.status, row.detail)


def _copy_local_notes(source: Store, target: Store) -> None:
    """The new store is on the same machine: it finds the videos and the weights where the old one does."""
    notes, copy = source.root / LOCAL_FILE, target.root / LOCAL_FILE
    if notes.is_file() and not copy.exists():
        atomic.publish_bytes(copy, notes.read_bytes())


# ---- numpy files -------------------------------------------------------------------------------------------------


def _npy_facts(spec: ColumnSpec, record: CommitRecord) -> dict[str, Any]:
    views = [row.view_id for row in record.rows if row.status == "ok"]
    rows = [{key: value for key, value in row.to_json().items() if key not in FRAMING} for row in record.rows]
    return {
        "store_id": record.store_id,
        "column": record.column,
        "column_id": record.column_id,
        "shard": record.shard,
        "producer": dict(record.producer),
        "dtype": "uint8" if spec.name == CLIPS else "float16" if spec.codec == "float16" else "float32",
        "shape": [len(views), *_row_shape(spec)],
        "view_ids": views,
        "rows": rows,
    }


def _row_shape(spec: ColumnSpec) -> tuple[int, ...]:
    return (spec.tokens, spec.width, spec.width, 3) if spec.name == CLIPS else (spec.tokens, spec.width)


def _npy_parts(source: Store, column: str, facts: dict[str, Any]) -> Iterable[memoryview | bytes]:
    yield npy_header(np.dtype(facts["dtype"]), facts["shape"])
    codec = get_codec(source.header.columns[column].codec)
    coded: NDArray[Any] | None = None
    for view_id in facts["view_ids"]:
        coded = source.read_coded(column, [view_id], out=coded)
        yield np.ascontiguousarray(codec.decode(coded)).reshape(-1).view(np.uint8).data
