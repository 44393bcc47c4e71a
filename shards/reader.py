"""Rows of shard files into arrays: preads of (file, offset, length), crc32c checked, nothing else."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from mvd_offline.shards.codecs import get_codec
from mvd_offline.shards.containers import get_container
from mvd_offline.shards.errors import CodecError, CorruptionError, IdentityError, StoreError, repair_shard
from mvd_offline.shards.index import ColumnIndex
from mvd_offline.shards.schema import CommitRecord, StoreHeader
from mvd_offline.shards.shardfile import ShardFile

OPEN_FILES: Final = 128
"""Shard files kept open at most: two columns of the window in which a training shuffles."""

MOST_GAP: Final = 4096
"""Bytes between two payloads that are read and thrown away, so that neighbours take one system call."""
MOST_RUN_BYTES: Final = 1 << 20
"""Bytes of neighbours in one system call: they are still in the processor's cache when their checksums are computed."""
MOST_NEIGHBOURS: Final = 256
"""Rows of one system call; two buffers each, and the system takes 1024."""

_PAGE: Final = 4096
_BROKEN: Final = (errno.ENOENT, errno.EISDIR, errno.EIO)
"""Errors of the system that mean: this file is not there, or its disk is failing."""


class RowReader:
    """Reads rows by index; keeps the files used last open. Threads and forked processes may share it."""

    def __init__(self, root: Path, header: StoreHeader) -> None:
        self._root = root
        self._columns = lru_cache(None)(lambda name: _Column(root, header, name))
        self._open_file = lru_cache(OPEN_FILES)(ShardFile)

    def close_files(self) -> None:
        """Drop the open files; the next read opens them again."""
        self._open_file.cache_clear()

    def rows(self, index: ColumnIndex, view_ids: NDArray[np.int64], out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Whole rows, coded: (B, *codec.shape) in the codec's dtype.

        Args:
            out: an array of that shape to fill, best one that an earlier call gave: memory that was used before takes
                a fraction of the time of new memory.
        """
        column = self._columns(index.column)
        out = _checked_out(out, (len(view_ids), *column.shape), column)
        index.require_ok(view_ids)
        if len(view_ids):
            self._coded(column, index, view_ids, out)
        return out

    def payloads(self, index: ColumnIndex, view_ids: NDArray[np.int64]) -> list[memoryview]:
        """The bytes of each row as they are stored."""
        column = self._columns(index.column)
        index.require_ok(view_ids)
        found = [np.empty(length, np.uint8) for length in index.length[view_ids].tolist()]
        self._fill(column, index, view_ids, found)
        return [payload.data for payload in found]

    def tokens(
        self,
        index: ColumnIndex,
        view_ids: NDArray[np.int64],
        tokens: NDArray[np.int64],
        out: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """Tokens (B, M) of each row, coded, and the codec's extra rows after them; one row is held in memory."""
        column = self._columns(index.column)
        if tokens.ndim != 2 or len(tokens) != len(view_ids):
            raise IdentityError(f"token_index must have shape ({len(view_ids)}, M), not {tokens.shape}")
        if tokens.size and not (tokens.min() >= 0 and tokens.max() < column.tokens):
            raise IdentityError(
                f"token_index holds {tokens.min()} to {tokens.max()}; "
                f"column {column.name} has tokens 0 to {column.tokens - 1}"
            )
        if len(column.shape) != 2:
            raise IdentityError(f"column {column.name} holds clips, which have no tokens")
        most, (rows, width) = tokens.shape[1], column.shape
        out = _checked_out(out, (len(view_ids), most + rows - column.tokens, width), column)
        index.require_ok(view_ids)
        row = new_rows((1, rows, width), column.dtype)
        for position, target in enumerate(out):
            self._coded(column, index, view_ids[position : position + 1], row)
            # The range was checked above; any other mode than the default avoids a copy of `target`.
            np.take(row[0], tokens[position], axis=0, out=target[:most], mode="clip")
            target[most:] = row[0, column.tokens :]
        return out

    def _coded(self, column: _Column, index: ColumnIndex, view_ids: NDArray[np.int64], out: NDArray[Any]) -> None:
        """Read the coded array of each view into its row of `out`."""
        if column.packing is None:
            self._fill(column, index, view_ids, out.reshape(len(view_ids), -1).view(np.uint8))
            return
        for view_id, payload, target in zip(view_ids.tolist(), self.payloads(index, view_ids), out, strict=True):
            try:
                column.packing.unpack(payload, target)
            except CodecError as error:
                shard = view_id // column.rows_per_shard
                raise CorruptionError(
                    f"column {column.name}, shard {shard}, row {view_id}: {error}. {repair_shard(self._root)}"
                ) from None

    def _fill(
        self,
        column: _Column,
        index: ColumnIndex,
        view_ids: NDArray[np.int64],
        payloads: NDArray[np.uint8] | Sequence[NDArray[np.uint8]],
    ) -> None:
        """Read the payload of each view into its own of `payloads`."""
        facts = (
            view_ids // column.rows_per_shard,
            index.offset[view_ids],
            view_ids,
            index.length[view_ids],
            index.crc32c[view_ids],
        )
        wanted = list(map(_Wanted, *(fact.tolist() for fact in facts), payloads))
        for run in _runs(wanted):
            self._read(column, run)

    def _read(self, column: _Column, run: Sequence[_Wanted]) -> None:
        """Fill the payloads of one shard's neighbours with one system call, and check them."""
        path = column.path(run[0].shard)
        try:
            complete = self._open_file(path).read_into(run[0].offset, _buffers(run))
            problem = None if complete else f"the file {path} ends too early"
        except OSError as error:
            if error.errno not in _BROKEN:
                raise
            problem = f"the file {path} cannot be read ({os.strerror(error.errno)})"
        if problem and len(run) > 1:
            # Neighbours that the file still holds must not suffer: each by itself.
            for one in run:
                self._read(column, [one])
            return
        for one in run:
            if problem is None and one.is_intact():
                continue
            where = f"column {column.name}, shard {one.shard}, row {one.view_id}"
            if self._was_changed(column, one):
                raise StoreError(
                    f"{where}: {self._root} was changed while it was read: the shard was made again or taken back by "
                    "another run. Nothing is damaged; open the store again once that run has ended."
                )
            raise CorruptionError(
                f"{where}: {problem or 'the payload does not match its record'}. {repair_shard(self._root)}"
            )

    def _was_changed(self, column: _Column, wanted: _Wanted) -> bool:
        """Whether the row's commit record is no longer the one that the index in memory was made of."""
        path = self._root / "commits" / column.name / f"{wanted.shard:06d}.json"
        if not path.parent.is_dir():
            return False
        if path.with_suffix(".next").exists() or not path.exists():
            return True
        try:
            record = CommitRecord.from_bytes(path.read_bytes(), str(path))
        except FileNotFoundError:
            return True
        except (StoreError, OSError):
            return False
        if (record.column, record.shard) != (column.name, wanted.shard):
            return False  # nobody writes that: it was moved here
        facts = {row.view_id: (row.offset, row.length, row.crc32c) for row in record.rows}
        return facts.get(wanted.view_id) != (wanted.offset, wanted.length, wanted.crc32c)


class _Column:
    """What reading needs to know of a column."""

    def __init__(self, root: Path, header: StoreHeader, name: str) -> None:
        spec = header.columns[name]
        codec = get_codec(spec.codec)
        self.name, self.tokens, self.dtype, self.packing = name, spec.tokens, codec.dtype, codec.packing
        self.shape = codec.shape(spec.tokens, spec.width)
        self.rows_per_shard = header.rows_per_shard
        self._folder, self._container = f"{root}/{name}", get_container(spec.container)

    def path(self, shard: int) -> str:
        return f"{self._folder}/{self._container.shard_file(shard)}"


class _Wanted(NamedTuple):
    """A payload to be read: where it lies, where it goes, and what it must be."""

    shard: int
    offset: int
    view_id: int
    length: int
    crc32c: int
    payload: NDArray[np.uint8]

    def is_intact(self) -> bool:
        return self.length == self.payload.nbytes and bool(google_crc32c.value(self.payload) == self.crc32c)


def _runs(wanted: list[_Wanted]) -> Iterator[list[_Wanted]]:
    """Payloads that lie close to each other in one file, ascending; not more than stay in the processor's cache."""
    ordered = sorted(wanted, key=lambda one: one[:2]) if len(wanted) > 1 else wanted
    run: list[_Wanted] = []
    end = start = 0
    for one in ordered:
        if run and not (
            one.shard == run[0].shard
            and 0 <= one.offset - end <= MOST_GAP
            and one.offset + one.payload.nbytes - start <= MOST_RUN_BYTES
            and len(run) < MOST_NEIGHBOURS
        ):
            yield run
            run = []
        if not run:
            start = one.offset
        run.append(one)
        end = one.offset + one.payload.nbytes
    if run:
        yield run


def _buffers(run: Sequence[_Wanted]) -> list[memoryview]:
    """Where a run's bytes go, those between its payloads too."""
    buffers = []
    end = run[0].offset
    for one in run:
        if one.offset > end:
            buffers.append(memoryview(bytearray(one.offset - end)))
        buffers.append(one.payload.data)
        end = one.offset + one.payload.nbytes
    return buffers


def new_rows(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Memory for rows, not initialised, that begins with a page.

    AMD's Zen 3 and 4 copy at a sixth of their speed to an address up to 31 bytes after the source's, modulo a page;
    malloc gives 16 bytes after a page, and files in the system's cache begin with one.
    """
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + _PAGE, np.uint8)
    start = -memory.ctypes.data % _PAGE
    return memory[start : start + size].view(dtype).reshape(shape)


def _checked_out(out: NDArray[Any] | None, shape: tuple[int, ...], column: _Column) -> NDArray[Any]:
    """`out` when it fits, or new memory when there is none."""
    if out is None:
        return new_rows(shape, column.dtype)
    if (out.shape, out.dtype) != (shape, column.dtype) or not out.flags.c_contiguous:
        raise IdentityError(
            f"column {column.name}: `out` must be a contiguous {column.dtype} array {shape}, "
            f"not {out.dtype} {out.shape}"
        )
    return out
