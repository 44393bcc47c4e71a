"""Rows of a run, as its loader processes see them: views of one store, or of several under one numbering."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mvd_offline.distillation.checking import read_columns
from mvd_offline.errors import UsageError
from mvd_offline.recipe import DistillRecipe
from mvd_offline.shards.schema import CLIPS
from mvd_offline.shards.store import Store
from mvd_offline.video.baking import fill_baked
from mvd_offline.video.views import Plan, View, render_sizes


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
        if recipe.unpack_clips == "device" and CLIPS not in columns:
            raise UsageError(
                f"unpack_clips is device, and {store.root} has no baked clips to unpack: set it to loader, or make a "
                "store with `mvd-offline extract --bake jpeg`."
            )
        # Online targets need no finished store; pixels that nobody hashed cannot be compared.
        checked = columns if recipe.targets == "cached" else filter(store.is_indexed, columns)
        return cls(store, plan, None if CLIPS in columns else root, tuple(checked))

    def fill(self, clips: Mapping[int, NDArray[np.uint8]], view_ids: Sequence[int]) -> list[str]:
        """Put what the teachers saw of these views into arrays (B, T, S, S, 3), by side S; returns who decoded each.

        Raises:
            VideoError: a video cannot be read. CorruptionError: a stored clip is damaged.
        """
        if self.root is None:
            return fill_baked(self.store, view_ids, clips)
        return [self._render(view_id, clips, place) for place, view_id in enumerate(view_ids)]

    def packed(self, view_ids: Sequence[int]) -> list[memoryview]:
        """The stored JPEGs of these views. Raises CorruptionError for a damaged one."""
        return self.store.read_payloads(CLIPS, view_ids)

    def _render(self, view_id: int, clips: Mapping[int, NDArray[np.uint8]], place: int) -> str:
        assert self.root is not None
        rendered = render_sizes(self.plan[view_id], self.root, tuple(clips))
        for side, clip in clips.items():
            clip[place] = rendered[side].pixels
        return next(iter(rendered.values())).decoder


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

    def stretches(self, rows: Sequence[int]) -> Iterator[tuple[int, slice, list[int]]]:
        """Rows that follow each other in one store: its position, their places in `rows`, their `view_id` there."""
        parts, views = self.split(rows)
        cuts = [0, *(np.flatnonzero(np.diff(parts)) + 1).tolist(), len(parts)]
        for start, stop in pairwise(cuts):
            yield int(parts[start]), slice(start, stop), views[start:stop].tolist()

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
