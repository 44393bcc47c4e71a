"""One shard file: writing it row by row, checking it against its record, reading rows from it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from mvd_offline.shards.codecs import CodingError, get_codec, measure_error
from mvd_offline.shards.containers import Buffer, ShardLayout, get_container
from mvd_offline.shards.errors import CodecError, CommitError, CorruptionError
from mvd_offline.shards.schema import CommitRecord, RowRecord, StoreHeader

_BLOCK_BYTES = 4 << 20


class ShardWriter:
    """Takes the views of one shard in ascending order, each once: a target, or the reason why there is none.

    Rows go straight to the file; no more than one is held in memory.
    """

    def __init__(
        self,
        header: StoreHeader,
        layout: ShardLayout,
        view_ids: Sequence[int],
        stream: BinaryIO,
        producer: Mapping[str, str],
    ) -> None:
        self._header, self._layout, self._producer = header, layout, producer
        self._expected = list(view_ids)
        self._sink = HashingSink(stream)
        self._codec = get_codec(layout.column.codec)
        self._container = get_container(layout.column.container)
        self._file = self._container.writer(self._sink, layout)
        self._rows: list[RowRecord] = []
        self.discarded = False
        """Set it, and nothing is published after all."""

    @property
    def rows(self) -> Sequence[RowRecord]:
        """What came so far."""
        return self._rows

    def add(self, view_id: int, features: NDArray[Any], *, pixels: str, decoder: str) -> RowRecord:
        """Store a view's target; returns its record, which says what coding cost.

        Args:
            features: float32 (N, D), finite.
            pixels: hash of what the teacher saw; see `add_coded`.
            decoder: who decoded the video.

        Raises:
            CodecError: wrong shape or dtype, or values that the codec cannot hold.
            CommitError: another view comes next.
        """
        self._expect(view_id)
        column = self._layout.column
        if features.shape != (column.tokens, column.width):
            raise CommitError(
                f"column {column.name}, view {view_id}: features of shape {features.shape}; "
                f"the column holds {(column.tokens, column.width)}"
            )
        coded = self._codec.encode(features)
        error = measure_error(features, self._codec.decode(coded))
        return self.add_coded(view_id, coded, error, pixels=pixels, decoder=decoder)

    def add_coded(
        self, view_id: int, coded: NDArray[Any], error: CodingError, *, pixels: str, decoder: str
    ) -> RowRecord:
        """Store a view's target that was coded elsewhere, as on the device that computed it.

        Args:
            coded: what the codec's `encode` gives.
            error: what coding cost.
            pixels: xxh3 (64 bit, 16 hexadecimal digits) of the rendered pixels that the teacher saw.
            decoder: who decoded them.

        Raises:
            CodecError: not of the codec's shape and dtype.
            CommitError: another view comes next.
        """
        self._expect(view_id)
        column = self._layout.column
        shape = self._codec.shape(column.tokens, column.width)
        if (coded.shape, coded.dtype) != (shape, self._codec.dtype):
            raise CodecError(
                f"column {column.name}, view {view_id}: coded features are {coded.dtype} {coded.shape}; "
                f"codec {self._codec.name} has {self._codec.dtype} {shape}"
            )
        packing = self._codec.packing
        payload = np.ascontiguousarray(coded).reshape(-1).view(np.uint8).data
        return self._add_payload(view_id, packing.pack(coded) if packing else payload, error, pixels, decoder)

    def add_packed(self, view_id: int, payload: Buffer, error: CodingError, *, pixels: str, decoder: str) -> RowRecord:
        """Store a row that was packed elsewhere; arguments and errors as of `add_coded`.

        Raises:
            CodecError: the codec does not pack, or this is no payload of its own.
        """
        self._expect(view_id)
        column, packing = self._layout.column, self._codec.packing
        if packing is None:
            raise CodecError(f"column {column.name}: codec {self._codec.name} does not pack; give a coded array")
        packing.unpack(memoryview(payload), np.empty(self._codec.shape(column.tokens, column.width), self._codec.dtype))
        return self._add_payload(view_id, payload, error, pixels, decoder)

    def _add_payload(self, view_id: int, payload: Buffer, error: CodingError, pixels: str, decoder: str) -> RowRecord:
        if not _is_pixel_hash(pixels):
            raise CommitError(
                f"column {self._layout.column.name}, view {view_id}: {pixels!r} is no 16-digit pixel hash"
            )
        row = RowRecord(
            view_id=view_id,
            status="ok",
            length=memoryview(payload).nbytes,
            crc32c=google_crc32c.value(np.frombuffer(payload, np.uint8)),
            pixels=pixels,
            decoder=decoder,
            **vars(error),
        )
        return self._append(row, payload)

    def keep(self, row: RowRecord, payload: Buffer) -> None:
        """Store a row as it was: its record and payload from a shard that this one replaces."""
        self._expect(row.view_id)
        self._append(row, payload)

    def _append(self, row: RowRecord, payload: Buffer) -> RowRecord:
        self._rows.append(dataclasses.replace(row, offset=self._file.add(row, payload)))
        return self._rows[-1]

    def fail(self, view_id: int, status: str, detail: str) -> None:
        """Record why a view has no target; `detail` must not depend on the machine (no absolute paths)."""
        self._expect(view_id)
        if status == "ok" or not detail:
            raise CommitError(f"view {view_id}: a failed row needs a status other than ok, and a reason in words")
        row = RowRecord(view_id=view_id, status=status, detail=detail)
        self._file.fail(row)
        self._rows.append(row)

    def finish(self) -> CommitRecord:
        """Close the file's content and say what it is; every view must have come."""
        if len(self._rows) < len(self._expected):
            missing = self._expected[len(self._rows) :]
            raise CommitError(
                f"column {self._layout.column.name}, shard {self._layout.shard}: {len(missing)} of "
                f"{len(self._expected)} views were neither added nor failed, the first is {missing[0]}"
            )
        self._file.finish()
        column = self._layout.column
        return CommitRecord(
            store_id=self._header.store_id,
            column=column.name,
            column_id=column.column_id,
            shard=self._layout.shard,
            file=self._container.shard_file(self._layout.shard),
            size=self._sink.size,
            sha256=self._sink.sha256.hexdigest(),
            producer=dict(self._producer),
            rows=tuple(self._rows),
        )

    def _expect(self, view_id: int) -> None:
        done = len(self._rows)
        wanted = self._expected[done] if done < len(self._expected) else None
        if view_id != wanted:
            raise CommitError(
                f"column {self._layout.column.name}, shard {self._layout.shard}: view {view_id} came where "
                f"{'no more was' if wanted is None else f'view {wanted} was'} expected; "
                "the plan's views of a shard come in ascending order, each once"
            )


