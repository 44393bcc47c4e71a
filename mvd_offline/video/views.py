"""Views as data: the plan fixes them before any teacher runs, as a pure function of catalog, view section and seed."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mvd_offline.errors import UsageError
from mvd_offline.recipe import ViewSection
from mvd_offline.video.catalog import Catalog
from mvd_offline.video.crops import CropBox
from mvd_offline.video.drawing import BLOCK_ROWS, draw_blocks, draw_view, in_order
from mvd_offline.video.render import Rendered, View, crop_and_resize, pixel_hash, render, render_sizes

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

    def __init__(self, file: pq.ParquetFile, content: pa.NativeFile) -> None:
        """
        Args:
            content: what `file` reads; both stay open.
        """
        facts = json.loads(file.metadata.metadata[_METADATA_KEY])
        self._content, self._metadata = content, file.metadata
        self._blocks: dict[int, pa.Table] = {}
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
        videos = in_order(catalog.videos, section.seed)
        blocks = draw_blocks(videos, section)
        return cls.from_blocks(
            blocks, videos=len(videos), classes=catalog.classes, section=section, rows_per_shard=rows_per_shard
        )

    @classmethod
    def from_blocks(
        cls,
        blocks: Iterable[Mapping[str, Any]],
        *,
        videos: int,
        classes: Sequence[str],
        section: ViewSection,
        rows_per_shard: int,
    ) -> Plan:
        """A plan of views that were drawn: the columns that `draw_blocks` gives, in blocks of its size."""
        facts = {
            "version": PLAN_VERSION,
            "rows_per_shard": rows_per_shard,
            "groups": section.groups,
            "videos": videos,
            "classes": list(classes),
            "view": section.model_dump(mode="json"),
        }
        text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
        schema = _SCHEMA.with_metadata({_METADATA_KEY: text.encode()})
        per_group, rows = videos * section.num_sample, 0
        sink = io.BytesIO()
        with pq.ParquetWriter(sink, schema, compression="zstd", version="2.6") as writer:
            for block in blocks:
                group, position = np.divmod(np.arange(rows, rows + len(block["group"])), per_group)
                view_id = group * _group_height(per_group, rows_per_shard) + position
                columns = {**block, "view_id": view_id, "shard": view_id // rows_per_shard}
                arrays = [_as_array(columns[one.name], one.type) for one in schema]
                writer.write_table(pa.Table.from_arrays(arrays, schema=schema), row_group_size=BLOCK_ROWS)
                rows += len(view_id)
        return cls.from_bytes(sink.getvalue())

    def beginning(self, views: int, rows_per_shard: int) -> Plan:
        """Its first views that are ok, as a plan of one group; all clips of the last video are in it."""
        clips = self.section.num_sample
        block = self._block(0)
        good = block.filter(pc.equal(block["status"], "ok")).slice(0, -(-views // clips) * clips).combine_chunks()
        columns = {name: good[name].combine_chunks() for name in _SCHEMA.names}
        return self.from_blocks(
            [columns | {"group": np.zeros(len(good), np.int32)}],
            videos=len(good) // clips,
            classes=self.classes,
            section=self.section.model_copy(update={"groups": 1}),
            rows_per_shard=rows_per_shard,
        )

    # ---- on disk -----------------------------------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """A Parquet file; the same plan gives the same bytes (with the same pyarrow)."""
        content: bytes = self._content.read_at(self._content.size(), 0)
        return content

    @classmethod
    def from_bytes(cls, data: bytes, origin: str = "plan") -> Plan:
        """Reads what `to_bytes` wrote; `sha256` is that of these very bytes."""
        return cls._from_content(pa.BufferReader(data), origin)

    @classmethod
    def read(cls, path: str | Path) -> Plan:
        """Opens a plan's file; its views are read when they are asked for (see `load`)."""
        path = Path(path)
        if not path.is_file():
            raise UsageError(f"{path}: no such plan; `mvd-offline plan` writes one")
        return cls._from_content(pa.OSFile(str(path)), str(path))

    @classmethod
    def _from_content(cls, content: pa.NativeFile, origin: str) -> Plan:
        try:
            file = pq.ParquetFile(content, pre_buffer=False)
        except pa.ArrowInvalid as error:
            raise UsageError(f"{origin}: not a Parquet file: {error}") from None
        metadata = file.metadata.metadata or {}
        version = json.loads(metadata[_METADATA_KEY])["version"] if _METADATA_KEY in metadata else None
        if version != PLAN_VERSION:
            found = "no plan" if version is None else f"a plan of version {version}"
            raise UsageError(f"{origin}: holds {found}; this program reads plans of version {PLAN_VERSION}")
        return cls(file, content)

    @cached_property
    def sha256(self) -> str:
        """Of the plan's bytes: part of a store's identity."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

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
        starts = np.arange(self.groups) * self._group_height
        return (starts[:, None] + np.arange(self._group_rows)).reshape(-1)

    @cached_property
    def labels(self) -> NDArray[np.int32]:
        """Label of each of `view_ids`; -1 where none is known."""
        labels: NDArray[np.int32] = self._column("label").to_numpy()
        return labels

    @cached_property
    def ok(self) -> NDArray[np.bool_]:
        """Whether the scan could read the video of each of `view_ids`."""
        return np.asarray(pc.equal(self._column("status"), "ok"))

    def counts(self) -> dict[str, int]:
        """Views by status."""
        found = self._column("status").value_counts().to_pylist()
        return {one["values"]: one["counts"] for one in found}

    def load(self) -> Plan:
        """Read every view now, for who will want them in any order; returns the plan itself.

        Processes that are forked afterwards share what is there, and would each read it by itself otherwise.
        """
        for number in range(self._metadata.num_row_groups):
            self._block(number)
        return self

    def __len__(self) -> int:
        """Number of views, gaps not counted."""
        return self._group_rows * self.groups

    def __contains__(self, view_id: object) -> bool:
        return isinstance(view_id, int | np.integer) and self._exists(int(view_id))

    def __iter__(self) -> Iterator[View]:
        return (self[int(view_id)] for view_id in self.view_ids)

    def __getitem__(self, view_id: int) -> View:
        view_id = int(view_id)
        if view_id not in self:
            raise KeyError(f"view {view_id} does not exist: the plan has {len(self)} views in {self.rows} rows")
        group, position = divmod(view_id, self._group_height)
        number, place = divmod(group * self._group_rows + position, BLOCK_ROWS)
        block = self._block(number)
        row = {name: block.column(name)[place].as_py() for name in _SCHEMA.names}
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
        end = first - first % self._group_height + self._group_rows
        return np.arange(first, min(first + self.rows_per_shard, end))

    @property
    def _group_rows(self) -> int:
        return self.videos * self.section.num_sample

    @property
    def _group_height(self) -> int:
        return _group_height(self._group_rows, self.rows_per_shard)

    def _exists(self, view_id: int) -> bool:
        return 0 <= view_id < self.rows and view_id % self._group_height < self._group_rows

    def _block(self, number: int) -> pa.Table:
        """A row group of the file. It stays: views are asked for in any order."""
        if number not in self._blocks:
            self._blocks[number] = self._reader().read_row_group(number, use_threads=False)
        return self._blocks[number]

    def _column(self, name: str) -> pa.ChunkedArray:
        return self._reader().read([name], use_threads=False)[name]

    def _reader(self) -> pq.ParquetFile:
        # One for each call: threads cannot share one. Without the pool that reads ahead, as it must not exist before a
        # loader forks.
        return pq.ParquetFile(self._content, metadata=self._metadata, pre_buffer=False)


def _group_height(rows: int, rows_per_shard: int) -> int:
    """Rows of a group in the store's table, the gap at its end included."""
    return -(-rows // rows_per_shard) * rows_per_shard


def _as_array(values: pa.Array | NDArray[Any], kind: pa.DataType) -> pa.Array:
    return (values if isinstance(values, pa.Array) else pa.array(values)).cast(kind)
