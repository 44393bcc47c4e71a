"""Which shards a process works on: its share, then what nobody else does, each claimed just before its work begins."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mvd_offline.shards.claims import Claim, Claims
from mvd_offline.shards.schema import STATUSES, CommitRecord
from mvd_offline.shards.store import Store
from mvd_offline.video.views import Plan

WorkList: TypeAlias = "list[tuple[int, list[str]]]"
"""Shards, ascending, each with the columns that have something to do."""


@dataclass(frozen=True)
class Entry:
    """A shard to look at."""

    shard: int
    may_retry: bool
    """Whether its failed rows are tried again; once a run is enough."""


@dataclass(frozen=True)
class ShardTask:
    """A shard that is ours, and what is to be done in it."""

    view_ids: NDArray[np.int64]
    """All views of the shard, ascending."""
    claim: Claim
    wanted: Mapping[str, frozenset[int]]
    """By column, the views whose targets are to be computed."""
    kept: Mapping[str, CommitRecord]
    """By column that is committed already, the record whose other rows stay as they are."""

    @property
    def shard(self) -> int:
        return self.claim.shard

    @cached_property
    def rendered(self) -> frozenset[int]:
        """Views that at least one column wants."""
        return frozenset[int]().union(*self.wanted.values())


class ShardWork:
    """What is to be done in a store: shards that are not committed, and failed rows that are tried again."""

    def __init__(self, store: Store, plan: Plan, retry: Sequence[str] = ()) -> None:
        """`retry` names the statuses whose rows are tried again."""
        self.plan = plan
        self._store, self._retry = store, frozenset(retry)
        self._columns: Sequence[str] = store.columns

    def list_all(self) -> WorkList:
        """Every shard with something to do, whoever does it."""
        store = self._store
        columns = {name: {*store.pending(name), *self._failed_shards(name)} for name in store.columns}
        work = [(shard, [c for c, found in columns.items() if shard in found]) for shard in range(store.shard_count)]
        return [(shard, names) for shard, names in work if names]

    def only(self, columns: Iterable[str]) -> None:
        """Leave other columns alone, for which there is no teacher: a repair may have set shards of theirs aside."""
        self._columns = sorted(columns)

    def _failed_shards(self, column: str) -> set[int]:
        """Shards with a row to try again."""
        if not self._retry:
            return set()
        codes = [STATUSES.index(status) for status in self._retry]
        views = np.flatnonzero(np.isin(self._store.status(column).status, codes)).tolist()
        return {view // self._store.header.rows_per_shard for view in views if self._can_heal(view)}

    def _can_heal(self, view_id: int) -> bool:
        """What the scan found broken the plan fixes; trying again cannot heal it."""
        return self.plan[view_id].status == "ok"

    def entries(self, work: WorkList, rank: int, ranks: int) -> list[Entry]:
        """The order in which one of several processes looks at the work.

        First comes its own share. The others' shares follow from their ends, where their owners are last.
        """
        mine = [Entry(shard, may_retry=True) for shard, _ in work[rank::ranks]]
        own = {entry.shard for entry in mine}
        return mine + [Entry(shard, may_retry=False) for shard, _ in reversed(work) if shard not in own]

    def tasks(
        self, entries: Sequence[Entry], claims: Claims, *, busy: list[Entry], on_done: Callable[[Entry], None]
    ) -> Iterator[ShardTask]:
        """Claim shard after shard, each when it is asked for.

        Args:
            busy: takes the entries that somebody else is at work on.
            on_done: told of entries that have nothing (more) to do.
        """
        for entry in entries:
            if self._is_done(entry):
                on_done(entry)
            elif (claim := claims.try_take(entry.shard)) is None:
                busy.append(entry)
            elif (task := self._task(entry, claim)) is not None:
                yield task
            else:
                claim.release()
                on_done(entry)

    def _is_done(self, entry: Entry) -> bool:
        return not entry.may_retry and all(self._store.is_committed(name, entry.shard) for name in self._columns)

    def _task(self, entry: Entry, claim: Claim) -> ShardTask | None:
        """What is to be done now that nobody else can do it; None if somebody did it all meanwhile."""
        store, shard = self._store, entry.shard
        store.require_columns()
        views = store.shard_view_ids(shard)
        wanted: dict[str, frozenset[int]] = {}
        kept: dict[str, CommitRecord] = {}
        for name in self._columns:
            store.settle(name, shard)
            if not store.is_committed(name, shard):
                wanted[name] = frozenset(views.tolist())
            elif self._retry and entry.may_retry:
                record = store.record(name, shard)
                failed = [row.view_id for row in record.rows if row.status in self._retry]
                if again := frozenset(view for view in failed if self._can_heal(view)):
                    wanted[name], kept[name] = again, record
        return ShardTask(views, claim, wanted, kept) if wanted else None
