"""The clips that models are compared on: views of a store, or the middle of some videos of a catalog."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mvd_offline.analysis.models import Models
from mvd_offline.errors import UsageError
from mvd_offline.extraction.clips import clips_are_complete, stored_clip
from mvd_offline.geometry import TokenGrid
from mvd_offline.local import resolve_root
from mvd_offline.recipe import ViewSection
from mvd_offline.shards.schema import CLIPS
from mvd_offline.shards.statistics import drawn_rows
from mvd_offline.shards.store import Store
from mvd_offline.video.catalog import Catalog
from mvd_offline.video.feed import RenderFeed
from mvd_offline.video.views import Plan, View

Features: TypeAlias = NDArray[np.float32]
"""(N, D), in t, h, w order."""

WORKERS: Final = 2
"""Decode processes: the models take longer than they do."""
TIMEOUT_SECONDS: Final = 60.0


@dataclass(frozen=True)
class Clip:
    """A view, and its pixels, uint8 (T, S, S, 3), by side."""

    view: View
    pixels: Mapping[int, NDArray[np.uint8]]


@dataclass
class Unread:
    """Videos of which a view could not be read, with the reason of the last one."""

    reasons: dict[str, str] = field(default_factory=dict)


class ClipSource(Protocol):
    """Where clips come from; the same ones each time."""

    unread: Unread

    @property
    def views(self) -> Sequence[int]:
        """Ids of the views that were drawn, ascending."""

    @property
    def grids(self) -> Mapping[str, TokenGrid]:
        """Names and token grids of the features that are stored."""

    def stored(self, view_id: int) -> dict[str, Features]:
        """Those of a view."""

    def repeating(self) -> int:
        """How many of the clips show a frame twice, as those of videos that are shorter than a clip."""

    def clips(self, sizes: Sequence[int]) -> Iterator[Clip]:
        """Those that can be read, in order; the others are noted in `unread`."""


class StoreClips:
    """Views of a store that every column has a target of, drawn by a seed."""

    def __init__(self, store: Store, *, clips: int, seed: int, root: Path | None = None) -> None:
        """
        Raises:
            UsageError: no view has a target in every column.
        """
        self.store, self.unread, self._root = store, Unread(), root
        rows = store.ok_rows(store.target_columns)
        if not len(rows):
            raise UsageError(
                f"{store.root}: no view has a target in every column yet; run `mvd-offline extract` on it."
            )
        self.plan = Plan.read(store.plan_path)
        self.views: Sequence[int] = drawn_rows(rows, clips, seed).tolist()
        grid, columns = self.plan.section.grid, store.header.columns
        # A mean over tokens has no places.
        self.grids = {name: grid for name in store.target_columns if columns[name].tokens == grid.num_tokens}

    def stored(self, view_id: int) -> dict[str, Features]:
        found = self.store.read([view_id], list(self.grids))
        return {name: rows[0].astype(np.float32) for name, rows in found.items()}

    def repeating(self) -> int:
        return sum(map(_repeats, (self.plan[view_id] for view_id in self.views)))

    def clips(self, sizes: Sequence[int]) -> Iterator[Clip]:
        store = self.store
        root = None if clips_are_complete(store) else resolve_root(store.root, self._root)
        feed = RenderFeed(
            root,
            sizes,
            workers=WORKERS,
            timeout_seconds=TIMEOUT_SECONDS,
            ahead=2,
            clips=store.header.columns.get(CLIPS),
            stored=lambda view: stored_clip(store, view),
        )
        return _read(feed, [self.plan[view_id] for view_id in self.views], self.unread)


class CatalogClips:
    """One view of each of some videos of a catalog, drawn by a seed among those that the scan could read."""

    def __init__(self, path: Path, section: ViewSection, *, clips: int, seed: int) -> None:
        """
        Raises:
            UsageError: no such catalog, or no video in it that can be read.
        """
        catalog = Catalog.read(path)
        readable = [video for video in catalog.videos if video.status == "ok"]
        if not readable:
            raise UsageError(f"{path}: none of its videos can be read.")
        chosen = drawn_rows(np.arange(len(readable)), clips, seed)
        some = Catalog(tuple(readable[place] for place in chosen), catalog.root, catalog.classes)
        self._plan, self._root = Plan.from_catalog(some, section, len(chosen)), catalog.root
        self.unread, self.views = Unread(), self._plan.view_ids.tolist()
        self.grids: Mapping[str, TokenGrid] = {}

    def stored(self, view_id: int) -> dict[str, Features]:
        del view_id
        return {}

    def repeating(self) -> int:
        return sum(map(_repeats, self._plan))

    def clips(self, sizes: Sequence[int]) -> Iterator[Clip]:
        feed = RenderFeed(self._root, sizes, workers=WORKERS, timeout_seconds=TIMEOUT_SECONDS, ahead=2)
        return _read(feed, list(self._plan), self.unread)


def features_of(source: ClipSource, models: Models | None, *, still: bool = False) -> Iterator[dict[str, Features]]:
    """What is stored of each clip, and what models make of it; no video is read where there are none.

    With `still`, also what models make of its first frame, repeated, under `still_name`.
    """
    if models is None:
        yield from (source.stored(view_id) for view_id in source.views)
        return
    for clip in source.clips(models.sizes):
        found = source.stored(clip.view.view_id) | models.features(clip.pixels)
        if still:
            frozen = {size: np.repeat(pixels[:1], len(pixels), axis=0) for size, pixels in clip.pixels.items()}
            found |= {still_name(name): features for name, features in models.features(frozen).items()}
        yield found


def still_name(name: str) -> str:
    """What a model is called where it sees a clip in which nothing moves."""
    return f"{name}, still"


def _repeats(view: View) -> bool:
    return len(set(view.frame_indices)) < len(view.frame_indices)


def _read(feed: RenderFeed, views: Sequence[View], unread: Unread) -> Iterator[Clip]:
    with feed:
        for item in feed.items(views):
            if item.renderings is None:
                unread.reasons[item.view.video_id] = str(item.error)
            else:
                yield Clip(item.view, {size: one.pixels for size, one in item.renderings.items()})
