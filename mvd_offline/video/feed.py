"""Views rendered ahead of their use, in processes that can be timed out and killed."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TypeAlias

from mvd_offline.errors import VideoError
from mvd_offline.shards.schema import ColumnSpec
from mvd_offline.video.baking import Baked, render_baked, unpack_clip
from mvd_offline.video.views import Rendered, View, render_sizes
from mvd_offline.video.workers import DecodePool


@dataclass(frozen=True)
class FeedItem:
    """A view with its renderings by size, or with the reason why there is none."""

    view: View
    renderings: dict[int, Rendered] | None
    error: VideoError | None
    baked: Baked | None = None
    """What the store keeps of the clip, where it was baked just now; the renderings are of that."""
    seconds: float = 0.0
    """What a process took for the renderings."""


@dataclass(frozen=True)
class StoredClip:
    """A row of column `clips`, and who decoded the video when it was baked."""

    payload: memoryview
    decoder: str


_Made: TypeAlias = tuple[dict[int, Rendered], Baked | None, float] | VideoError
"""Renderings, what is baked of them, and the seconds that both took."""

_Waiting: TypeAlias = tuple[View, "Future[_Made] | VideoError"]


class RenderFeed:
    """Renders views in `workers` processes, at most a view for each and `ahead` more before they are asked for.

    Args:
        root: folder of the videos; None where every view is a stored clip.
        clips: the store's column of baked clips; None where it has none.
        stored: gives the stored clip of a view that is not to be baked again: then no video is decoded.

    A video that takes longer than `timeout_seconds`, or whose decoder takes its process down, becomes an error of
    that view; the process is replaced and the feed goes on. Renderings come back in the order asked for.
    """

    def __init__(
        self,
        root: Path | None,
        sizes: Iterable[int],
        *,
        workers: int,
        timeout_seconds: float,
        ahead: int,
        clips: ColumnSpec | None = None,
        stored: Callable[[View], StoredClip | VideoError | None] = lambda view: None,
    ) -> None:
        self._root, self._sizes = root, tuple(dict.fromkeys(sizes))
        self._ahead, self._clips, self._stored = ahead, clips, stored
        self._pool = DecodePool(workers, timeout_seconds)

    def __enter__(self) -> RenderFeed:
        self._pool.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.__exit__(kind, error, trace)

    @property
    def workers(self) -> int:
        return self._pool.workers

    def grow(self, workers: int) -> None:
        """Render in so many processes from the next view on; in no fewer than now."""
        self._pool.grow(workers)

    def items(self, views: Iterable[View]) -> Iterator[FeedItem]:
        """Begins with the first views at once, whenever they are asked for."""
        upcoming, waiting = iter(views), deque[_Waiting]()
        self._fill(waiting, upcoming)
        return self._items(waiting, upcoming)

    def _items(self, waiting: deque[_Waiting], upcoming: Iterator[View]) -> Iterator[FeedItem]:
        while waiting:
            yield self._collect(*waiting.popleft())
            self._fill(waiting, upcoming)

    def _fill(self, waiting: deque[_Waiting], upcoming: Iterator[View]) -> None:
        for view in islice(upcoming, max(0, self.workers + self._ahead - len(waiting))):
            waiting.append((view, self._submit(view)))

    def _submit(self, view: View) -> Future[_Made] | VideoError:
        if view.status != "ok":
            return VideoError(view.path, view.detail, status=view.status)
        stored = self._stored(view)
        if isinstance(stored, VideoError):
            return stored
        if stored is not None:
            assert self._clips is not None
            # Bytes: a memoryview does not travel to another process.
            return self._pool.submit(_unpack, bytes(stored.payload), self._clips, self._sizes, stored.decoder)
        assert self._root is not None
        return self._pool.submit(_render, view, self._root, self._sizes, self._clips)

    def _collect(self, view: View, made: Future[_Made] | VideoError) -> FeedItem:
        try:
            result = made if isinstance(made, VideoError) else self._pool.result(made, view.path)
        except VideoError as error:
            result = error
        if isinstance(result, VideoError):
            return FeedItem(view, None, result)
        renderings, baked, seconds = result
        return FeedItem(view, renderings, None, baked, seconds)


def _render(view: View, root: Path, sizes: tuple[int, ...], clips: ColumnSpec | None) -> _Made:
    began, baked = time.perf_counter(), None
    try:
        if clips is not None:
            renderings, baked = render_baked(view, root, clips.width, sizes, clips.codec)
        else:
            renderings = render_sizes(view, root, sizes)
    except VideoError as error:
        return error
    return renderings, baked, time.perf_counter() - began


def _unpack(payload: bytes, clips: ColumnSpec, sizes: tuple[int, ...], decoder: str) -> _Made:
    began = time.perf_counter()
    return unpack_clip(memoryview(payload), clips, sizes, decoder), None, time.perf_counter() - began
