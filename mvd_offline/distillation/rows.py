"""Rows of a run, as its loader processes see them: views of one store, or of several under one numbering."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mvd_offline.distillation.checking import read_columns
from mvd_offline.recipe import DistillRecipe
from mvd_offline.shards.schema import CLIPS
from mvd_offline.shards.store import Store
from mvd_offline.video.baking import baked_clips
from mvd_offline.video.views import Plan, Rendered, View, render_sizes


@dataclass(frozen=True)
class StoreRows:
    """The views of one store, where their videos are, and what its teachers saw of them."""

    store: Store
    plan: Plan
    root: Path | None
    """Of the videos; None where the store has the clips."""
    checked: tuple[str, ...]
    """Columns whose recorded pixels must be those that are rendered."""

    @classmethod
    def of_store(cls, recipe: DistillRecipe, store: Store, plan: Plan, root: Path | None) -> StoreRows:
        columns = read_columns(recipe, store)
        # Online targets need no finished store; pixels that nobody hashed cannot be compared.
        checked = columns if recipe.targets == "cached" else filter(store.is_indexed, columns)
        return cls(store, plan, None if CLIPS in columns else root, tuple(checked))

    def pixels(self, view: View, sizes: Sequence[int]) -> dict[int, Rendered]:
        """What the teachers saw of a view, at each size.

        Raises:
            VideoError: the video cannot be read. CorruptionError: the stored clip is damaged.
        """
        if self.root is None:
            return baked_clips(self.store, [view.view_id], sizes)[0]
        return render_sizes(view, self.root, sizes)


class RunRows:
    """The views of a run by number.

    Of one store, a row's number is its `view_id`. Several stores lie one after the other, each as high as its table;
    where an epoch passes over a store more than once, the numbers of later passes lie beyond all of these, so that
    every draw that is keyed by a row's number is another one.

    >>> view, part = RunRows([one, other])[one.plan.rows + 3]   # doctest: +SKIP
    """

    def __init__(self, stores: Iterable[StoreRows]) -> None:
        self.stores = tuple(stores)
        heights = [part.plan.rows for part in self.stores]
        self._first = np.cumsum([0, *heights[:-1]])
        self._height = sum(heights)

    def __getitem__(self, row: int) -> tuple[View, StoreRows]:
        (part,), (view_id,) = self.split([row])
        return self.stores[part].plan[view_id], self.stores[part]

    @property
    def labels(self) -> tuple[str, ...]:
        """Short names of the stores, where there are several: what metrics call them."""
        return tuple(part.store.store_id[:8] for part in self.stores) if len(self.stores) > 1 else ()

    @property
    def clips(self) -> int:
        """Clips of each video, neighbours in their store: `view.num_sample`, which all stores share."""
        return self.stores[0].plan.section.num_sample

    def split(self, rows: Sequence[int] | NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For each row the position of its store, and its `view_id` there."""
        places = np.asarray(rows, np.int64) % self._height
        parts = np.searchsorted(self._first, places, side="right") - 1
        return parts, places - self._first[parts]

    def numbers(self, part: int, view_ids: NDArray[np.int64], passes: NDArray[np.int64] | int = 0) -> NDArray[np.int64]:
        """The numbers of a store's views; `passes` counts the passes over the store that the epoch began before."""
        return view_ids + self._first[part] + passes * self._height
