"""Catalogs and stores of any number of rows, without videos and without payload, for `growth`.

The store's own code writes whatever it can write from values alone: identity, column files, plan, commit records, index
and seal. What is made here are the values of the rows (of a plan too: drawing 10^7 views takes longer than all that is
measured on them), and shard files that are holes of the size which their record says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mvd_offline.recipe import DistillRecipe, load_distill
from mvd_offline.shards.atomic import publish_bytes
from mvd_offline.shards.indexfile import index_bytes, index_schema
from mvd_offline.shards.schema import ColumnSpec, CommitRecord, RowRecord, SealRecord, StoreHeader
from mvd_offline.shards.store import Store, create_store
from mvd_offline.video.catalog import Catalog, Video
from mvd_offline.video.drawing import BLOCK_ROWS
from mvd_offline.video.views import Plan

RECIPE: Final = "distill/vit_b_from_vit_l_k400"
"""Two teachers, float16, 64 rows a shard, one group: an epoch is the whole store."""

_SIZE: Final = (340, 256)
_CLASSES: Final = 400
_LEAST_FRAMES: Final = 65
_FAULT: Final = "Invalid data found when processing input"
_DECODER: Final = "decord 0.6.0"


@cache
def recipe() -> DistillRecipe:
    """The recipe whose store is made."""
    return load_distill(RECIPE)


# ---- values ------------------------------------------------------------------------------------------------------


def _mixed(numbers: NDArray[np.int64], salt: int, bound: int) -> NDArray[np.int64]:
    """An integer in [0, bound) for each number, which looks random (the finaliser of splitmix64)."""
    bits = numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(salt)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((bits ^ (bits >> np.uint64(31))) % np.uint64(bound)).astype(np.int64)


def _broken(videos: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Videos that cannot be read: one in five hundred."""
    return _mixed(videos, 11, 500) == 0


def _paths(videos: NDArray[np.int64]) -> pa.Array:
    folder = pc.binary_join_element_wise("class", pa.array(videos % _CLASSES).cast(pa.string()), "_")
    name = pc.binary_join_element_wise(pa.array(_mixed(videos, 2, 1 << 62)).cast(pa.string()), ".mp4", "")
    return pc.binary_join_element_wise(folder, name, "/")


def _choose(which: NDArray[np.bool_], one: str, other: str) -> pa.Array:
    return pc.if_else(pa.array(which), one, other)


def catalog(rows: int) -> Catalog:
    """So many videos, with paths as those of Kinetics."""
    numbers = np.arange(rows)
    sound = Video(
        video_id="", path="", label=0, label_name="", frames=0, fps=25.0, width=_SIZE[0], height=_SIZE[1],
        size=1 << 20, mtime_ns=1, sha256="ab" * 32, status="ok", detail="", decoder="decord",
    )  # fmt: skip
    broken = replace(sound, width=0, height=0, status="unreadable", detail=_FAULT, decoder="")
    facts = zip(_paths(numbers).to_pylist(), _mixed(numbers, 3, 300).tolist(), _broken(numbers).tolist(), strict=True)
    videos = (
        replace(broken, video_id=name, path=name)
        if is_broken
        else replace(sound, video_id=name, path=name, frames=_LEAST_FRAMES + frames)
        for name, frames, is_broken in facts
    )
    return Catalog(tuple(videos), Path("/videos"))


