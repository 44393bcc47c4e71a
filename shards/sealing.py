"""Sealing: all commit records in one file, written last, so that readers open one file and never list folders."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mvd_offline.shards import atomic
from mvd_offline.shards.creation import holds, publish_column_files
from mvd_offline.shards.errors import CorruptionError, repair_shard
from mvd_offline.shards.index import build_table, table_bytes
from mvd_offline.shards.schema import CommitRecord, SealRecord

if TYPE_CHECKING:
    from mvd_offline.shards.store import Store


def write_index(store: Store) -> None:
    """Write everything that is derived from the commit records of the columns that are complete.

    The same bytes every time. Columns that are still being filled take no part: readers of the others do not wait for
    them. The caller holds the folder's lock, and has read store.json under it.

    Raises:
        CorruptionError: a shard file is gone or has another size than its record says.
    """
    complete = [name for name in store.columns if not store.pending(name)]
    publish_column_files(store.root, store.header)
    if not complete:
        atomic.remove_file(store.seal_path)
        return
    data = table_bytes(build_table(store.header, {name: _present_records(store, name) for name in complete}))
    seal = SealRecord(
        store_id=store.store_id,
        columns={name: store.header.columns[name].column_id for name in complete},
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )
    if holds(store.index_path, data) and holds(store.seal_path, seal.to_bytes()):
        return
    # Without its record the index counts for nothing: no reader meets a new index with an old record.
    atomic.remove_file(store.seal_path)
    atomic.publish_bytes(store.index_path, data)
    atomic.publish_bytes(store.seal_path, seal.to_bytes())


def _present_records(store: Store, column: str) -> Iterator[CommitRecord]:
    """Every record of a column, whose shard file is there with the size that it says."""
    for shard in range(store.shard_count):
        record, path = store.record(column, shard), store.shard_path(column, shard)
        size = path.stat().st_size if path.exists() else None
        if size != record.size:
            found = "is gone" if size is None else f"has {size} bytes, its record says {record.size}"
            raise CorruptionError(f"column {column}, shard {shard}: {path} {found}. {repair_shard(store.root)}")
        yield record
