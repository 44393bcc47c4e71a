"""Rows of shard files into arrays: one pread a row of (file, offset, length), crc32c checked, nothing else."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from mvd_offline.shards.codecs import get_codec
from mvd_offline.shards.containers import get_container
from mvd_offline.shards.errors import REPAIR_SHARD, CorruptionError, IdentityError
from mvd_offline.shards.index import ColumnIndex
from mvd_offline.shards.schema import StoreHeader
from mvd_offline.shards.shardfile import ShardFile

OPEN_FILES: Final = 128
"""Shard files kept open at most: two columns of the window in which a training shuffles."""


class RowReader:
    """Reads rows by index; keeps the files used last open. Threads and forked processes may share it."""

    def __init__(self, root: Path, header: StoreHeader) -> None:
        self._root, self._header = root, header
        self._open_file = lru_cache(OPEN_FILES)(ShardFile)

    def close_files(self) -> None:
        """Drop the open files; the next read opens them again."""
        self._open_file.cache_clear()

    def rows(self, index: ColumnIndex, view_ids: NDArray[np.int64]) -> NDArray[Any]:
        """Whole rows: (B, N, D) in the codec's dtype."""
        index.require_ok(view_ids)
        spec = self._header.columns[index.column]
        out = np.empty((len(view_ids), spec.tokens, spec.width), get_codec(spec.codec).dtype)
        for target, view_id in zip(out, view_ids.tolist(), strict=True):
            self._read_row(index, view_id, target)
        return out

    def tokens(self, index: ColumnIndex, view_ids: NDArray[np.int64], tokens: NDArray[np.int64]) -> NDArray[Any]:
        """Tokens (B, M) of each row: (B, M, D) in the codec's dtype; one row at a time is held in memory."""
        spec = self._header.columns[index.column]
        if tokens.ndim != 2 or len(tokens) != len(view_ids):
            raise IdentityError(f"token_index must have shape ({len(view_ids)}, M), not {tokens.shape}")
        if tokens.size and not (tokens.min() >= 0 and tokens.max() < spec.tokens):
            raise IdentityError(
                f"token_index holds {tokens.min()} to {tokens.max()}; "
                f"column {spec.name} has tokens 0 to {spec.tokens - 1}"
            )
        index.require_ok(view_ids)
        row = np.empty((spec.tokens, spec.width), get_codec(spec.codec).dtype)
        out = np.empty((*tokens.shape, spec.width), row.dtype)
        for target, view_id, wanted in zip(out, view_ids.tolist(), tokens, strict=True):
            self._read_row(index, view_id, row)
            # The range was checked above; any other mode than the default avoids a copy of `target`.
            np.take(row, wanted, axis=0, out=target, mode="clip")
        return out

    def _read_row(self, index: ColumnIndex, view_id: int, target: NDArray[Any]) -> None:
        shard = view_id // self._header.rows_per_shard
        spec = self._header.columns[index.column]
        path = str(self._root / spec.name / get_container(spec.container).shard_file(shard))
        problem = None
        try:
            if not self._open_file(path).read_into(target, int(index.offset[view_id])):
                problem = f"the file {path} ends too early"
            elif index.length[view_id] != target.nbytes or google_crc32c.value(target) != index.crc32c[view_id]:
                problem = "the payload does not match its record"
        except FileNotFoundError:
            problem = f"the file {path} is gone"
        if problem:
            raise CorruptionError(f"column {spec.name}, shard {shard}, row {view_id}: {problem}. {REPAIR_SHARD}")