class HashingSink:
    """Writes through to a stream and keeps the size and sha256 of what went by."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.sha256 = hashlib.sha256()
        self.size = 0

    def write(self, data: Buffer) -> None:
        self._stream.write(data)
        self.sha256.update(data)
        self.size += memoryview(data).nbytes


def _is_pixel_hash(text: str) -> bool:
    return len(text) == 16 and set(text) <= set("0123456789abcdef")


# ---- checking ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """Something wrong with a shard file; `row` is the view concerned, or None for the file as a whole."""

    row: int | None
    what: str


def check_file(path: Path, record: CommitRecord, layout: ShardLayout) -> list[Fault]:
    """Compare a whole shard file to its record: size, framing, each row's crc32c and finite values, sha256.

    Reads the file once (and its framing again), one row in memory at a time.
    """
    faults: list[Fault] = []
    with _opened(path, record, faults) as descriptor:
        if descriptor is not None:
            faults += _content_faults(descriptor, record, layout)
            faults += _framing_faults(descriptor, record, layout)
    return faults


def check_rows(path: Path, record: CommitRecord, rows: Sequence[RowRecord], layout: ShardLayout) -> list[Fault]:
    """Compare a shard file's size, and the payloads of some of its rows, to its record."""
    faults: list[Fault] = []
    with _opened(path, record, faults) as descriptor:
        if descriptor is not None:
            payloads = ((row, os.pread(descriptor, row.length, row.offset)) for row in rows)
            problems = ((row.view_id, _payload_problem(payload, row, layout)) for row, payload in payloads)
            faults.extend(Fault(view_id, problem) for view_id, problem in problems if problem)
    return faults


