"""What a store that is still being filled has by now."""

from __future__ import annotations

from collections.abc import Sequence, Set

import numpy as np
from numpy.typing import NDArray

from mvd_offline.distillation.samples import hash_of_rows, rows_of_group
from mvd_offline.shards.store import Store
from mvd_offline.video.views import Plan


class GrowingGroups:
    """Which groups of a store are complete in some columns, and which of their rows are usable."""

    def __init__(self, store: Store, plan: Plan, columns: Sequence[str]) -> None:
        self._store, self._plan, self._columns = store, plan, columns
        self._usable: dict[int, NDArray[np.bool_]] = {}

    def committed(self) -> set[int]:
        """Shards that are committed in every column."""
        return set.intersection(*map(self._store.committed, self._columns))

    def usable(self, group: int, committed: Set[int] | None = None) -> NDArray[np.bool_] | None:
        """For each row of the store's table whether it is a usable one of this group; None while it is incomplete.

        What it was once it stays: rows that are tried again later are not taken up.

        Args:
            committed: what `committed` gives, where the caller has it.
        """
        if group not in self._usable:
            shards = self._plan.shards(group)
            if not (self.committed() if committed is None else committed) >= set(shards):
                return None
            rows = np.zeros(self._plan.rows, bool)
            rows[rows_of_group(self._plan, group)] = True
            views = self._plan.view_ids[rows[self._plan.view_ids]]
            for column in self._columns:
                ledger = self._store.catch_up(column, shards)
                if not ledger.has_records(views):
                    return None  # a shard was taken back at this moment
                rows &= ledger.ok
            self._usable[group] = rows
        return self._usable[group]

    def complete(self) -> dict[int, NDArray[np.bool_]]:
        """Groups that are complete and have a usable row, with their usable rows."""
        committed = self.committed()
        found = {group: self.usable(group, committed) for group in range(self._plan.groups)}
        return {group: usable for group, usable in found.items() if usable is not None and usable.any()}

    def seen(self, group: int | None) -> dict[int, str]:
        """Hash of the usable rows of the group, if it is complete; of all `complete` ones when None."""
        if group is None:
            groups = self.complete()
        else:
            usable = self.usable(group)
            groups = {} if usable is None else {group: usable}
        return {group: hash_of_rows(usable[rows_of_group(self._plan, group)]) for group, usable in groups.items()}

    def look_again(self, groups: Sequence[int]) -> None:
        """Forget what these groups were, and read the store anew."""
        for group in groups:
            self._usable.pop(group, None)
        if groups:
            self._store.refresh()

    def count(self, group: int | None) -> tuple[int, int]:
        """Shards that are committed, of all shards: of a group, or of the store."""
        shards = range(self._store.shard_count) if group is None else self._plan.shards(group)
        return len(self.committed().intersection(shards)), len(shards)
