"""Ways in which the files of a store are damaged: a part of the store, and what happens to it."""

from __future__ import annotations

import random
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mvd_offline.shards.containers import get_container
from mvd_offline.shards.schema import CommitRecord
from mvd_offline.shards.store import Store

CRC_BYTES: Final = 4
SLOT_BYTES: Final = 16
"""Of the index at the end of a zarr shard: offset and length of one row."""


@dataclass(frozen=True)
class Part:
    """Bytes `start` to `stop` of a file of a store; `record` is the commit record of a shard file."""

    path: str
    start: int
    stop: int
    record: str = ""


def parts_of(store: Store) -> dict[str, list[Part]]:
    """Every byte of a sealed store, by what it is; shard files are there as a whole, too."""
    parts: dict[str, list[Part]] = {}

    def add(kind: str, path: Path, start: int = 0, stop: int = -1, record: str = "") -> None:
        stop = path.stat().st_size if stop < 0 else stop
        if stop > start:
            part = Part(path.relative_to(store.root).as_posix(), start, stop, record)
            parts.setdefault(kind, []).append(part)

    for column, spec in store.header.columns.items():
        for shard in range(store.shard_count):
            path, record_path = store.shard_path(column, shard), store.record_path(column, shard)
            record = store.record(column, shard)
            split = _tar_parts if spec.container == "tar" else _zarr_parts
            for kind, start, stop in split(path, record, store.header.rows_per_shard):
                add(f"{spec.container}: {kind}", path, start, stop)
            add(f"{spec.container}: whole file", path, record=record_path.relative_to(store.root).as_posix())
            add("commit record", record_path)
        for name in get_container(spec.container).column_files(store.header, spec):
            add(name, store.root / column / name)
    add("index.parquet", store.index_path)
    add("index record", store.seal_path)
    add("plan.parquet", store.plan_path)
    add("store.json", store.root / "store.json")
    return dict(sorted(parts.items()))


def _zarr_parts(path: Path, record: CommitRecord, rows_per_shard: int) -> Iterator[tuple[str, int, int]]:
    end = 0
    for row in record.rows:
        if row.status == "ok":
            yield "header of a value", end, row.offset
            end = row.offset + row.length + CRC_BYTES
            yield "payload", row.offset, row.offset + row.length
            yield "crc32c of a row", row.offset + row.length, row.offset + row.length + CRC_BYTES
    yield "index", record.size - rows_per_shard * SLOT_BYTES - CRC_BYTES, record.size


def _tar_parts(path: Path, record: CommitRecord, rows_per_shard: int) -> Iterator[tuple[str, int, int]]:
    offsets = {row.offset: row for row in record.rows if row.status == "ok"}
    end = 0
    with tarfile.open(path) as archive:
        for member in archive:
            yield "padding", end, member.offset
            yield "header", member.offset, member.offset_data
            end = member.offset_data + member.size
            if member.name.endswith(".json"):
                yield "record", member.offset_data, end
            else:
                start = next(offset for offset in offsets if member.offset_data < offset < end)
                yield "npy header", member.offset_data, start
                yield "payload", start, end
    yield "padding", end, record.size


# ---- what happens ------------------------------------------------------------------------------------------------


class Damage:
    """Damages a store at `root`, a copy of `pristine`; every choice is drawn from a seeded generator."""

    def __init__(self, pristine: Store, root: Path) -> None:
        self.parts, self._root = parts_of(pristine), root

    @property
    def cases(self) -> list[tuple[str, str]]:
        """(kind of bytes, what happens to them): everything that there is."""
        return [(kind, act) for kind, parts in self.parts.items() for act in _acts_on(kind, parts)]

    def strike(self, kind: str, act: str, draw: random.Random) -> str:
        """Do it; returns what was done. Draws again where nothing changes, as when equal files change places."""
        while True:
            part = draw.choice(self.parts[kind])
            what, changes = ACTS[act](self, part, [other for other in self.parts[kind] if other != part], draw)
            if any(self.read(path) != data for path, data in changes.items()):
                for path, data in changes.items():
                    self._write(path, data)
                return what

    def read(self, path: str) -> bytes | None:
        file = self._root / path
        return file.read_bytes() if file.is_file() else None

    def _write(self, path: str, data: bytes | None) -> None:
        if data is None:
            (self._root / path).unlink()
        else:
            (self._root / path).write_bytes(data)


