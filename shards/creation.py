"""The folder of a store before its first shard: identity, plan, columns, and what describes them to other software."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mvd_offline.shards import atomic
from mvd_offline.shards.claims import store_lock
from mvd_offline.shards.codecnames import codec_family
from mvd_offline.shards.codecs import get_codec
from mvd_offline.shards.containers import get_container
from mvd_offline.shards.errors import CorruptionError, IdentityError, NotAStoreError, StoreError, restore_identity
from mvd_offline.shards.klt import BASIS_FILE, KltCodec, read_basis
from mvd_offline.shards.schema import QUARANTINE, CommitRecord, StoreHeader, all_differences, list_differences

LOCAL_FILE: Final = "local.json"
"""A job's notes about this machine; no part of the store."""


def prepare_folder(root: Path, header: StoreHeader, plan_bytes: bytes) -> StoreHeader:
    """Write everything that a store has before its first shard; returns its header with all columns.

    Raises:
        IdentityError: see `create_store`.
    """
    _check_plan(header, plan_bytes)
    atomic.make_folder(root)
    with store_lock(root):
        if (root / "store.json").exists():
            existing = read_header(root)
            header = _merged(root, existing, header)
            for name in sorted(header.columns.keys() - existing.columns.keys()):
                _clear_leftovers(root, header, name)
        else:
            _refuse_foreign_folder(root, header)
        if not holds(root / "plan.parquet", plan_bytes):
            atomic.publish_bytes(root / "plan.parquet", plan_bytes)
        atomic.make_folder(root / "commits")
        for name in header.columns:
            atomic.make_folder(root / name)
            atomic.make_folder(root / "commits" / name)
        publish_column_files(root, header)
        # Once more, if a killed process made the folders.
        atomic.sync_folder(root / "commits")
        atomic.sync_folder(root)
        # Last: a folder without store.json is no store.
        if not holds(root / "store.json", header.to_bytes()):
            atomic.publish_bytes(root / "store.json", header.to_bytes())
    return header


def read_header(root: Path) -> StoreHeader:
    path = root / "store.json"
    if not path.is_file():
        made = f"`mvd-offline plan RECIPE --videos CATALOG --store {root}` makes one"
        if root.exists() and not (root.is_dir() and next(root.iterdir(), None) is None):
            made = "Give the folder that `mvd-offline plan RECIPE --videos CATALOG --store DIR` has made"
        raise NotAStoreError(f"{root} holds no store (no store.json). {made}.")
    repair = restore_identity(root)
    header = StoreHeader.from_bytes(read_file(path, repair), str(path), repair)
    read_bases(root, header)
    return header


def read_bases(root: Path, header: StoreHeader) -> None:
    """Let this process know the bases that columns are coded in.

    Raises CorruptionError.
    """
    for column in header.columns.values():
        if codec_family(column.codec) != column.codec:
            read_basis(root / column.name / BASIS_FILE, column.codec, restore_identity(root))


def _merged(root: Path, existing: StoreHeader, wanted: StoreHeader) -> StoreHeader:
    """The existing header with the wanted columns added; refuses any other difference."""
    shared = {name: spec.to_json() for name, spec in existing.columns.items() if name in wanted.columns}
    ours = {**wanted.identity, "columns": {name: wanted.columns[name].to_json() for name in shared}}
    theirs = {**existing.identity, "columns": shared}
    if differences := all_differences(ours, theirs):
        # What was chosen comes before what follows from it: a changed view changes the plan's hash too.
        differences.sort(key=lambda difference: not difference.field.startswith(("view.", "columns.")))
        other_videos = {difference.field for difference in differences} <= {"plan_sha256", "rows"}
        why = "The recipe is the same, the catalog is not: its videos are others, or other files. " * other_videos
        raise IdentityError(
            f"{root} holds another store:{list_differences(differences, 'recipe', 'store')}\n{why}"
            "Choose another folder, or the recipe and catalog that this store was made with."
        )
    return StoreHeader(**{**_arguments(existing), "columns": {**existing.columns, **wanted.columns}})


