"""How the payloads of a shard lie in one file.

A container only frames payloads: it never changes their bytes, so a row is read with one pread of the
(offset, length) in its record, whatever the container. The framing lets other software read the file.
"""

from __future__ import annotations

import io
import json
import struct
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

import google_crc32c
import numpy as np

from mvd_offline.shards.codecs import get_codec
from mvd_offline.shards.errors import CorruptionError, IdentityError
from mvd_offline.shards.schema import ColumnSpec, RowRecord, StoreHeader, canonical_json

Buffer: TypeAlias = "bytes | memoryview"

_MISSING: Final = 2**64 - 1
_VLEN_BYTES: Final = struct.Struct("<II")
"""What stands before a value in a chunk of `vlen-bytes`: the number of values, one, and its length."""
_NPY_HEADER_BYTES: Final = 128
"""Of a one-dimensional array of fewer than 10^60 bytes."""


@dataclass(frozen=True)
class ShardLayout:
    """What a container needs to know of the shard it writes."""

    column: ColumnSpec
    shard: int
    rows_per_shard: int

    @property
    def is_packed(self) -> bool:
        """Whether payloads have lengths of their own."""
        return get_codec(self.column.codec).packing is not None

    def slot(self, view_id: int) -> int:
        """Position of a view in its shard."""
        return view_id - self.shard * self.rows_per_shard

    def view_id(self, slot: int) -> int:
        return self.shard * self.rows_per_shard + slot


class Sink(Protocol):
    """Where a shard's bytes go, in order."""

    def write(self, data: Buffer) -> object: ...


class ReadAt(Protocol):
    """`read_at(offset, length)`: up to `length` bytes of the file from `offset`."""

    def __call__(self, offset: int, length: int, /) -> bytes: ...


class ShardFileWriter(Protocol):
    """Streams one shard file into a sink."""

    def add(self, row: RowRecord, payload: Buffer) -> int:
        """Append a row (its offset not known yet); returns the offset of its payload's first byte in the file."""
        ...

    def fail(self, row: RowRecord) -> None:
        """Append a row that has no payload."""
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
        packed = layout.is_packed
        least = 4 + (_VLEN_BYTES.size if packed else 0)
        found: dict[int, tuple[int, int, int]] = {}
        for slot, (offset, nbytes) in enumerate(struct.iter_unpack("<QQ", index)):
            if (offset, nbytes) == (_MISSING, _MISSING):
                continue
            if nbytes < least or offset + nbytes > start:
                raise CorruptionError(f"the shard index places slot {slot} outside the file")
            if packed:
                found[layout.view_id(slot)] = _vlen_payload(read_at(offset, nbytes), offset, slot)
                continue
            stored = struct.unpack("<I", read_at(offset + nbytes - 4, 4))[0]
            found[layout.view_id(slot)] = (offset, nbytes - 4, stored)
        return found


def _vlen_payload(chunk: bytes, offset: int, slot: int) -> tuple[int, int, int]:
    """(offset, length, crc32c) of the one value of a `vlen-bytes` chunk, whose own checksum covers its header too."""
    content, payload = chunk[:-4], chunk[_VLEN_BYTES.size : -4]
    if struct.unpack("<I", chunk[-4:])[0] != google_crc32c.value(content):
        raise CorruptionError(f"the chunk of slot {slot} does not match its checksum")
    if _VLEN_BYTES.unpack_from(chunk) != (1, len(payload)):
        raise CorruptionError(f"the chunk of slot {slot} holds something else than one value")
    return offset + _VLEN_BYTES.size, len(payload), google_crc32c.value(payload)


