"""What a decode cache knows of each of its videos: lines of a file while it is made, then a table in Parquet."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from mvd_offline.errors import UsageError
from mvd_offline.shards.atomic import publish_bytes, remove_file

LEDGER_FILE, PROGRESS_FILE = "ledger.parquet", "progress.jsonl"


@dataclass(frozen=True)
class CacheRow:
    """What became of one video. `status` is one of a catalog's; only with `ok` is there a file.

    Attributes:
        path: of the file, below the cache's videos.
        source_size, source_sha256: of the file that it was made from.
        fps, width, height, size, sha256: of the file.
        reader, decoder: who reads it, and the release that read it back.
        pixels: xxh3_64 of all its decoded frames in order, 16 hexadecimal digits.
        psnr_db: of some of its frames against the source's, resized.
    """

    video_id: str
    path: str
    status: str
    detail: str
    source_size: int
    source_sha256: str
    frames: int = 0
    fps: float = 0.0
    width: int = 0
    height: int = 0
    size: int = 0
    sha256: str = ""
    reader: str = ""
    decoder: str = ""
    pixels: str = ""
    psnr_db: float = 0.0

    @property
    def ok(self) -> bool:
        return self.status == "ok"


_TYPES = {"str": pa.string(), "int": pa.int64(), "float": pa.float64()}
_SCHEMA = pa.schema([pa.field(f.name, _TYPES[str(f.type)], nullable=False) for f in fields(CacheRow)])


def note(progress: TextIO, row: CacheRow) -> None:
    """Append a row whose file is published; after this the row survives a power cut as well."""
    progress.write(json.dumps(asdict(row)) + "\n")
    progress.flush()
    os.fsync(progress.fileno())


def known_rows(folder: Path) -> Iterator[CacheRow]:
    """Rows of earlier runs; of two for one video the later one comes last."""
    if (folder / LEDGER_FILE).is_file():
        yield from read_ledger(folder)
    if (folder / PROGRESS_FILE).is_file():
        for line in (folder / PROGRESS_FILE).read_bytes().splitlines():
            try:
                row = CacheRow(**json.loads(line))
            except (ValueError, TypeError):
                continue  # cut off by a kill: that video is written again
            yield row


def finish(folder: Path, rows: Sequence[CacheRow]) -> None:
    """Write the ledger; the file of lines has done its work."""
    content = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([asdict(row) for row in rows], schema=_SCHEMA), content, compression="zstd")
    publish_bytes(folder / LEDGER_FILE, content.getvalue())
    remove_file(folder / PROGRESS_FILE)


def read_ledger(folder: Path) -> tuple[CacheRow, ...]:
    """Rows in the order of video ids.

    Raises:
        UsageError: the ledger is damaged.
    """
    path = folder / LEDGER_FILE
    try:
        return tuple(CacheRow(**row) for row in pq.ParquetFile(path).read(use_threads=False).to_pylist())
    except (pa.ArrowInvalid, OSError, TypeError) as error:
        raise UsageError(
            f"{path} is damaged ({error}): restore it from a copy, or remove it and run `mvd-offline videos cache` "
            "again, which then writes every video anew"
        ) from None
