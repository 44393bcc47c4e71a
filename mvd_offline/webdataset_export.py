"""A store's views with their frames and targets in webdataset shards that need nothing else, and none of our code."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mvd_offline.errors import MvdError, PixelMismatchError, UsageError
from mvd_offline.local import resolve_root
from mvd_offline.progress import WorkProgress
from mvd_offline.shards.containers import TAR_END, Buffer, npy_header, tar_member
from mvd_offline.shards.export import (
    ExportSummary,
    checked_record,
    export_identity,
    require_outside,
    source_digests,
)
from mvd_offline.shards.exportfolder import ExportFolder
from mvd_offline.shards.jpeg import split_frames
from mvd_offline.shards.schema import CLIPS
from mvd_offline.shards.store import Store, open_store
from mvd_offline.video.feed import FeedItem, RenderFeed
from mvd_offline.video.views import Plan, View, pixel_hash

Frames: TypeAlias = Literal["npy", "jpg", "none"]
"""How frames are stored: one uint8 array a view, one JPEG a frame, or not at all."""

JPEG_QUALITY: Final = 95
FAILED_FILE: Final = "failed.jsonl"

Pixels: TypeAlias = NDArray[np.uint8]


def export_webdataset(
    store_dir: Path,
    out: Path,
    *,
    columns: Sequence[str] | None = None,
    frames: Frames = "npy",
    root: Path | None = None,
    workers: int = 1,
    timeout_seconds: float = 60.0,
    quiet: bool = False,
) -> ExportSummary:
    """Write `NNNNNN.tar` for each shard, with a sample for each view that has a target in all of `columns`.

    A sample `NNNNNNNNN` (the view_id) has `frames.npy` (uint8 T, S, S, 3) or `frame00.jpg` and so on, `<column>.npy`
    (N, D; float16 or float32, as `Store.read` gives it) and `view.json`. The other views are in `failed.jsonl`, each
    with its statuses and reasons. The same store gives the same bytes (JPEGs: with the same Pillow). May be killed and
    run again.

    Args:
        root: folder of the videos, when it is not the one remembered.
        workers: decode processes.

    Raises:
        IdentityError: `out` lies inside the store, or holds something else.
        PixelMismatchError: a view renders to other pixels than its teachers saw.
        CorruptionError: the columns' targets of a view come from different pixels.
        MvdError: the video of a view that has targets cannot be read any more.
    """
    store = open_store(store_dir, columns=columns)
    # Baked clips are the frames themselves.
    names, plan = store.checked_columns(columns or store.target_columns), Plan.read(store.plan_path)
    # A view is a sample where it has a row in all of these.
    needed = names if CLIPS in names or CLIPS not in store.columns else (*names, CLIPS)
    if not needed:
        raise UsageError(
            f"{store_dir} has views and no columns: there is nothing to export. See `mvd-offline extract`."
        )
    if frames == "npy" and "frames" in names:
        raise UsageError("a column is called frames, as the array of a view's frames would be: give --frames jpg.")
    require_outside(store, out)
    videos = None if frames == "none" or CLIPS in store.columns else resolve_root(store_dir, root)
    rendering = {"frames": frames, "image_size": plan.section.image_size, "classes": list(plan.classes)}
    folder = ExportFolder(out, export_identity(store, "webdataset", names, rendering=rendering))
    shards = [_Shard.of(store, needed, shard) for shard in range(store.shard_count)]
    pending = [shard for shard in shards if not folder.is_done(shard.file, shard.source)]
    summary = ExportSummary(shards_kept=len(shards) - len(pending), rows=sum(len(shard.views) for shard in shards))
    left = sum(len(shard.views) for shard in pending)
    views = (plan[view_id] for shard in pending for view_id in shard.views)
    with ExitStack() as stack:
        if videos is None or not left:
            items: Iterator[FeedItem] = (FeedItem(view, None, None) for view in views)
        else:
            size = plan.section.image_size
            feed = RenderFeed(videos, [size], workers=workers, timeout_seconds=timeout_seconds, ahead=workers)
            items = stack.enter_context(feed).items(views)
        done = summary.rows - left
        progress = WorkProgress("export", summary.rows, unit="views", done=done, enabled=not quiet)
        stack.enter_context(progress)
        _write(folder, pending, items, _Samples(store, plan, names, needed, frames), summary, progress, done)
    failed = _failures(store, plan, needed)
    folder.publish(FAILED_FILE, "".join(f"{json.dumps(line, sort_keys=True)}\n" for line in failed).encode())
    summary.rows_without_target = len(failed)
    return summary


def _write(
    folder: ExportFolder,
    pending: Sequence[_Shard],
    items: Iterator[FeedItem],
    samples: _Samples,
    summary: ExportSummary,
    progress: WorkProgress,
    done: int,
) -> None:
    """Shard by shard; `items` are the views of all of them, in order, and `done` views were there before."""
    for shard in pending:
        with folder.write(shard.file, shard.facts, shard.source) as sink:
            for _ in shard.views:
                for part in chain.from_iterable(samples.members(next(items))):
                    sink.write(part)
                done += 1
                progress.reach(done, f"{(summary.bytes_written + sink.size) / 1e9:.2f} GB")
            sink.write(TAR_END)
        summary.shards += 1
        summary.bytes_written += sink.size


@dataclasses.dataclass(frozen=True)
class _Shard:
    """One tar that is to be made."""

    file: str
    views: list[int]
    """Its samples: views with a target in every column."""
    source: dict[str, str]
    facts: dict[str, Any]

    @classmethod
    def of(cls, store: Store, columns: Sequence[str], shard: int) -> _Shard:
        records = [checked_record(store, name, shard) for name in columns]
        ok = [{row.view_id for row in record.rows if row.status == "ok"} for record in records]
        views = sorted(set.intersection(*ok))
        facts = {"store_id": store.store_id, "shard": shard, "view_ids": views}
        return cls(f"{shard:06d}.tar", views, source_digests(records), facts)


class _Samples:
    """The files of each sample."""

    def __init__(self, store: Store, plan: Plan, columns: Sequence[str], needed: Sequence[str], frames: Frames) -> None:
        """`columns` are written, and what is said of a view is said of those that are `needed`."""
        self._store, self._plan, self._frames = store, plan, frames
        self._columns, self._needed = columns, needed

    def members(self, item: FeedItem) -> Iterator[tuple[Buffer, ...]]:
        """Members of the tar, by ascending name."""
        files: dict[str, list[Buffer]] = {"view.json": [_json(self._describe(item.view))]}
        for name in self._columns:
            files[f"{name}.npy"] = _npy(self._store.read([item.view.view_id], [name])[name][0])
        if self._frames == "jpg" and CLIPS in self._store.columns:
            files |= _numbered(self._baked_frames(item.view.view_id))
        elif self._frames != "none":
            files |= _frame_files(self._pixels(item), self._frames)
        return (tar_member(f"{item.view.view_id:09d}.{name}", *files[name]) for name in sorted(files))

    def _baked_frames(self, view_id: int) -> list[Buffer]:
        """The very files that the store keeps."""
        (payload,) = self._store.read_payloads(CLIPS, [view_id])
        return list(split_frames(payload, self._store.header.columns[CLIPS].tokens))

    def _pixels(self, item: FeedItem) -> Pixels:
        """The view's frames, checked to be those that the teachers saw."""
        view = item.view
        if CLIPS in self._store.columns:
            clip: Pixels = self._store.read([view.view_id], [CLIPS])[CLIPS][0]
            return clip
        if item.renderings is None:
            raise MvdError(
                f"view {view.view_id} has targets, but cannot be rendered any more: {item.error}. Restore the video, "
                "or export the targets alone with --frames none."
            )
        rendered = item.renderings[self._plan.section.image_size]
        recorded, found = self._store.pixels_of(view.view_id, self._needed), pixel_hash(rendered.pixels)
        if found != recorded.pixels:
            raise PixelMismatchError(
                f"view {view.view_id} of video {view.video_id} renders to other pixels than its teachers saw: hash "
                f"{found} with {rendered.decoder} here, {recorded.pixels} with {recorded.decoder} at extraction. The "
                "video file, the decoder or Pillow changed. Restore the file or the version, or extract the store "
                "again; or export the targets alone with --frames none."
            )
        return rendered.pixels

    def _describe(self, view: View) -> dict[str, Any]:
        """What `view.json` says."""
        fields = dataclasses.asdict(view)
        for name in ("status", "detail", "decoder"):
            del fields[name]
        records = {name: self._store.status(name).row(view.view_id) for name in self._needed}
        seen = self._store.pixels_of(view.view_id, self._needed)
        classes = self._plan.classes
        return {
            **fields,
            "label_name": classes[view.label] if 0 <= view.label < len(classes) else "",
            "image_size": self._plan.section.image_size,
            "pixels": seen.pixels,
            "decoder": seen.decoder,
            "statuses": {name: record.status for name, record in records.items()},
            "relative_errors": {name: record.relative_error for name, record in records.items()},
        }


