"""Writing behind the teachers: one thread writes and commits what they computed."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, Final

from numpy.typing import NDArray

from mvd_offline.extraction.coding import CodedBatch, CodingWatch
from mvd_offline.extraction.pixels import PixelWatch
from mvd_offline.extraction.summary import ExtractSummary
from mvd_offline.extraction.work import ShardTask
from mvd_offline.shards.codecs import CodingError
from mvd_offline.shards.errors import CorruptionError, repair_shard
from mvd_offline.shards.jpeg import jpeg_version
from mvd_offline.shards.schema import CLIPS, CommitRecord, RowRecord
from mvd_offline.shards.shardfile import ShardFile
from mvd_offline.shards.store import ShardWriter, Store
from mvd_offline.video.baking import Baked
from mvd_offline.video.feed import FeedItem
from mvd_offline.video.views import Rendered, pixel_hash

WRITE_AHEAD_BATCHES: Final = 4
"""Written results that may wait for the disk before the teachers do."""


class WriteBehind:
    """One thread that writes and commits while the teachers go on; at most a few batches wait for it."""

    def __init__(self, store: Store, summary: ExtractSummary, producer: Mapping[str, str]) -> None:
        self._store, self._summary, self._producer = store, summary, producer
        self._watches = {
            name: CodingWatch(store.header.columns[name], coding) for name, coding in summary.coding.items()
        }
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="write-behind")
        self._pending: list[Future[None]] = []
        self._open = ExitStack()
        self._columns: dict[str, _OpenShard] = {}
        self._failed = False

    def __enter__(self) -> WriteBehind:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if error is None:
                self._drain(0)
        finally:
            # What is not committed leaves nothing behind: its writers see the exception.
            self._thread.shutdown(wait=True, cancel_futures=True)
            self._open.__exit__(kind or RuntimeError, error or RuntimeError("not committed"), None)

    def begin(self, task: ShardTask) -> None:
        """Queue the opening of a shard's files."""
        self._submit(self._begin, task)

    def rows(self, task: ShardTask, items: Sequence[FeedItem], coded: Mapping[str, CodedBatch], size: int) -> None:
        """Queue the results of one batch; blocks while too many wait."""
        self._submit(self._rows, task, items, coded, size)

    def commit(self, task: ShardTask) -> None:
        """Queue the commit of the shard, after which its claim is released."""
        self._submit(self._commit, task)

    def _submit(self, action: Callable[..., None], *arguments: object) -> None:
        self._drain(WRITE_AHEAD_BATCHES - 1)
        self._pending.append(self._thread.submit(self._run, action, arguments))

    def _drain(self, most: int) -> None:
        while self._pending and (len(self._pending) > most or self._pending[0].done()):
            self._pending.pop(0).result()

    # ---- in the thread -----------------------------------------------------------------------------------------------

    def _run(self, action: Callable[..., None], arguments: Sequence[object]) -> None:
        """Do what was queued, unless something before it failed: that error is the one to hear of."""
        if self._failed:
            return
        began, rows = time.perf_counter(), self._summary.rows["ok"]
        try:
            action(*arguments)
        except BaseException:
            self._failed = True
            raise
        self._summary.rates.wrote(time.perf_counter() - began, self._summary.rows["ok"] - rows)

    def _begin(self, task: ShardTask) -> None:
        self._columns = {}
        self._pixels = PixelWatch(self._store, task.shard)
        for name, wanted in task.wanted.items():
            kept = task.kept.get(name)
            mine = {"jpeg": jpeg_version()} if name == CLIPS else self._producer
            producer = mine if kept is None else _both(kept.producer, mine)
            writer = self._open.enter_context(
                self._store.write_shard(name, task.shard, producer=producer, replace=kept is not None)
            )
            self._columns[name] = _OpenShard(self._store, writer, wanted, kept)

    def _rows(self, task: ShardTask, items: Sequence[FeedItem], coded: Mapping[str, CodedBatch], size: int) -> None:
        for slot, item in enumerate(items):
            view_id = item.view.view_id
            if view_id not in task.rendered:
                continue
            wanting = {name: column for name, column in self._columns.items() if view_id in task.wanted[name]}
            if item.renderings is None:
                self._fail(item, wanting)
                continue
            rendered: Rendered = item.renderings[size]
            pixels = pixel_hash(rendered.pixels)
            self._pixels.see(item.view, wanting, pixels=pixels, decoder=rendered.decoder)
            for name, column in wanting.items():
                if name == CLIPS:
                    assert item.baked is not None
                    row = column.add_clip(view_id, item.baked, pixels=pixels, decoder=rendered.decoder)
                    self._watches[name].see(row, None)
                else:
                    row = column.add(view_id, *coded[name].row(slot), pixels=pixels, decoder=rendered.decoder)
                    self._watches[name].see(row, coded[name].features[slot])
                self._summary.bytes_written += row.length
            self._summary.rows["ok"] += 1

    def _fail(self, item: FeedItem, wanting: Mapping[str, _OpenShard]) -> None:
        assert item.error is not None
        for column in wanting.values():
            column.fail(item.view.view_id, item.error.status, item.error.reason)
        self._summary.rows[item.error.status] += 1
        self._summary.failures.append((item.view.video_id, item.error.status, item.error.reason))

    def _commit(self, task: ShardTask) -> None:
        for name, column in self._columns.items():
            self._watches[name].close_shard(task.shard)
            self._summary.shards += column.finish()
        self._open.close()
        self._open = ExitStack()
        task.claim.release()


