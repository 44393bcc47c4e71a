"""The catalog: what is known of every video of a data set, as one Parquet file."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mvd_offline.errors import UsageError

CATALOG_VERSION = 1
STATUSES = ("ok", "unreadable", "too_short", "timeout", "missing")
_METADATA_KEY = b"mvd_offline.catalog"


@dataclass(frozen=True)
class Video:
    """A file of the data set. Its identity is its path relative to the catalog's root, with forward slashes.

    `label` is -1 where none is known. `width` and `height` are pixels as displayed, after rotation. `status` is one of
    `STATUSES`, `detail` its reason (no folders of the machine that scanned). `decoder` is the reader that is exact for
    this file (`decord` or `pyav`), empty for files that cannot be read.
    """

    video_id: str
    path: str
    label: int
    label_name: str
    frames: int
    fps: float
    width: int
    height: int
    size: int
    mtime_ns: int
    sha256: str
    status: str
    detail: str
    decoder: str


_TYPES = {"str": pa.string(), "int": pa.int64(), "float": pa.float64()}
_SCHEMA = pa.schema([pa.field(f.name, _TYPES[str(f.type)], nullable=False) for f in fields(Video)])


@dataclass(frozen=True)
class Catalog:
    """Videos in the order of their ids, the folder that their paths start from, and the names of the labels."""

    videos: tuple[Video, ...]
    root: Path
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        twice = [video_id for video_id, count in Counter(v.video_id for v in self.videos).items() if count > 1]
        if twice:
            raise UsageError(f"{len(twice)} videos are listed twice, such as {twice[0]}: a video has one row")

    @cached_property
    def by_id(self) -> dict[str, Video]:
        return {video.video_id: video for video in self.videos}

    @property
    def counts(self) -> dict[str, int]:
        """Videos of each status; every status is present."""
        found = Counter(video.status for video in self.videos)
        return {status: found[status] for status in STATUSES}

    def write(self, path: str | Path) -> None:
        """Writes the Parquet file, whole or not at all."""
        path = Path(path)
        facts = {"version": CATALOG_VERSION, "root": str(self.root), "classes": list(self.classes)}
        schema = _SCHEMA.with_metadata({_METADATA_KEY: json.dumps(facts, sort_keys=True).encode()})
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            rows = [asdict(video) for video in self.videos]
            pq.write_table(pa.Table.from_pylist(rows, schema=schema), temporary, compression="zstd")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def read(cls, path: str | Path) -> Catalog:
        """Reads what `write` wrote.

        Raises:
            UsageError: no such file, or not a catalog of this version.
        """
        path = Path(path)
        if not path.is_file():
            raise UsageError(f"{path}: no such catalog; `mvd-offline videos scan` writes one")
        try:
            table = pq.read_table(path)
        except pa.ArrowInvalid as error:
            raise UsageError(f"{path}: a catalog is a Parquet file, and this is none: {error}") from None
        metadata = table.schema.metadata or {}
        facts = json.loads(metadata.get(_METADATA_KEY, b"{}"))
        if facts.get("version") != CATALOG_VERSION:
            raise UsageError(
                f"{path}: not a catalog of version {CATALOG_VERSION} (found {facts.get('version')}); "
                "scan the videos again with `mvd-offline videos scan`"
            )
        videos = tuple(Video(**row) for row in table.to_pylist())
        return cls(videos=videos, root=Path(facts["root"]), classes=tuple(facts["classes"]))