def _views(ids: NDArray[np.int64]) -> dict[str, Any]:
    """Columns of a plan, of one view of each video."""
    view, broken, (width, height) = recipe().view, _broken(ids), _SIZE
    frames = np.where(broken, 0, _LEAST_FRAMES + _mixed(ids, 3, 300))
    first = np.minimum(_mixed(ids, 4, 300), np.maximum(frames - _LEAST_FRAMES, 0))
    clips = (first[:, None] + np.arange(view.frames) * view.stride)[~broken]
    ends = np.concatenate([[0], np.cumsum(~broken * view.frames)])
    side = np.where(broken, 0, np.array([168, 224, 256])[_mixed(ids, 5, 3)])
    paths = _paths(ids)
    return {
        "video_id": paths,
        "path": paths,
        "label": ids % _CLASSES,
        "group": np.zeros(len(ids), np.int32),
        "frame_indices": pa.ListArray.from_arrays(
            pa.array(ends.astype(np.int32)), pa.array(clips.reshape(-1).astype(np.int32))
        ),
        "crop_x": np.where(broken, 0, (width - side) // 4 * _mixed(ids, 6, 5)),
        "crop_y": np.where(broken, 0, (height - side) // 4 * _mixed(ids, 7, 5)),
        "crop_w": side,
        "crop_h": side,
        "flip": np.zeros(len(ids), bool),
        "width": np.where(broken, 0, width),
        "height": np.where(broken, 0, height),
        "frames": frames,
        "status": _choose(broken, "unreadable", "ok"),
        "detail": _choose(broken, _FAULT, ""),
        "decoder": _choose(broken, "", "decord"),
    }


def _rows(ids: NDArray[np.int64], column: ColumnSpec, row_bytes: int, per_shard: int) -> pa.RecordBatch:
    """Rows of the index, as records of float16 targets are."""
    broken, slot = _broken(ids), ids % per_shard
    salt = 100 if column.name == "image" else 200
    # A shard's payloads follow each other, each with its checksum of four bytes; a broken row takes no room.
    before = np.concatenate([[0], np.cumsum(~broken)])
    first = before[np.maximum(np.searchsorted(ids, ids - slot), 0)]
    pixels = pa.array([f"{number:016x}" for number in _mixed(ids, 8, 1 << 62).tolist()])
    values: dict[str, Any] = {
        "column": pa.array([column.name]).take(pa.array(np.zeros(len(ids), np.int32))),
        "view_id": ids,
        "shard": ids // per_shard,
        "status": _choose(broken, "unreadable", "ok"),
        "detail": _choose(broken, _FAULT, ""),
        "offset": np.where(broken, 0, (before[:-1] - first) * (row_bytes + 4)),
        "length": np.where(broken, 0, row_bytes),
        "crc32c": np.where(broken, 0, _mixed(ids, salt, 1 << 32)),
        "pixels": pc.if_else(pa.array(broken), "", pixels),
        "decoder": _choose(broken, "", _DECODER),
        "relative_error": np.where(broken, 0, (2000 + _mixed(ids, salt + 1, 500)) / 1e7),
        "cosine_min": np.where(broken, 0, 1 - _mixed(ids, salt + 2, 400) / 1e9),
        "cosine_mean": np.where(broken, 0, 1 - _mixed(ids, salt + 3, 100) / 1e9),
        "max_abs_error": np.where(broken, 0, (1000 + _mixed(ids, salt + 4, 9000)) / 1e6),
    }
    arrays = [pa.array(values[one.name]).cast(one.type) for one in index_schema()]
    return pa.RecordBatch.from_arrays(arrays, schema=index_schema())


# ---- stores ------------------------------------------------------------------------------------------------------


def columns() -> list[ColumnSpec]:
    """The store's columns, whose teachers nobody has."""
    section, tokens = recipe().store, recipe().view.grid.num_tokens
    return [
        ColumnSpec(name, tokens, 1024, section.codec, section.container, source={"kind": name})
        for name in recipe().active_columns.values()
    ]


def planned_store(folder: Path, rows: int) -> Store:
    """A store with a plan of so many views that nobody drew."""
    view, section = recipe().view, recipe().store
    blocks = (_views(ids) for ids in _blocks(rows, BLOCK_ROWS))
    plan = Plan.from_blocks(blocks, videos=rows, classes=(), section=view, rows_per_shard=section.rows_per_shard)
    content = plan.to_bytes()
    header = StoreHeader(
        plan_sha256=hashlib.sha256(content).hexdigest(),
        rows=plan.rows,
        rows_per_shard=section.rows_per_shard,
        batch_rows=section.batch_rows,
        grid=(view.grid.t, view.grid.h, view.grid.w),
        view=view.model_dump(mode="json"),
        columns={column.name: column for column in columns()},
    )
    return create_store(folder, header, content)


def committed_store(folder: Path, rows: int) -> Store:
    """One whose shards are all committed: what there is to seal."""
    store = planned_store(folder, rows)
    per_shard = store.header.rows_per_shard
    for column in store.header.columns.values():
        for ids in _blocks(rows, 1 << 14):
            lines = _rows(ids, column, store.row_bytes(column.name), per_shard).to_pylist()
            for start in range(0, len(lines), per_shard):
                _commit(store, column, lines[start : start + per_shard])
    return store


def sealed_store(folder: Path, rows: int) -> Store:
    """One whose index is what sealing `committed_store` gives; there are no commit records, and no shard files."""
    store = planned_store(folder, rows)
    batches = (
        _rows(ids, column, store.row_bytes(column.name), store.header.rows_per_shard)
        for column in store.header.columns.values()
        for ids in _blocks(rows, 1 << 16)
    )
    data = index_bytes(store.header, store.columns, batches)
    seal = SealRecord(
        store_id=store.store_id,
        columns={name: spec.column_id for name, spec in store.header.columns.items()},
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )
    publish_bytes(store.index_path, data)
    publish_bytes(store.seal_path, seal.to_bytes())
    return store


def _blocks(rows: int, most: int) -> Iterator[NDArray[np.int64]]:
    return (np.arange(start, min(start + most, rows)) for start in range(0, rows, most))


def _commit(store: Store, column: ColumnSpec, lines: list[dict[str, Any]]) -> None:
    """A commit record, and a shard file that is a hole. Not flushed to disk one by one, as real ones are."""
    shard = lines[0]["shard"]
    path, per_shard = store.shard_path(column.name, shard), store.header.rows_per_shard
    record = CommitRecord(
        store_id=store.store_id,
        column=column.name,
        column_id=column.column_id,
        shard=shard,
        file=path.name,
        size=sum(line["length"] + 4 for line in lines if line["status"] == "ok") + 16 * per_shard + 4,
        sha256="00" * 32,
        producer={"torch": "0", "device": "none"},
        rows=tuple(
            RowRecord(**{name: value for name, value in line.items() if name not in ("column", "shard")})
            for line in lines
        ),
    )
    with path.open("wb") as file:
        file.truncate(record.size)
    store.record_path(column.name, shard).write_bytes(record.to_bytes())
