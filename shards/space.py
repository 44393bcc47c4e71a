"""Running out of space while a store is filled: said with how much is still to be written."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mvd_offline.shards.errors import DiskFullError, MvdError

if TYPE_CHECKING:
    from mvd_offline.shards.store import Store


@contextlib.contextmanager
def full_disk_explained(store: Store) -> Iterator[None]:
    """An OSError that says that there is no space left becomes a DiskFullError that says how much is needed."""
    try:
        yield
    except OSError as error:
        if isinstance(error, MvdError) or error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        what = "the disk is full" if error.errno == errno.ENOSPC else "the disk quota is used up"
        shards, needed = still_to_write(store)
        raise DiskFullError(
            f"{store.root}: {what} ({error.filename} cannot be written; {_size(shutil.disk_usage(store.root).free)} "
            f"are free there). Still to be written are {shards} shards, about {_size(needed)}. What is committed is "
            "safe. Make room on that disk, then run the same command again; it makes only what is missing."
        ) from error


def still_to_write(store: Store) -> tuple[int, int]:
    """Shards of all columns that are not committed, and the bytes of their payloads if no row fails."""
    pending = [(column, shard) for column in store.columns for shard in store.pending(column)]
    return len(pending), sum(len(store.shard_view_ids(shard)) * store.row_bytes(column) for column, shard in pending)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"
