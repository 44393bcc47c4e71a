"""Sealing: all commit records in one file, written last, so that readers open one file and never list folders."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mvd_offline.shards import atomic
from mvd_offline.shards.creation import holds, publish_column_files
from mvd_offline.shards.errors import CorruptionError, repair_shard
from mvd_offline.shards.indexfile import index_bytes, record_batch
from mvd_offline.shards.schema import CommitRecord, SealRecord

if TYPE_CHECKING:
    from mvd_offline.shards.store import Store

MOST_SECONDS: Final = 2.0
"""How long a reader waits for who exchanges the index and its record: two files of some megabytes at most."""
_POLL_SECONDS: Final = 0.1


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
    batches = (record_batch(record) for name in sorted(complete) for record in _present_records(store, name))
    data = index_bytes(store.header, complete, batches)
    seal = SealRecord(
        store_id=store.store_id,
        columns={name: store.header.columns[name].column_id for name in complete},
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )
    if holds(store.index_path, data) and holds(store.seal_path, seal.to_bytes()):
        return
    # Killed in between, the store is not sealed, rather than sealed with a record of another index. A reader that comes
    # now finds no record, or holds the old one against the new index: it looks again, see `settled_seal`.
    atomic.remove_file(store.seal_path)
    atomic.publish_bytes(store.index_path, data)
    atomic.publish_bytes(store.seal_path, seal.to_bytes())


@contextlib.contextmanager
def settled_seal(root: Path) -> Iterator[None]:
    """Have index and seal stay as they are, for a reader that found them not to match: who seals holds the folder.

    Waits for a moment at most; a store that nobody is about to seal costs no time.
    """
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for _ in range(round(MOST_SECONDS / _POLL_SECONDS)):
            if not _is_held(descriptor):
                break
            time.sleep(_POLL_SECONDS)
        yield
    finally:
        # Not by closing alone: a process forked meanwhile has the descriptor too.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _is_held(descriptor: int) -> bool:
    """Whether a writer holds the folder; if not, none can from now on."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # no locks here: nothing to wait for
    return False


def _present_records(store: Store, column: str) -> Iterator[CommitRecord]:
    """Every record of a column, whose shard file is there with the size that it says."""
    for shard in range(store.shard_count):
        record, path = store.record(column, shard), store.shard_path(column, shard)
        size = path.stat().st_size if path.exists() else None
        if size != record.size:
            found = "is gone" if size is None else f"has {size} bytes, its record says {record.size}"
            raise CorruptionError(f"column {column}, shard {shard}: {path} {found}. {repair_shard(store.root)}")
        yield record
