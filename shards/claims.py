"""Who is at work on a shard: byte-range locks, so that several runs on one store help each other and never harm.

A run that takes shard n holds an exclusive lock on byte n of `plan.parquet`, whose bytes no run writes. The lock ends
with the process, however that ends; no clock is asked, nothing is left behind, and NFS passes it on to other hosts.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Final

from mvd_offline.shards import atomic
from mvd_offline.shards.errors import ClaimError, StoreError

POLL_SECONDS: Final = 0.2

_STORE_BYTE: Final = 1 << 40
"""Of the plan; no store has as many shards."""


class Claim:
    """A shard that is ours until it is released."""

    def __init__(self, claims: Claims, shard: int) -> None:
        self._claims, self.shard = claims, shard

    def release(self) -> None:
        """Let others have the shard; any thread may do this."""
        self._claims._release(self.shard)


class Claims:
    """The claims of one run on the shards of a store; closing it releases them all.

    >>> with Claims(store.plan_path) as claims:   # doctest: +SKIP
    ...     if claim := claims.try_take(3):
    ...         claim.release()
    """

    def __init__(self, plan: Path) -> None:
        """`plan` is the store's `plan.parquet`.

        Raises:
            StoreError: the file cannot be opened for writing, as a lock on it needs.
        """
        self._plan = plan
        self._held: set[int] = set()
        try:
            self._descriptor = os.open(plan, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise StoreError(
                f"{plan}: cannot be opened for writing ({error.strerror}). Nothing is ever written to it, but who "
                "works on a store locks its bytes. Make the store's folder and files writable for this user, or copy "
                "the store to where they are."
            ) from None

    def __enter__(self) -> Claims:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release everything."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            self._held.clear()

    def try_take(self, shard: int) -> Claim | None:
        """The shard's claim; None while somebody, this run included, has it.

        Raises:
            StoreError: the file system gives no locks.
        """
        # The locks are the open file's: for the system we may take again what we have.
        if shard in self._held or not self._lock(fcntl.F_WRLCK, shard, 1):
            return None
        self._held.add(shard)
        return Claim(self, shard)

    def take(self, shard: int, waiting: Callable[[], None] = lambda: None) -> Claim:
        """The shard's claim, as soon as it is free; `waiting` is called every now and then until it is."""
        while (claim := self.try_take(shard)) is None:
            waiting()
            time.sleep(POLL_SECONDS)
        return claim

    @contextlib.contextmanager
    def all_of(self, shards: int) -> Iterator[None]:
        """Have shards 0 to `shards` - 1 at once.

        Raises:
            ClaimError: another run is at work on one of them.
        """
        if not self._lock(fcntl.F_WRLCK, 0, shards):
            raise ClaimError(
                f"{self._plan.parent}: another run is at work on the store. Wait for its end, or stop it; then repeat."
            )
        try:
            yield
        finally:
            self._lock(fcntl.F_UNLCK, 0, shards)

    def _release(self, shard: int) -> None:
        if shard in self._held:
            self._lock(fcntl.F_UNLCK, shard, 1)
            self._held.discard(shard)

    def _lock(self, kind: int, start: int, length: int) -> bool:
        """Set a lock of the open file (not of the process, which would lose it with any other descriptor)."""
        request = struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0)
        try:
            fcntl.fcntl(self._descriptor, fcntl.F_OFD_SETLK, request)
        except (BlockingIOError, PermissionError):
            return False
        except OSError as error:
            raise StoreError(
                f"{self._plan}: the file system gives no locks ({error.strerror}), without which two runs could harm "
                "each other. Mount it with locks, or keep the store on another file system."
            ) from None
        return True


@contextlib.contextmanager
def store_lock(root: Path) -> Iterator[None]:
    """Hold what all shards share (header, index, seal) against other writers; waits for its turn.

    A lock of the folder reaches the processes of this host; that of a byte of the plan, past those of the shards,
    reaches other hosts as well, as soon as there is a plan.
    """
    with atomic.folder_lock(root), contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # not there yet, or nobody may write here: then nothing is to be guarded
            descriptor = os.open(root / "plan.parquet", os.O_RDWR | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            request = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, _STORE_BYTE, 1, 0)
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLKW, request)
        yield