def copy_over(pristine: Path, root: Path) -> None:
    """Make `root` a copy of `pristine`."""
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(pristine, root)


Changes = dict[str, bytes | None]
"""Path to new content; None: the file is deleted."""
Act = Callable[[Damage, Part, list[Part], random.Random], tuple[str, Changes]]


def _acts_on(kind: str, parts: list[Part]) -> list[str]:
    if kind.endswith("whole file"):
        names = ["append", "delete", "copy over another", "extra copy", "swap two", "swap two with records"]
    elif ": " in kind:
        names = ["flip a bit", "flip some bits", "truncate"]
    else:
        names = ["flip a bit", "flip some bits", "truncate", "append", "delete", "extra copy"]
        names += ["copy over another", "swap two"]
    alone = len(parts) < 2
    return [name for name in names if not (alone and name in ("copy over another", "swap two"))]


def _flip(damage: Damage, part: Part, draw: random.Random, bits: int) -> tuple[str, Changes]:
    data = bytearray(damage.read(part.path) or b"")
    places = draw.sample(range(part.start * 8, part.stop * 8), min(bits, (part.stop - part.start) * 8))
    for place in places:
        data[place // 8] ^= 1 << place % 8
    return f"{part.path}: {len(places)} bits, the first in byte {min(places) // 8}", {part.path: bytes(data)}


def _truncate(damage: Damage, part: Part, others: list[Part], draw: random.Random) -> tuple[str, Changes]:
    size = draw.randrange(part.start, part.stop)
    return f"{part.path}: cut at {size}", {part.path: (damage.read(part.path) or b"")[:size]}


def _append(damage: Damage, part: Part, others: list[Part], draw: random.Random) -> tuple[str, Changes]:
    tail = draw.choice([draw.randbytes(draw.randint(1, 64)), bytes(draw.randint(1, 2048)), b"\n"])
    return f"{part.path}: {len(tail)} bytes appended", {part.path: (damage.read(part.path) or b"") + tail}


def _copy_over(damage: Damage, part: Part, others: list[Part], draw: random.Random) -> tuple[str, Changes]:
    other = draw.choice(others)
    return f"{part.path} copied over {other.path}", {other.path: damage.read(part.path)}


def _extra(damage: Damage, part: Part, others: list[Part], draw: random.Random) -> tuple[str, Changes]:
    path = Path(part.path)
    copy = path.with_name(draw.choice([f"{path.name}.copy", f"0{path.name}", f"{path.name}~", f"{path.name} (1)"]))
    return f"{part.path} copied to {copy}", {copy.as_posix(): damage.read(part.path)}


def _swap(damage: Damage, part: Part, others: list[Part], draw: random.Random) -> tuple[str, Changes]:
    other = draw.choice(others)
    changes = {part.path: damage.read(other.path), other.path: damage.read(part.path)}
    return f"{part.path} and {other.path} swapped", changes


def _swap_with_records(damage: Damage, part: Part, others: list[Part], draw: random.Random) -> tuple[str, Changes]:
    other = draw.choice(others)
    pairs = ((part.path, other.path), (part.record, other.record))
    changes = {a: damage.read(b) for one, two in pairs for a, b in ((one, two), (two, one))}
    return f"{part.path} and {other.path} swapped, with their records", changes


ACTS: Final[dict[str, Act]] = {
    "flip a bit": lambda damage, part, others, draw: _flip(damage, part, draw, 1),
    "flip some bits": lambda damage, part, others, draw: _flip(damage, part, draw, draw.randint(2, 64)),
    "truncate": _truncate,
    "append": _append,
    "delete": lambda damage, part, others, draw: (f"{part.path} deleted", {part.path: None}),
    "copy over another": _copy_over,
    "extra copy": _extra,
    "swap two": _swap,
    "swap two with records": _swap_with_records,
}