@contextlib.contextmanager
def _opened(path: Path, record: CommitRecord, faults: list[Fault]) -> Iterator[int | None]:
    """A descriptor of a file that exists with the right size, otherwise None; what is wrong goes to `faults`."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        size = os.fstat(descriptor).st_size
    except OSError as error:
        gone = isinstance(error, FileNotFoundError)
        what = "is gone" if gone else f"cannot be opened ({error.strerror})"
        faults.append(Fault(None, f"the file {record.file} {what}"))
        yield None
        return
    try:
        if size != record.size:
            faults.append(Fault(None, f"the file {record.file} has {size} bytes, its record says {record.size}"))
        yield descriptor if size == record.size else None
    except OSError as error:  # a bad sector
        faults.append(Fault(None, f"the file {record.file} cannot be read ({error.strerror})"))
    finally:
        os.close(descriptor)


def forget_cached_pages(path: Path) -> None:
    """Ask the system to drop its copy of a file, so that the next read shows what the disk holds."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _payload_problem(payload: bytes, row: RowRecord, layout: ShardLayout) -> str | None:
    """What is wrong with a row's payload; None when nothing is."""
    if google_crc32c.value(payload) != row.crc32c:
        return "the payload does not match its crc32c"
    codec, column = get_codec(layout.column.codec), layout.column
    shape = codec.shape(column.tokens, column.width)
    if codec.packing is not None:
        try:
            codec.packing.unpack(memoryview(payload), unpacked := np.empty(shape, codec.dtype))
        except CodecError as error:
            return str(error)
        return None if codec.is_valid(unpacked) else "the payload holds values that are not finite"
    if len(payload) != codec.nbytes(column.tokens, column.width):
        return f"the payload has {len(payload)} bytes, a row has {codec.nbytes(column.tokens, column.width)}"
    coded = np.frombuffer(payload, codec.dtype).reshape(shape)
    if not codec.is_valid(coded):
        return "the payload holds values that are not finite"
    return None


def _content_faults(descriptor: int, record: CommitRecord, layout: ShardLayout) -> list[Fault]:
    faults: list[Fault] = []
    digest = hashlib.sha256()
    position = 0
    for row in sorted((row for row in record.rows if row.status == "ok"), key=lambda row: row.offset):
        for block in _blocks(descriptor, position, row.offset):
            digest.update(block)
        payload = os.pread(descriptor, row.length, row.offset)
        digest.update(payload)
        position = row.offset + row.length
        if problem := _payload_problem(payload, row, layout):
            faults.append(Fault(row.view_id, problem))
    for block in _blocks(descriptor, position, record.size):
        digest.update(block)
    if digest.hexdigest() != record.sha256:
        faults.append(Fault(None, f"the file {record.file} does not match its sha256"))
    return faults


def _framing_faults(descriptor: int, record: CommitRecord, layout: ShardLayout) -> list[Fault]:
    """Does the container's own index, which other software reads, say the same as the record?"""
    container = get_container(layout.column.container)
    try:
        found = container.locate(lambda offset, length: os.pread(descriptor, length, offset), record.size, layout)
    except CorruptionError as error:
        return [Fault(None, f"the file {record.file}: {error}")]
    expected = {row.view_id: (row.offset, row.length, row.crc32c) for row in record.rows if row.status == "ok"}
    differing = sorted(view for view in {*found, *expected} if found.get(view) != expected.get(view))
    return [Fault(view, "the shard's own index or checksum differs from the commit record") for view in differing]


def _blocks(descriptor: int, start: int, stop: int) -> Iterator[bytes]:
    while start < stop:
        block = os.pread(descriptor, min(_BLOCK_BYTES, stop - start), start)
        if not block:
            return
        yield block
        start += len(block)


# ---- reading -----------------------------------------------------------------------------------------------------


class ShardFile:
    """An open shard file. Closes when the last reference goes, so a cache may drop it while a thread still reads.

    Reads give their own position, so threads and forked processes can share it.
    """

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def payload(self, row: RowRecord) -> memoryview:
        """A row's payload.

        Raises:
            CorruptionError: it does not match its crc32c.
        """
        payload = np.empty(row.length, np.uint8)
        if not self.read_into(row.offset, [payload.data]) or google_crc32c.value(payload) != row.crc32c:
            raise CorruptionError("the payload does not match its crc32c")
        return payload.data

    def read_into(self, offset: int, buffers: Sequence[memoryview]) -> bool:
        """Fill buffers, one after the other, with the bytes from `offset`; False when the file ends before."""
        waiting = list(buffers)
        while waiting:
            count = os.preadv(self._descriptor, waiting, offset)
            if count == 0:
                return False
            offset += count
            waiting = _after(waiting, count)
        return True


def _after(buffers: list[memoryview], count: int) -> list[memoryview]:
    """What is left of the buffers when `count` bytes are filled."""
    for position, buffer in enumerate(buffers):
        if count < buffer.nbytes:
            return [buffer[count:], *buffers[position + 1 :]]
        count -= buffer.nbytes
    return []