def _arguments(header: StoreHeader) -> dict[str, Any]:
    """Constructor arguments of a header."""
    return {name: getattr(header, name) for name in StoreHeader.__dataclass_fields__}


def _clear_leftovers(root: Path, header: StoreHeader, name: str) -> None:
    """Make room for a column that is new to the store: shards of it that a drop left may stay, another's may not."""
    expected = (header.store_id, header.columns[name].column_id)
    records = sorted((root / "commits" / name).glob("*.json"))
    named = [_names(path) for path in records]
    # A record that cannot be read says nothing against the others: `verify` finds it later.
    if not records or any(found not in (expected, None) for found in named):
        remove_column_files(root, name)


def _names(path: Path) -> tuple[str, str] | None:
    """Store and column of a commit record; None for one that cannot be read."""
    try:
        record = CommitRecord.from_bytes(read_file(path), str(path))
    except StoreError:
        return None
    return record.store_id, record.column_id


def remove_column_files(root: Path, name: str) -> None:
    """Remove the files of a column that store.json does not name.

    Commit records go first, so that none ever names a file that is gone; their folder goes last, as the sign that
    there is something left to remove.
    """
    records = root / "commits" / name
    if records.is_dir():
        for path in records.iterdir():
            path.unlink()
        atomic.sync_folder(records)
    if (root / name).is_dir():
        shutil.rmtree(root / name)
    # While the sign is there: without power it must not be gone first.
    atomic.sync_folder(root)
    if records.is_dir():
        records.rmdir()
        atomic.sync_folder(records.parent)


def _refuse_foreign_folder(root: Path, header: StoreHeader) -> None:
    """A folder may hold what an interrupted creation left, or a store whose store.json was lost; nothing else."""
    known = {"plan.parquet", "index.parquet", "commits", LOCAL_FILE, QUARANTINE, *header.columns}
    # A column that was added to the store may not be the plan's.
    known |= {path.name for path in (root / "commits").glob("*/")}
    foreign = sorted(
        path.name
        for path in root.iterdir()
        if path.name not in known and not path.name.startswith(atomic.TEMPORARY_PREFIX)
    )
    if foreign:
        raise IdentityError(f"{root} is not empty and holds no store (found {some(foreign)}). Choose another folder.")
    for path in sorted((root / "commits").glob("*/*.json")):
        try:
            record = CommitRecord.from_bytes(read_file(path), str(path))
        except CorruptionError:
            continue  # `verify` finds it, once the store has its identity back
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


def plan_views(plan: bytes | Path, rows_per_shard: int | None = None) -> NDArray[np.int64]:
    """`view_id` of the plan, ascending; with `rows_per_shard`, its `shard` is checked as well.

    Args:
        plan: the content of its file, or its path, whose other columns are not read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = pa.BufferReader(plan) if isinstance(plan, bytes) else pa.OSFile(str(plan))
    columns = ["view_id", "shard"] if rows_per_shard else ["view_id"]
    table = pq.ParquetFile(source, pre_buffer=False).read(columns, use_threads=False)
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
    files = {
        f"{column.name}/{name}": data
        for column in header.columns.values()
        for name, data in get_container(column.container).column_files(header, column).items()
    }
    for column in header.columns.values():
        codec = get_codec(column.codec)
        if isinstance(codec, KltCodec):
            files[f"{column.name}/{BASIS_FILE}"] = codec.basis.data
    return files


def holds(path: Path, data: bytes | memoryview) -> bool:
    return path.is_file() and path.read_bytes() == data


def read_file(path: Path, repair: str = "") -> bytes:
    """The content of a file of a store; `repair` says what to do when it is gone or cannot be read.

    Raises CorruptionError.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise CorruptionError(f"{path} is gone. {repair}".rstrip()) from None
    except OSError as error:
        raise CorruptionError(f"{path} cannot be read ({error.strerror}). {repair}".rstrip()) from None


def some(items: Sequence[object], most: int = 8) -> str:
    shown = ", ".join(str(item) for item in items[:most])
    return shown if len(items) <= most else f"{shown}, ... ({len(items)})"
