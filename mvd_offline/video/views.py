"""Views as data: the plan fixes them before any teacher runs, as a pure function of catalog, view section and seed."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mvd_offline.errors import UsageError
from mvd_offline.randomness import KeyedStream
from mvd_offline.recipe import ViewSection
from mvd_offline.video.catalog import Catalog, Video
from mvd_offline.video.crops import (
    CropBox,
    center_crop,
    draw_flip,
    draw_multiscale_crop,
    random_resized_crop_box,
)
from mvd_offline.video.render import Rendered, View, crop_and_resize, pixel_hash, render, render_sizes
from mvd_offline.video.sampling import distillation_first_frame, distillation_indices

__all__ = [
    "Plan",
    "Rendered",
    "View",
    "crop_and_resize",
    "draw_view",
    "pixel_hash",
    "render",
    "render_sizes",
]

PLAN_VERSION = 1
_METADATA_KEY = b"mvd_offline.plan"
_SCHEMA = pa.schema(
    [
        pa.field("view_id", pa.int64(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("label", pa.int32(), nullable=False),
        pa.field("group", pa.int32(), nullable=False),
        pa.field("frame_indices", pa.list_(pa.field("frame", pa.int32(), nullable=False)), nullable=False),
        *(pa.field(f"crop_{side}", pa.int32(), nullable=False) for side in "xywh"),
        pa.field("flip", pa.bool_(), nullable=False),
        *(pa.field(name, pa.int32(), nullable=False) for name in ("width", "height", "frames")),
        pa.field("status", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
        pa.field("decoder", pa.string(), nullable=False),
    ]
)


class Plan:
    """Views of a store by `view_id`.

    Group g holds one view of each video, or `num_sample` that follow each other, in an order that only seed and video
    ids decide, and starts at a shard's boundary: `view_id = g * ceil(videos * num_sample / rows_per_shard) *
    rows_per_shard + position of the video * num_sample + segment`, `shard = view_id // rows_per_shard`. The ids between
    a group's last view and the next shard do not exist.

    >>> plan = Plan.from_catalog(catalog, recipe.view, recipe.store.rows_per_shard)   # doctest: +SKIP
    >>> render(plan[0], catalog.root, image_size=224)                                 # doctest: +SKIP
    """

    def __init__(self, table: pa.Table) -> None:
        facts = json.loads(table.schema.metadata[_METADATA_KEY])
        self._table = table
        self.rows_per_shard: int = facts["rows_per_shard"]
        self.groups: int = facts["groups"]
        self.videos: int = facts["videos"]
        self.classes: tuple[str, ...] = tuple(facts["classes"])
        self.section = ViewSection.model_validate(facts["view"])

    # ---- making one --------------------------------------------------------------------------------------------------

    @classmethod
    def from_catalog(cls, catalog: Catalog, section: ViewSection, rows_per_shard: int) -> Plan:
        """Draws every view; videos that the scan could not read get a row with their status and an empty view."""
        if not catalog.videos:
            raise UsageError("the catalog holds no video: there is nothing to plan")
        if rows_per_shard < 1:
            raise UsageError(f"rows_per_shard is {rows_per_shard}; allowed: 1 or more")
        videos = sorted(catalog.videos, key=lambda video: _order_key(section.seed, video.video_id))
        group_height = -(-len(videos) * section.num_sample // rows_per_shard) * rows_per_shard
        clips = list(product(videos, range(section.num_sample)))
        rows = [
            _row(draw_view(video, section, group, segment), group * group_height + position, rows_per_shard)
            for group in range(section.groups)
            for position, (video, segment) in enumerate(clips)
        ]
        facts = {
            "version": PLAN_VERSION,
            "rows_per_shard": rows_per_shard,
            "groups": section.groups,
            "videos": len(videos),
            "classes": list(catalog.classes),
            "view": section.model_dump(mode="json"),
        }
        text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
        return cls(pa.Table.from_pylist(rows, schema=_SCHEMA.with_metadata({_METADATA_KEY: text.encode()})))

    # ---- on disk -----------------------------------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """A Parquet file; the same plan gives the same bytes (with the same pyarrow)."""
        return self._bytes

    @cached_property
    def _bytes(self) -> bytes:
        buffer = io.BytesIO()
        pq.write_table(self._table, buffer, compression="zstd", version="2.6")
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, origin: str = "plan") -> Plan:
        """Reads what `to_bytes` wrote; `sha256` is that of these very bytes."""
        try:
            table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
        except pa.ArrowInvalid as error:
            raise UsageError(f"{origin}: not a Parquet file: {error}") from None
        metadata = table.schema.metadata or {}
        version = json.loads(metadata[_METADATA_KEY])["version"] if _METADATA_KEY in metadata else None
        if version != PLAN_VERSION:
            found = "no plan" if version is None else f"a plan of version {version}"
            raise UsageError(f"{origin}: holds {found}; this program reads plans of version {PLAN_VERSION}")
        plan = cls(table)
        plan.__dict__["_bytes"] = data
        return plan

    @classmethod
    def read(cls, path: str | Path) -> Plan:
        """Reads a plan's file."""
        path = Path(path)
        if not path.is_file():
            raise UsageError(f"{path}: no such plan; `mvd-offline plan` writes one")
        return cls.from_bytes(path.read_bytes(), str(path))

    @cached_property
    def sha256(self) -> str:
        """Of the plan's bytes: part of a store's identity."""
        return hashlib.sha256(self._bytes).hexdigest()

    # ---- reading -----------------------------------------------------------------------------------------------------

    @property
    def rows(self) -> int:
        """Height of the store's table, gaps at the groups' ends included."""
        return self.groups * self._group_height

    @property
    def shard_count(self) -> int:
        return self.rows // self.rows_per_shard

    @cached_property
    def view_ids(self) -> NDArray[np.int64]:
        """Every view that exists, ascending."""
        return self._table["view_id"].to_numpy()

    @cached_property
    def labels(self) -> NDArray[np.int32]:
        """Label of each of `view_ids`; -1 where none is known."""
        return self._table["label"].to_numpy()

    def __len__(self) -> int:
        """Number of views, gaps not counted."""
        return len(self._table)

    def __contains__(self, view_id: object) -> bool:
        return isinstance(view_id, int | np.integer) and self._exists(int(view_id))

    def __iter__(self) -> Iterator[View]:
        return (self[int(view_id)] for view_id in self.view_ids)

    def __getitem__(self, view_id: int) -> View:
        view_id = int(view_id)
        if view_id not in self:
            raise KeyError(f"view {view_id} does not exist: the plan has {len(self)} views in {self.rows} rows")
        group, position = divmod(view_id, self._group_height)
        row = {name: column[group * self._group_rows + position].as_py() for name, column in self._columns.items()}
        crop = CropBox(*(row.pop(f"crop_{side}") for side in "xywh"))
        return View(
            **row | {"crop": crop, "frame_indices": tuple(row["frame_indices"]), "decoder": row["decoder"] or None}
        )

    def shards(self, group: int) -> list[int]:
        """Numbers of a group's shards."""
        if not 0 <= group < self.groups:
            raise UsageError(f"group {group} does not exist; the plan has groups 0 to {self.groups - 1}")
        per_group = self._group_height // self.rows_per_shard
        return list(range(group * per_group, (group + 1) * per_group))

    def shard_view_ids(self, shard: int) -> NDArray[np.int64]:
        """Views of a shard that exist, ascending."""
        first = shard * self.rows_per_shard
        start, stop = np.searchsorted(self.view_ids, (first, first + self.rows_per_shard))
        return self.view_ids[start:stop]

    @property
    def _group_rows(self) -> int:
        return self.videos * self.section.num_sample

    @property
    def _group_height(self) -> int:
        return -(-self._group_rows // self.rows_per_shard) * self.rows_per_shard

    def _exists(self, view_id: int) -> bool:
        return 0 <= view_id < self.rows and view_id % self._group_height < self._group_rows

    @cached_property
    def _columns(self) -> dict[str, pa.Array]:
        return {name: self._table[name].combine_chunks() for name in self._table.column_names}


def draw_view(video: Video, section: ViewSection, group: int, segment: int = 0) -> dict[str, Any]:
    """A view's columns except its place in the table: a function of seed, video, group and segment alone.

    Args:
        segment: which of the video's `section.num_sample` clips.
    """
    view: dict[str, Any] = {
        "video_id": video.video_id,
        "path": video.path,
        "label": video.label,
        "group": group,
        "frame_indices": (),
        "crop": CropBox(0, 0, 0, 0),
        "flip": False,
        "width": video.width,
        "height": video.height,
        "frames": video.frames,
        "status": video.status,
        "detail": video.detail,
        "decoder": video.decoder,
    }
    if video.status != "ok":
        return view
    key = (group, segment) if section.num_sample > 1 else (group,)
    stream = KeyedStream("view", section.seed, video.video_id, *key)
    span = section.frames * section.stride
    first = distillation_first_frame(video.frames, span, stream, segment, section.num_sample)
    view["frame_indices"] = distillation_indices(video.frames, first, section.frames, section.stride)
    view["crop"] = _draw_crop(video, section, stream)
    view["flip"] = draw_flip(section.flip, stream)
    return view


def _draw_crop(video: Video, section: ViewSection, stream: KeyedStream) -> CropBox:
    if section.crop == "multiscale":
        return draw_multiscale_crop(video.width, video.height, section.image_size, stream, section.crop_scales)
    if section.crop == "random_resized":
        return random_resized_crop_box(video.width, video.height, stream, area=section.crop_area)
    return center_crop(video.width, video.height)


def _row(view: dict[str, Any], view_id: int, rows_per_shard: int) -> dict[str, Any]:
    crop: CropBox = view.pop("crop")
    corners = {"crop_x": crop.x, "crop_y": crop.y, "crop_w": crop.w, "crop_h": crop.h}
    return view | corners | {"view_id": view_id, "shard": view_id // rows_per_shard}


def _order_key(seed: int, video_id: str) -> bytes:
    return hashlib.sha256(f"order\x1f{seed}\x1f{video_id}".encode()).digest()
