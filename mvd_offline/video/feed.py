"""Views rendered ahead of their use, in processes that can be timed out and killed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from mvd_offline.errors import VideoError
from mvd_offline.video.views import Rendered, View, render_sizes
from mvd_offline.video.workers import DecodePool


@dataclass(frozen=True)
class FeedItem:
    """A view with its renderings by size, or with the reason why there is none."""

    view: View
    renderings: dict[int, Rendered] | None
    error: VideoError | None


class RenderFeed:
    """Renders views in `workers` processes, at most `ahead` views before they are asked for.

    A video that takes longer than `timeout_seconds`, or whose decoder takes its process down, becomes an error of
    that view; the process is replaced and the feed goes on. Renderings come back in the order asked for.
    """

    def __init__(self, root: Path, sizes: Iterable[int], *, workers: int, timeout_seconds: float, ahead: int) -> None:
        self._root, self._sizes = root, tuple(dict.fromkeys(sizes))
        self._ahead = ahead
        self._pool = DecodePool(workers, timeout_seconds)

    def __enter__(self) -> RenderFeed:
        self._pool.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.__exit__(kind, error, trace)

    def items(self, views: Iterable[View]) -> Iterator[FeedItem]:
        waiting: deque[tuple[View, Future[dict[int, Rendered] | VideoError] | None]] = deque()
        upcoming = iter(views)
        exhausted = False
        while True:
            while not exhausted and len(waiting) < self._ahead:
                view = next(upcoming, None)
                if view is None:
                    exhausted = True
                else:
                    waiting.append((view, self._submit(view)))
            if not waiting:
                return
            yield self._collect(*waiting.popleft())

    def _submit(self, view: View) -> Future[dict[int, Rendered] | VideoError] | None:
        if view.status != "ok":
            return None
        return self._pool.submit(_render, view, self._root, self._sizes)

    def _collect(self, view: View, future: Future[dict[int, Rendered] | VideoError] | None) -> FeedItem:
        if future is None:
            return FeedItem(view, None, VideoError(view.path, view.detail, status=view.status))
        try:
            result = self._pool.result(future, view.path)
        except VideoError as error:
            result = error
        if isinstance(result, VideoError):
            return FeedItem(view, None, result)
        return FeedItem(view, result, None)


def _render(view: View, root: Path, sizes: tuple[int, ...]) -> dict[int, Rendered] | VideoError:
    try:
        return render_sizes(view, root, sizes)
    except VideoError as error:
        return error
