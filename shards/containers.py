"""How the payloads of a shard lie in one file.

A container only frames payloads: it never changes their bytes, so a row is read with one pread of the
(offset, length) in its record, whatever the container. The framing lets other software read the file.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import google_crc32c

from mvd_offline.shards.codecs import get_codec
from mvd_offline.shards.errors import CorruptionError, IdentityError
from mvd_offline.shards.schema import ColumnSpec, StoreHeader

_MISSING: Final = 2**64 - 1


@dataclass(frozen=True)
class ShardLayout:
    """What a container needs to know of the shard it writes."""

    column: ColumnSpec
    shard: int
    rows_per_shard: int

    def slot(self, view_id: int) -> int:
        """Position of a view in its shard."""
        return view_id - self.shard * self.rows_per_shard

    def view_id(self, slot: int) -> int:
        return self.shard * self.rows_per_shard + slot


class Sink(Protocol):
    """Where a shard's bytes go, in order."""

    def write(self, data: bytes) -> object: ...


class ReadAt(Protocol):
    """`read_at(offset, length)`: up to `length` bytes of the file from `offset`."""

    def __call__(self, offset: int, length: int, /) -> bytes: ...


class ShardFileWriter(Protocol):
    """Streams one shard file into a sink."""

    def add(self, view_id: int, payload: bytes, crc32c: int) -> int:
        """Append a row's payload; returns the offset of its first byte in the file."""
        ...

    def finish(self) -> None:
        """Write what closes the file."""
        ...


class Container(Protocol):
    """One way of laying out shard files."""

    @property
    def name(self) -> str: ...

    def shard_file(self, shard: int) -> str:
        """Name of a shard's file inside the column's folder."""
        ...

    def column_files(self, header: StoreHeader, column: ColumnSpec) -> Mapping[str, bytes]:
        """Files that describe the whole column to other software: name and content."""
        ...

    def writer(self, sink: Sink, layout: ShardLayout) -> ShardFileWriter: ...

    def locate(self, read_at: ReadAt, size: int, layout: ShardLayout) -> dict[int, tuple[int, int, int]]:
        """What the file itself says: view_id to (offset, length, crc32c) of each payload, read from its framing.

        Raises CorruptionError where the framing does not hold together.
        """
        ...


class ZarrContainer:
    """zarr v3, `sharding_indexed`: one view an inner chunk, each followed by its crc32c; the index at the end."""

    name = "zarr"

    def shard_file(self, shard: int) -> str:
        return f"c.{shard}.0.0"

    def column_files(self, header: StoreHeader, column: ColumnSpec) -> Mapping[str, bytes]:
        document = json.dumps(_array_metadata(header, column), indent=2, sort_keys=True, ensure_ascii=True)
        return {"zarr.json": document.encode("ascii") + b"\n"}

    def writer(self, sink: Sink, layout: ShardLayout) -> ShardFileWriter:
        return _ZarrShardWriter(sink, layout)

    def locate(self, read_at: ReadAt, size: int, layout: ShardLayout) -> dict[int, tuple[int, int, int]]:
        index_bytes = layout.rows_per_shard * 16
        start = size - index_bytes - 4
        tail = read_at(start, index_bytes + 4) if start >= 0 else b""
        index = tail[:index_bytes]
        if len(tail) != index_bytes + 4 or struct.unpack("<I", tail[index_bytes:])[0] != google_crc32c.value(index):
            raise CorruptionError("the shard index at the end of the file is damaged")
        found: dict[int, tuple[int, int, int]] = {}
        for slot, (offset, nbytes) in enumerate(struct.iter_unpack("<QQ", index)):
            if (offset, nbytes) == (_MISSING, _MISSING):
                continue
            if nbytes < 4 or offset + nbytes > start:
                raise CorruptionError(f"the shard index places slot {slot} outside the file")
            stored = struct.unpack("<I", read_at(offset + nbytes - 4, 4))[0]
            found[layout.view_id(slot)] = (offset, nbytes - 4, stored)
        return found


class _ZarrShardWriter:
    def __init__(self, sink: Sink, layout: ShardLayout) -> None:
        self._sink = sink
        self._layout = layout
        self._entries = [(_MISSING, _MISSING)] * layout.rows_per_shard
        self._position = 0

    def add(self, view_id: int, payload: bytes, crc32c: int) -> int:
        offset = self._position
        self._sink.write(payload)
        self._sink.write(struct.pack("<I", crc32c))
        self._entries[self._layout.slot(view_id)] = (offset, len(payload) + 4)
        self._position += len(payload) + 4
        return offset

    def finish(self) -> None:
        index = b"".join(struct.pack("<QQ", *entry) for entry in self._entries)
        self._sink.write(index + struct.pack("<I", google_crc32c.value(index)))


def _array_metadata(header: StoreHeader, column: ColumnSpec) -> dict[str, Any]:
    codec = get_codec(column.codec)
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    checksum = {"name": "crc32c"}
    sharding = {
        "chunk_shape": [1, column.tokens, column.width],
        "codecs": [little, checksum],
        "index_codecs": [little, checksum],
        "index_location": "end",
    }
    attributes = {"store_id": header.store_id, "column": column.name, "column_id": column.column_id}
    attributes["codec"] = column.codec
    if column.codec == "bfloat16":
        attributes["note"] = "values are bfloat16 bit patterns: shift left by 16 bits and view as float32"
    chunk_shape = [header.rows_per_shard, column.tokens, column.width]
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [header.rows, column.tokens, column.width],
        "data_type": codec.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk_shape}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": codec.fill_value,
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "dimension_names": ["view", "token", "channel"],
        "attributes": {"mvd_offline": attributes},
    }


CONTAINERS: Final[dict[str, Container]] = {"zarr": ZarrContainer()}


def get_container(name: str) -> Container:
    """The container of that name; an unknown one is an error that lists the known."""
    try:
        return CONTAINERS[name]
    except KeyError:
        raise IdentityError(f"container {name!r} is unknown; known: {', '.join(CONTAINERS)}") from None
