"""Rows of shard files into arrays: preads of (file, offset, length), crc32c checked, nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from mvd_offline.shards.codecs import get_codec
from mvd_offline.shards.containers import get_container
from mvd_offline.shards.errors import CorruptionError, IdentityError, repair_shard
from mvd_offline.shards.index import ColumnIndex
from mvd_offline.shards.schema import StoreHeader
from mvd_offline.shards.shardfile import ShardFile

OPEN_FILES: Final = 128
"""Shard files kept open at most: two columns of the window in which a training shuffles."""

MOST_GAP: Final = 4096
"""Bytes between two payloads that are read and thrown away, so that neighbours take one system call."""
MOST_NEIGHBOURS: Final = 256
"""Rows of one system call; two buffers each, and the system takes 1024."""


class RowReader:
    """Reads rows by index; keeps the files used last open. Threads and forked processes may share it."""

    def __init__(self, root: Path, header: StoreHeader) -> None:
        self._root, self._header = root, header
        self._open_file = lru_cache(OPEN_FILES)(ShardFile)

    def close_files(self) -> None:
        """Drop the open files; the next read opens them again."""
        self._open_file.cache_clear()

    def rows(self, index: ColumnIndex, view_ids: NDArray[np.int64], out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Whole rows, coded: (B, *codec.shape) in the codec's dtype.

        Args:
            out: an array of that shape to fill: memory that was used before takes half the time of new memory.
        """
        spec = self._header.columns[index.column]
        codec = get_codec(spec.codec)
        shape = (len(view_ids), *codec.shape(spec.tokens, spec.width))
        if out is None:
            out = np.empty(shape, codec.dtype)
        elif (out.shape, out.dtype) != (shape, codec.dtype) or not out.flags.c_contiguous:
            raise IdentityError(
                f"column {spec.name}: `out` must be a contiguous {codec.dtype} array {shape}, "
                f"not {out.dtype} {out.shape}"
            )
        index.require_ok(view_ids)
        for run in _runs(index, view_ids, self._header.rows_per_shard):
            self._read_run(index, view_ids[run], [out[position] for position in run])
        return out

    def tokens(self, index: ColumnIndex, view_ids: NDArray[np.int64], tokens: NDArray[np.int64]) -> NDArray[Any]:
        """Tokens (B, M) of each row, coded, and the codec's extra rows after them; one row is held in memory."""
        spec = self._header.columns[index.column]
        codec = get_codec(spec.codec)
        if tokens.ndim != 2 or len(tokens) != len(view_ids):
            raise IdentityError(f"token_index must have shape ({len(view_ids)}, M), not {tokens.shape}")
        if tokens.size and not (tokens.min() >= 0 and tokens.max() < spec.tokens):
            raise IdentityError(
                f"token_index holds {tokens.min()} to {tokens.max()}; "
                f"column {spec.name} has tokens 0 to {spec.tokens - 1}"
            )
        index.require_ok(view_ids)
        row = np.empty(codec.shape(spec.tokens, spec.width), codec.dtype)
        most = tokens.shape[1]
        out = np.empty((len(view_ids), most + codec.extra_rows, row.shape[1]), codec.dtype)
        for position, target in enumerate(out):
            self._read_run(index, view_ids[position : position + 1], [row])
            # The range was checked above; any other mode than the default avoids a copy of `target`.
            np.take(row, tokens[position], axis=0, out=target[:most], mode="clip")
            target[most:] = row[spec.tokens :]
        return out

    def _read_run(self, index: ColumnIndex, view_ids: NDArray[np.int64], targets: list[NDArray[Any]]) -> None:
        """Fill an array for each of a shard's rows, which ascend and lie close to each other."""
        first = int(view_ids[0])
        spec = self._header.columns[index.column]
        shard = first // self._header.rows_per_shard
        path = str(self._root / spec.name / get_container(spec.container).shard_file(shard))
        payloads = [target.reshape(-1).view(np.uint8) for target in targets]
        offsets = index.offset[view_ids].tolist()
        buffers: list[memoryview] = []
        end = offsets[0]
        for offset, payload in zip(offsets, payloads, strict=True):
            if offset > end:
                buffers.append(memoryview(bytearray(offset - end)))
            buffers.append(payload.data)
            end = offset + payload.nbytes
        problem, culprit = None, first
        try:
            if not self._open_file(path).read_into(offsets[0], buffers):
                if len(view_ids) > 1:
                    # Neighbours that the file still holds must not suffer: each by itself.
                    for position in range(len(view_ids)):
                        self._read_run(index, view_ids[position : position + 1], targets[position : position + 1])
                    return
                problem = f"the file {path} ends too early"
        except FileNotFoundError:
            problem = f"the file {path} is gone"
        for view_id, payload in zip(view_ids.tolist(), payloads, strict=True) if problem is None else ():
            if index.length[view_id] != payload.nbytes or google_crc32c.value(payload) != index.crc32c[view_id]:
                problem, culprit = "the payload does not match its record", view_id
                break
        if problem:
            raise CorruptionError(
                f"column {spec.name}, shard {shard}, row {culprit}: {problem}. {repair_shard(self._root)}"
            )


def _runs(index: ColumnIndex, view_ids: NDArray[np.int64], rows_per_shard: int) -> Iterator[NDArray[np.int64]]:
    """Positions in `view_ids`, in runs of rows that lie close to each other in one file, ascending."""
    if not len(view_ids):
        return
    order = np.argsort(view_ids, kind="stable")
    ids = view_ids[order]
    gap = index.offset[ids[1:]] - (index.offset[ids[:-1]] + index.length[ids[:-1]])
    apart = (gap < 0) | (gap > MOST_GAP) | (ids[1:] // rows_per_shard != ids[:-1] // rows_per_shard)
    for run in np.split(order, np.flatnonzero(apart) + 1):
        yield from (run[start : start + MOST_NEIGHBOURS] for start in range(0, len(run), MOST_NEIGHBOURS))
