"""The folder of a store before its first shard: identity, plan, columns, and what describes them to other software."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mvd_offline.shards import atomic
from mvd_offline.shards.containers import get_container
from mvd_offline.shards.errors import CorruptionError, IdentityError, NotAStoreError
from mvd_offline.shards.schema import CommitRecord, StoreHeader, first_difference

LOCAL_FILE: Final = "local.json"
"""A job's notes about this machine; no part of the store."""


def prepare_folder(root: Path, header: StoreHeader, plan_bytes: bytes) -> StoreHeader:
    """Write everything that a store has before its first shard; returns its header with all columns.

    Raises:
        IdentityError: see `create_store`.
    """
    _check_plan(header, plan_bytes)
    root.mkdir(parents=True, exist_ok=True)
    with atomic.folder_lock(root):
        if (root / "store.json").exists():
            header = _merged(root, read_header(root), header)
        else:
            _refuse_foreign_folder(root, header)
        if not holds(root / "plan.parquet", plan_bytes):
            atomic.publish_bytes(root / "plan.parquet", plan_bytes)
        for name in header.columns:
            (root / name).mkdir(exist_ok=True)
            (root / "commits" / name).mkdir(parents=True, exist_ok=True)
        publish_column_files(root, header)
        atomic.sync_folder(root / "commits")
        # Last: a folder without store.json is no store.
        if not holds(root / "store.json", header.to_bytes()):
            atomic.publish_bytes(root / "store.json", header.to_bytes())
    return header


def read_header(root: Path) -> StoreHeader:
    path = root / "store.json"
    if not path.is_file():
        raise NotAStoreError(
            f"{root} holds no store (no store.json). `mvd-offline plan RECIPE --store {root}` makes one."
        )
    return StoreHeader.from_bytes(read_file(path), str(path))


def _merged(root: Path, existing: StoreHeader, wanted: StoreHeader) -> StoreHeader:
    """The existing header with the wanted columns added; refuses any other difference."""
    shared = {name: spec.to_json() for name, spec in existing.columns.items() if name in wanted.columns}
    ours = {**existing.identity, "columns": shared}
    theirs = {**wanted.identity, "columns": {name: wanted.columns[name].to_json() for name in shared}}
    # What was chosen comes before what follows from it: a changed view changes the plan's hash too.
    differences = (first_difference(ours.get(part), theirs.get(part), part) for part in ("view", "columns"))
    if difference := next(filter(None, differences), None) or first_difference(ours, theirs):
        field, found, asked = difference
        raise IdentityError(
            f"{root} holds another store: {field} is {found!r} there, {asked!r} here. "
            "Choose another folder, or the recipe and catalog that this store was made with."
        )
    return StoreHeader(**{**_arguments(existing), "columns": {**existing.columns, **wanted.columns}})


def _arguments(header: StoreHeader) -> dict[str, Any]:
    """Constructor arguments of a header."""
    return {name: getattr(header, name) for name in StoreHeader.__dataclass_fields__}


def _refuse_foreign_folder(root: Path, header: StoreHeader) -> None:
    """A folder may hold what an interrupted creation left, or a store whose store.json was lost; nothing else."""
    known = {"plan.parquet", "index.parquet", "commits", LOCAL_FILE, *header.columns}
    foreign = sorted(
        path.name
        for path in root.iterdir()
        if path.name not in known and not path.name.startswith(atomic.TEMPORARY_PREFIX)
    )
    if foreign:
        raise IdentityError(f"{root} is not empty and holds no store (found {some(foreign)}). Choose another folder.")
    for path in sorted((root / "commits").glob("*/*.json")):
        record = CommitRecord.from_bytes(read_file(path), str(path))
        if record.store_id != header.store_id:
            raise IdentityError(
                f"{root} holds shards of another store: {path.name} names {record.store_id[:12]}, this one is "
                f"{header.store_id[:12]}. Choose another folder."
            )


def _check_plan(header: StoreHeader, plan_bytes: bytes) -> None:
    digest = hashlib.sha256(plan_bytes).hexdigest()
    if digest != header.plan_sha256:
        raise IdentityError(f"plan_sha256: the header has {header.plan_sha256}, the plan's bytes have {digest}")
    views = plan_views(plan_bytes, header.rows_per_shard)
    if len(views) and not (views[0] >= 0 and views[-1] < header.rows):
        raise IdentityError(f"the plan has views {views[0]} to {views[-1]}; the header has {header.rows} rows")


def plan_views(plan_bytes: bytes, rows_per_shard: int | None = None) -> NDArray[np.int64]:
    """`view_id` of the plan, ascending; with `rows_per_shard`, its `shard` is checked as well."""
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(plan_bytes), columns=["view_id", "shard"])
    views = table["view_id"].to_numpy().astype(np.int64)
    if (np.diff(views) <= 0).any():
        raise IdentityError("the plan's view_ids must ascend, each once")
    if rows_per_shard and (views // rows_per_shard != table["shard"].to_numpy()).any():
        raise IdentityError(f"the plan puts views into other shards than view_id // {rows_per_shard}")
    return views


def publish_column_files(root: Path, header: StoreHeader) -> None:
    for name, data in column_files(header).items():
        if not holds(root / name, data):
            atomic.publish_bytes(root / name, data)


def column_files(header: StoreHeader) -> Mapping[str, bytes]:
    """Path below the root and content of every file that describes a column to other software."""
    return {
        f"{column.name}/{name}": data
        for column in header.columns.values()
        for name, data in get_container(column.container).column_files(header, column).items()
    }


def holds(path: Path, data: bytes) -> bool:
    return path.is_file() and path.read_bytes() == data


def read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise CorruptionError(
            f"{path} is gone. Run `mvd-offline shards verify {path.parent}`, which says how to make it anew."
        ) from None


def some(items: Sequence[object], most: int = 8) -> str:
    shown = ", ".join(str(item) for item in items[:most])
    return shown if len(items) <= most else f"{shown}, ... ({len(items)})"
