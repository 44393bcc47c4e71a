"""Which rows of a store a student learns from, and in what order."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from mvd_offline.distillation.checking import present_columns
from mvd_offline.recipe import DistillRecipe
from mvd_offline.shards.store import Store
from mvd_offline.training.order import epoch_order
from mvd_offline.video.views import Plan


class StoreSamples:
    """The usable rows of one store by epoch: epoch e is group e mod V."""

    def __init__(self, recipe: DistillRecipe, store: Store) -> None:
        self._recipe, self._store = recipe, store
        self.plan = Plan.read(store.plan_path)
        self._ok = self._usable_rows()

    def names(self) -> dict[str, str]:
        """What names the data of a run: another store, plan, teacher or set of usable rows is another run."""
        header = self._store.header
        columns = [header.columns[name] for name in present_columns(self._recipe, self._store)]
        return {
            "plan_sha256": header.plan_sha256,
            "store_id": self._store.store_id,
            "usable_rows": hashlib.sha256(np.packbits(self._ok).tobytes()).hexdigest(),
            **{f"column_{column.name}": column.column_id for column in columns},
        }

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Rows of an epoch in the order in which they are seen."""
        training = self._recipe.training
        return epoch_order(
            self._shards(epoch),
            source=self._store.store_id,
            seed=training.seed,
            epoch=epoch,
            window=training.shuffle_window_shards,
        )

    def per_epoch(self) -> int:
        """The fewest rows that any epoch has."""
        return min(sum(map(len, self._shards(group))) for group in range(self.plan.groups))

    def _usable_rows(self) -> NDArray[np.bool_]:
        """For each row of the store's table, whether a student can learn from it."""
        columns = present_columns(self._recipe, self._store)
        if columns and all(map(self._store.is_indexed, columns)):
            rows = self._store.ok_rows(columns)
        else:
            rows = np.array([view.view_id for view in self.plan if view.status == "ok"], np.int64)
        usable = np.zeros(self.plan.rows, bool)
        usable[rows] = True
        return usable

    def _shards(self, epoch: int) -> list[NDArray[np.int64]]:
        group = epoch % self.plan.groups
        per_shard = [self.plan.shard_view_ids(shard) for shard in self.plan.shards(group)]
        usable = [rows[self._ok[rows]] for rows in per_shard]
        return [rows for rows in usable if len(rows)]