class _ZarrShardWriter:
    def __init__(self, sink: Sink, layout: ShardLayout) -> None:
        self._sink = sink
        self._layout = layout
        self._entries = [(_MISSING, _MISSING)] * layout.rows_per_shard
        self._position = 0

    def add(self, row: RowRecord, payload: Buffer) -> int:
        head = _VLEN_BYTES.pack(1, row.length) if self._layout.is_packed else b""
        checksum = (
            google_crc32c.extend(google_crc32c.value(head), np.frombuffer(payload, np.uint8)) if head else row.crc32c
        )
        nbytes = len(head) + row.length + 4
        self._sink.write(head)
        self._sink.write(payload)
        self._sink.write(struct.pack("<I", checksum))
        self._entries[self._layout.slot(row.view_id)] = (self._position, nbytes)
        self._position += nbytes
        return self._position - 4 - row.length

    def fail(self, row: RowRecord) -> None:
        """A slot that was never set says so."""

    def finish(self) -> None:
        index = b"".join(struct.pack("<QQ", *entry) for entry in self._entries)
        self._sink.write(index + struct.pack("<I", google_crc32c.value(index)))


_NOTES: Final = {
    "bfloat16": "values are bfloat16 bit patterns: shift left by 16 bits and view as float32",
    "int8": (
        "a row of each token: D integers and a float32 scale; the last row: D exponents; "
        "value = integer * scale of its token * 2 ** exponent of its channel"
    ),
    "klt": (
        "a value: zstd of uint16 (K, tokens), lower bytes and then upper bytes, 0, 1, 2, ... for 0, -1, 1, ...; "
        "features = integers.T @ basis[1:] + basis[0], with basis.npy of this folder"
    ),
    "jpeg": "a value: the length of each frame as little-endian uint32, then the frames, a JPEG each",
}


def _array_metadata(header: StoreHeader, column: ColumnSpec) -> dict[str, Any]:
    codec = get_codec(column.codec)
    packed = codec.packing is not None
    # A packed payload is one value of as many bytes as it has.
    shape = (1, 1) if packed else codec.shape(column.tokens, column.width)
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    checksum = {"name": "crc32c"}
    sharding = {
        "chunk_shape": [1, *shape],
        "codecs": [{"name": "vlen-bytes"} if packed else little, checksum],
        "index_codecs": [little, checksum],
        "index_location": "end",
    }
    attributes = {"store_id": header.store_id, "column": column.name, "column_id": column.column_id}
    attributes["codec"] = column.codec
    if note := _NOTES.get(column.codec.partition("-")[0]):
        attributes["note"] = note
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [header.rows, *shape],
        "data_type": "variable_length_bytes" if packed else codec.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [header.rows_per_shard, *shape]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": codec.fill_value,
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "dimension_names": ["view", "token", "channel"],
        "attributes": {"mvd_offline": attributes},
    }


class TarContainer:
    """A webdataset shard: for each row `NNNNNNNNN.json`, its record, and `NNNNNNNNN.<column>.npy`, its coded array.

    Rows ascend, the names of a row are sorted, and nothing in a header depends on when or by whom it was written.
    A row without target has its record only.
    """

    name = "tar"

    def shard_file(self, shard: int) -> str:
        return f"{shard:06d}.tar"

    def column_files(self, header: StoreHeader, column: ColumnSpec) -> Mapping[str, bytes]:
        return {}

    def writer(self, sink: Sink, layout: ShardLayout) -> ShardFileWriter:
        return _TarShardWriter(sink, layout)

    def locate(self, read_at: ReadAt, size: int, layout: ShardLayout) -> dict[int, tuple[int, int, int]]:
        records: dict[int, dict[str, Any]] = {}
        payloads: dict[int, tuple[int, int]] = {}
        for name, start, length in _tar_members(read_at, size):
            key, _, extension = name.partition(".")
            if not key.isdigit() or extension not in ("json", f"{layout.column.name}.npy"):
                raise CorruptionError(f"the member {name!r} has no place in this shard")
            if extension == "json":
                records[int(key)] = _json_object(read_at(start, length), name)
            elif read_at(start, len(header := _npy_header(layout, length))) == header:
                payloads[int(key)] = (start + len(header), length - len(header))
            else:
                raise CorruptionError(f"the npy header of {name} is damaged")
        if {view for view, record in records.items() if record.get("status") == "ok"} != set(payloads):
            raise CorruptionError("the records and the payloads in the file do not belong together")
        return {view: (*place, _recorded_crc32c(records[view])) for view, place in payloads.items()}


