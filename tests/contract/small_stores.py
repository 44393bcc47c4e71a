"""Small stores for the contract suite and the store's unit tests."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mvd_offline.shards import ColumnSpec, Store, StoreHeader, create_store

TOKENS, WIDTH = 6, 5
DECODER = "decord 0.6.0"
PRODUCER = {"torch": "2.11.0", "device": "cpu AVX2"}


def plan_of(view_ids: Sequence[int], rows_per_shard: int) -> bytes:
    """A plan with the two columns that a store reads."""
    ids = np.asarray(view_ids, np.int64)
    table = pa.table({"view_id": ids, "shard": (ids // rows_per_shard).astype(np.int32)})
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def column_of(
    name: str = "video", *, codec: str = "float32", container: str = "zarr", width: int = WIDTH
) -> ColumnSpec:
    source = {"kind": name, "architecture": {"width": width}, "weights_sha256": "00" * 32, "mean": [0.485, 0.456]}
    return ColumnSpec(name=name, tokens=TOKENS, width=width, codec=codec, container=container, source=source)


def header_of(
    plan: bytes, columns: Sequence[ColumnSpec], *, rows: int, rows_per_shard: int, stride: int = 4
) -> StoreHeader:
    return StoreHeader(
        plan_sha256=hashlib.sha256(plan).hexdigest(),
        rows=rows,
        rows_per_shard=rows_per_shard,
        batch_rows=2,
        grid=(1, 2, 3),
        view={"frames": 16, "stride": stride},
        columns={column.name: column for column in columns},
    )


def new_store(
    root: Path, columns: Sequence[ColumnSpec], *, view_ids: Sequence[int], rows_per_shard: int, rows: int | None = None
) -> Store:
    plan = plan_of(view_ids, rows_per_shard)
    height = max(view_ids) + 1 if rows is None else rows
    return create_store(root, header_of(plan, columns, rows=height, rows_per_shard=rows_per_shard), plan)


def features_of(view_id: int, column: ColumnSpec) -> NDArray[np.float32]:
    """The target of a view: a function of view and column."""
    seed = [view_id, *column.name.encode()]
    return np.random.default_rng(seed).standard_normal((column.tokens, column.width)).astype(np.float32)


def hash_of(view_id: int) -> str:
    return f"{view_id * 0x9E3779B97F4A7C15 % 2**64:016x}"


def fill(store: Store, failed: Mapping[int, str] | None = None, *, columns: Sequence[str] | None = None) -> None:
    """Write every pending shard; rows in `failed` get that status."""
    for name in columns or store.columns:
        for shard in store.pending(name):
            write(store, name, shard, failed or {})


def write(store: Store, name: str, shard: int, failed: Mapping[int, str] = {}, *, replace: bool = False) -> None:
    column = store.header.columns[name]
    with store.write_shard(name, shard, producer=PRODUCER, replace=replace) as writer:
        for view_id in store.shard_view_ids(shard).tolist():
            if view_id in failed:
                writer.fail(view_id, failed[view_id], f"broken at frame {view_id}")
            else:
                writer.add(view_id, features_of(view_id, column), pixels=hash_of(view_id), decoder=DECODER)


def files_of(root: Path) -> dict[str, bytes]:
    """Every file of a store and its bytes."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