def _frame_files(pixels: Pixels, frames: Frames) -> dict[str, list[Buffer]]:
    if frames == "npy":
        return {"frames.npy": _npy(pixels)}
    return _numbered([_jpeg(frame) for frame in pixels])


def _numbered(frames: Sequence[Buffer]) -> dict[str, list[Buffer]]:
    digits = max(2, len(str(len(frames) - 1)))
    return {f"frame{number:0{digits}d}.jpg": [frame] for number, frame in enumerate(frames)}


def _jpeg(frame: Pixels) -> bytes:
    sink = io.BytesIO()
    # 4:4:4: colour keeps its resolution.
    Image.fromarray(frame).save(sink, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return sink.getvalue()


def _npy(array: NDArray[Any]) -> list[Buffer]:
    return [npy_header(array.dtype, array.shape), np.ascontiguousarray(array).reshape(-1).view(np.uint8).data]


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _failures(store: Store, plan: Plan, columns: Sequence[str]) -> list[dict[str, Any]]:
    """A line for each view that lacks a target in one of the columns, with what became of it in each."""
    indices = {name: store.status(name) for name in columns}
    bad: Iterable[int] = np.setdiff1d(store.view_ids, store.ok_rows(columns)).tolist()
    lines = []
    for view_id in bad:
        view, rows = plan[view_id], {name: index.row(view_id) for name, index in indices.items()}
        lines.append(
            {
                "view_id": view_id,
                "video_id": view.video_id,
                "path": view.path,
                "label": view.label,
                "statuses": {name: row.status for name, row in rows.items()},
                "details": {name: row.detail for name, row in rows.items() if row.detail},
            }
        )
    return lines
