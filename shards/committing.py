"""How a shard becomes part of a store, is exchanged for another, and is taken back.

A new shard: its file is renamed to its name, then its commit record published. A shard that is exchanged has both
names taken already, and two renames cannot be one. So the new record first stands as `NNNNNN.next` beside the old
one: from then on neither counts. The new file takes the old one's name, and the new record the old one's. Killed in
between, the file itself says which of the two records is true; see `settle`.

Callers hold the shard's claim, where other writers may be about.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mvd_offline.shards import atomic
from mvd_offline.shards.claims import store_lock
from mvd_offline.shards.errors import CorruptionError, IdentityError, StoreError
from mvd_offline.shards.schema import CommitRecord
from mvd_offline.shards.shardfile import check_file

if TYPE_CHECKING:
    from mvd_offline.shards.store import Store


def publish_shard(store: Store, file: atomic.TemporaryFile, record: CommitRecord) -> None:
    """Commit a shard whose file is written, on disk and checked."""
    column, shard = record.column, record.shard
    target, following = store.record_path(column, shard), store.next_record_path(column, shard)
    if not target.exists():
        with store_lock(store.root):
            _unseal(store, column)
        file.publish()
        atomic.publish_bytes(target, record.to_bytes())
        return
    # Under the lock: who seals meanwhile either comes before, and is unsealed, or sees a shard that is not committed.
    with store_lock(store.root):
        _unseal(store, column)
        atomic.publish_bytes(following, record.to_bytes())
    file.publish()
    atomic.rename_file(following, target)


def settle(store: Store, column: str, shard: int) -> None:
    """Finish or take back an exchange that a killed writer left half done.

    The shard is committed again if its file is what one of the two records says, and pending otherwise.
    """
    current, following = store.record_path(column, shard), store.next_record_path(column, shard)
    if not following.exists():
        return
    if _is_true(store, column, shard, following.read_bytes()):
        atomic.rename_file(following, current)
    elif current.exists() and _is_true(store, column, shard, current.read_bytes()):
        atomic.remove_file(following)
    else:
        withdraw(store, column, shard)
    store.refresh()


def withdraw(store: Store, column: str, shard: int) -> bool:
    """Take back a shard's commit, and the seal that covers it; returns whether it was committed."""
    committed = store.is_committed(column, shard)
    with store_lock(store.root):
        _unseal(store, column)
        # In this order: without its `next` the old record would count again.
        atomic.remove_file(store.record_path(column, shard))
        atomic.remove_file(store.next_record_path(column, shard))
    store.refresh()
    return committed


def _is_true(store: Store, column: str, shard: int, data: bytes) -> bool:
    """Whether the shard's file is, to the byte, what this record of the column says."""
    try:
        record = CommitRecord.from_bytes(data)
    except StoreError:
        return False
    is_ours = (record.store_id, record.column_id) == (store.store_id, store.header.columns[column].column_id)
    return is_ours and not check_file(store.shard_path(column, shard), record, store.layout(column, shard))


def _unseal(store: Store, column: str) -> None:
    """Remove a seal that covers the column: its index would be out of date."""
    store.refresh()
    try:
        covered = store.seal_record is not None and column in store.seal_record.columns
    except (CorruptionError, IdentityError):
        covered = True  # a seal that cannot be read protects nothing
    if covered:
        atomic.remove_file(store.seal_path)
        store.refresh()