class _TarShardWriter:
    def __init__(self, sink: Sink, layout: ShardLayout) -> None:
        self._sink = sink
        self._layout, self._column = layout, layout.column
        self._position = 0

    def add(self, row: RowRecord, payload: Buffer) -> int:
        record, array = f"{row.view_id:09d}.json", f"{row.view_id:09d}.{self._column.name}.npy"
        offset = 0
        for name in sorted((record, array)):
            if name == record:
                self._member(name, self._record(row))
            else:
                header = _npy_header(self._layout, _NPY_HEADER_BYTES + row.length)
                offset = self._position + tarfile.BLOCKSIZE + len(header)
                self._member(name, header, payload)
        return offset

    def fail(self, row: RowRecord) -> None:
        self._member(f"{row.view_id:09d}.json", self._record(row))

    def finish(self) -> None:
        self._write(TAR_END)

    def _record(self, row: RowRecord) -> bytes:
        """What the commit record says of the row, but for where it lies; with the names of column and codec."""
        fields = {key: value for key, value in row.to_json().items() if key != "offset"}
        return canonical_json({**fields, "column": self._column.name, "codec": self._column.codec})

    def _member(self, name: str, *parts: Buffer) -> None:
        self._write(*tar_member(name, *parts))

    def _write(self, *parts: Buffer) -> None:
        for part in parts:
            self._sink.write(part)
            self._position += memoryview(part).nbytes


TAR_END: Final = bytes(2 * tarfile.BLOCKSIZE)
"""What closes a tar."""


def tar_member(name: str, *parts: Buffer) -> tuple[Buffer, ...]:
    """A file in a tar: header, content, filling up to whole blocks. Nothing in it says when or by whom it was made."""
    entry = tarfile.TarInfo(name)  # mode 0644, no owner, no time
    entry.size = sum(memoryview(part).nbytes for part in parts)
    return entry.tobuf(tarfile.USTAR_FORMAT), *parts, bytes(-entry.size % tarfile.BLOCKSIZE)


def npy_header(dtype: np.dtype[Any], shape: Sequence[int]) -> bytes:
    """What stands before the values of an array in C order in an npy file (format version 1.0)."""
    sink = io.BytesIO()
    description = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(sink, description)
    return sink.getvalue()


def _npy_header(layout: ShardLayout, member_bytes: int) -> bytes:
    """Of a row's array: the coded array, or the bytes of a packed payload in a file of `member_bytes`."""
    column = layout.column
    if layout.is_packed:
        return npy_header(np.dtype(np.uint8), (max(member_bytes - _NPY_HEADER_BYTES, 0),))
    codec = get_codec(column.codec)
    return npy_header(codec.dtype, codec.shape(column.tokens, column.width))


def _tar_members(read_at: ReadAt, size: int) -> Iterator[tuple[str, int, int]]:
    """Name, first byte and length of each file in a tar; raises CorruptionError where it does not hold together."""
    position = 0
    while (block := read_at(position, tarfile.BLOCKSIZE)) != bytes(tarfile.BLOCKSIZE):
        try:
            entry = tarfile.TarInfo.frombuf(block, "ascii", "strict")
        except (tarfile.HeaderError, UnicodeDecodeError) as error:
            raise CorruptionError(f"the tar header at byte {position} is damaged ({error})") from None
        start = position + tarfile.BLOCKSIZE
        if not entry.isreg() or entry.size < 0 or start + entry.size > size:
            raise CorruptionError(f"the tar header at byte {position} names no file inside the shard")
        yield entry.name, start, entry.size
        position = start + -(-entry.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    if read_at(position, len(TAR_END) + 1) != TAR_END:
        raise CorruptionError("the end of the tar is damaged")


def _recorded_crc32c(record: Mapping[str, Any]) -> int:
    found = record.get("crc32c")
    return found if isinstance(found, int) else -1


def _json_object(data: bytes, name: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise CorruptionError(f"{name} is no JSON object")
    return found


CONTAINERS: Final[dict[str, Container]] = {"zarr": ZarrContainer(), "tar": TarContainer()}


def get_container(name: str) -> Container:
    """The container of that name; an unknown one is an error that lists the known."""
    try:
        return CONTAINERS[name]
    except KeyError:
        raise IdentityError(f"container {name!r} is unknown; known: {', '.join(CONTAINERS)}") from None
