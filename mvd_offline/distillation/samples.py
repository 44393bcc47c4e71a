"""Which rows of a store a student learns from, and in what order."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mvd_offline.distillation.checking import read_columns
from mvd_offline.recipe import DistillRecipe
from mvd_offline.shards.store import Store
from mvd_offline.training.order import epoch_order
from mvd_offline.video.views import Plan


class Samples(Protocol):
    """The rows of each epoch of a run, by the numbers of `rows.RunRows`."""

    source: str
    """Identity of the data, as the order and the checkpoints name it."""

    def names(self) -> dict[str, str]:
        """What names the data of a run: another store, plan, teacher or set of usable rows is another run."""

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Rows of an epoch in the order in which they are seen."""

    def per_epoch(self) -> int:
        """The fewest rows that any epoch has."""


class StoreSamples:
    """The usable rows of one store by epoch: epoch e is group e mod V."""

    def __init__(self, recipe: DistillRecipe, store: Store) -> None:
        # All of it now: loader processes that are forked later share it, and want views in any order.
        self.source, self.plan = store.store_id, Plan.read(store.plan_path).load()
        self._recipe, self._store = recipe, store
        self._ok = self._usable_rows()

    def names(self) -> dict[str, str]:
        return {**store_names(self._recipe, self._store), "usable_rows": hash_of_rows(self._ok)}

    def order(self, epoch: int) -> NDArray[np.int64]:
        return group_order(self._recipe, self.source, self.plan, self._ok, epoch % self.plan.groups, epoch)

    def per_epoch(self) -> int:
        return int(min(self._ok[rows_of_group(self.plan, group)].sum() for group in range(self.plan.groups)))

    def _usable_rows(self) -> NDArray[np.bool_]:
        """For each row of the store's table, whether a student can learn from it."""
        columns = read_columns(self._recipe, self._store)
        if columns and all(map(self._store.is_indexed, columns)):
            for name in columns:
                self._store.status(name).load_for_reading()
            rows = self._store.ok_rows(columns)
        else:
            rows = self.plan.view_ids[self.plan.ok]
        usable = np.zeros(self.plan.rows, bool)
        usable[rows] = True
        return usable


def store_names(recipe: DistillRecipe, store: Store) -> dict[str, str]:
    """What names a store and the columns that a run reads of it, whatever became of its rows."""
    columns = [store.header.columns[name] for name in read_columns(recipe, store)]
    return {
        "plan_sha256": store.header.plan_sha256,
        "store_id": store.store_id,
        **{f"column_{column.name}": column.column_id for column in columns},
    }


def hash_of_rows(usable: NDArray[np.bool_]) -> str:
    return hashlib.sha256(np.packbits(usable).tobytes()).hexdigest()


def rows_of_group(plan: Plan, group: int) -> slice:
    """The part of a store's table that holds a group, the gap at its end included."""
    height = plan.rows // plan.groups
    return slice(group * height, (group + 1) * height)


def group_order(
    recipe: DistillRecipe, source: str, plan: Plan, usable: NDArray[np.bool_], group: int, epoch: int
) -> NDArray[np.int64]:
    """Usable rows of a group in the order in which `epoch` sees them.

    The clips of a video (`view.num_sample`), which are neighbours in the plan, stay together: what is shuffled is
    their first rows. They share a batch as long as no clip failed and their number divides the batch.
    """
    clips, start = plan.section.num_sample, rows_of_group(plan, group).start
    videos = usable[start : start + plan.videos * clips].reshape(-1, clips).any(axis=1)
    firsts = start + clips * np.flatnonzero(videos)
    starts = np.searchsorted(firsts, np.array(plan.shards(group)) * plan.rows_per_shard).tolist()
    shards = [firsts[one:other] for one, other in pairwise([*starts, len(firsts)])]
    training = recipe.training
    firsts = epoch_order(
        [rows for rows in shards if len(rows)],
        source=source,
        seed=training.seed,
        epoch=epoch,
        window=training.shuffle_window_shards,
    )
    ordered = (firsts[:, None] + np.arange(clips)).reshape(-1)
    return ordered[usable[ordered]]