class _OpenShard:
    """One column of the shard that is being written: rows that are new, and those that stay as they were, in order."""

    def __init__(self, store: Store, writer: ShardWriter, wanted: frozenset[int], kept: CommitRecord | None) -> None:
        self._store, self._writer, self._record = store, writer, kept
        self._kept: deque[RowRecord] = deque()
        if kept is not None:
            self._kept.extend(row for row in kept.rows if row.view_id not in wanted)
            self._file = ShardFile(str(store.shard_path(kept.column, kept.shard)))

    def add(self, view_id: int, coded: NDArray[Any], error: CodingError, *, pixels: str, decoder: str) -> RowRecord:
        self._keep_before(view_id)
        return self._writer.add_coded(view_id, coded, error, pixels=pixels, decoder=decoder)

    def add_clip(self, view_id: int, baked: Baked, *, pixels: str, decoder: str) -> RowRecord:
        self._keep_before(view_id)
        return self._writer.add_packed(view_id, baked.payload, baked.error, pixels=pixels, decoder=decoder)

    def fail(self, view_id: int, status: str, reason: str) -> None:
        self._keep_before(view_id)
        self._writer.fail(view_id, status, reason)

    def finish(self) -> bool:
        """Take over the last rows; returns whether the shard is worth committing: a row's status or reason is new."""
        self._keep_before(None)
        before = [] if self._record is None else [(row.status, row.detail) for row in self._record.rows]
        self._writer.discarded = before == [(row.status, row.detail) for row in self._writer.rows]
        return not self._writer.discarded

    def _keep_before(self, view_id: int | None) -> None:
        """Take over the rows before a view as they were; all of them for None."""
        while self._kept and (view_id is None or self._kept[0].view_id < view_id):
            row = self._kept.popleft()
            if row.status == "ok":
                self._writer.keep(row, self._payload(row))
            else:
                self._writer.fail(row.view_id, row.status, row.detail)

    def _payload(self, row: RowRecord) -> memoryview:
        assert self._record is not None
        try:
            return self._file.payload(row)
        except (CorruptionError, OSError) as error:
            raise CorruptionError(
                f"column {self._record.column}, shard {self._record.shard}, row {row.view_id}: {error}. "
                f"{repair_shard(self._store.root)}"
            ) from None


def _both(before: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str]:
    """The producers of a shard whose rows were computed at different times; where they differ, both are named."""
    return {
        key: ", ".join(dict.fromkeys([*before.get(key, "").split(", "), now.get(key, "")])).strip(", ")
        for key in sorted({*before, *now})
    }
