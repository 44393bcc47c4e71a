"""The catalog: what is known of every video of a data set, as one Parquet file, and the scan that finds it out."""

from __future__ import annotations

import difflib
import io
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from mvd_offline.errors import UsageError, VideoError
from mvd_offline.shards.atomic import publish_bytes
from mvd_offline.video.decode import READERS, Reader
from mvd_offline.video.decode import probe as probe_video
from mvd_offline.video.examine import Examined, Probe, examine_files
from mvd_offline.video.files import size_and_mtime
from mvd_offline.video.lists import ListedVideo, ListFormat, Media, Subset, list_videos

CATALOG_VERSION = 1
STATUSES = ("ok", "unreadable", "too_short", "timeout", "missing")
_METADATA_KEY = b"mvd_offline.catalog"


@dataclass(frozen=True)
class Video:
    """A file of the data set. Its identity is its path relative to the catalog's root, with forward slashes.

    An image is a video of one frame. One in a tar has the identity `TAR/NAME`, and the path says where it lies in the
    tar (`files.TarMember`); `size` and `sha256` are then the image's, `mtime_ns` the tar's.
    `label` is -1 where none is known. `width` and `height` are pixels as displayed, after rotation. `status` is one of
    `STATUSES`, `detail` its reason (no folders of the machine that scanned). `decoder` is the reader that is exact for
    this file (`decord`, `pyav` or `pillow`), empty for files that cannot be read, as is `sha256`.
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

    @property
    def reader(self) -> Reader | None:
        """The reader that is exact for this file, as `decode` takes it."""
        return next((reader for reader in READERS if reader == self.decoder), None)


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

    def find(self, video_id: str) -> Video:
        """A video by its id.

        Raises:
            UsageError: no such id; names the nearest.
        """
        if video_id not in self.by_id:
            near = difflib.get_close_matches(video_id, self.by_id, n=1)
            hint = f"did you mean {near[0]}?" if near else f"its {len(self.videos)} videos are named by path below root"
            raise UsageError(f"the catalog of {self.root} holds no video {video_id}; {hint}")
        return self.by_id[video_id]

    @property
    def counts(self) -> dict[str, int]:
        """Number of videos of each status; every status is present."""
        found = Counter(video.status for video in self.videos)
        return {status: found[status] for status in STATUSES}

    def write(self, path: str | Path) -> None:
        """Writes the Parquet file, whole or not at all."""
        path = Path(path)
        facts = {"version": CATALOG_VERSION, "root": str(self.root), "classes": list(self.classes)}
        schema = _SCHEMA.with_metadata({_METADATA_KEY: json.dumps(facts, sort_keys=True).encode()})
        rows = [asdict(video) for video in self.videos]
        content = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), content, compression="zstd")
        path.parent.mkdir(parents=True, exist_ok=True)
        publish_bytes(path, content.getvalue())

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
            table = pq.ParquetFile(path).read(use_threads=False)
        except pa.ArrowInvalid as error:
            raise UsageError(
                f"{path}: a catalog is a Parquet file, and this is none ({error}). Give what `mvd-offline videos scan` "
                "wrote; of a list or a folder, it makes one."
            ) from None
        metadata = table.schema.metadata or {}
        facts = json.loads(metadata.get(_METADATA_KEY, b"{}"))
        if facts.get("version") != CATALOG_VERSION:
            raise UsageError(
                f"{path}: not a catalog of version {CATALOG_VERSION} (found {facts.get('version')}); "
                "scan the videos again with `mvd-offline videos scan`"
            )
        videos = tuple(Video(**row) for row in table.to_pylist())
        return cls(videos=videos, root=Path(facts["root"]), classes=tuple(facts["classes"]))


def scan(
    source: str | Path,
    *,
    root: str | Path | None = None,
    list_format: ListFormat | Literal["auto"] = "auto",
    split: int = 1,
    subset: Subset = "train",
    media: Media | Literal["auto"] = "auto",
    workers: int = 8,
    timeout_seconds: float = 30.0,
    min_frames: int = 1,
    previous: Catalog | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    probe: Probe = probe_video,
) -> Catalog:
    """Lists the videos and images of `source` and examines each file in a process of its own pool.

    Args:
        source, root, list_format, split, subset, media: see `lists.list_videos`.
        workers: processes.
        timeout_seconds: time limit of one file.
        min_frames: videos with fewer frames get the status `too_short`. MVD repeats frames of short videos, so the
            default refuses none.
        previous: an older catalog; files of the same size and modification time are not read again, except those that
            timed out, which says more about that day than about the file.
        on_progress: called with (files done, files to read).
        probe: a module-level function that reads one file; runs in the pool's processes.
    """
    if workers < 1 or timeout_seconds <= 0 or min_frames < 1:
        raise UsageError(
            f"workers is {workers}, min_frames {min_frames}, timeout_seconds {timeout_seconds:g}; "
            "allowed: at least 1, at least 1, above 0"
        )
    listing = list_videos(
        Path(source), Path(root) if root else None, list_format, split=split, subset=subset, media=media
    )
    known = previous.by_id if previous else {}
    found = [_from_stat(listed, listing.root) for listed in listing.videos]
    todo = []
    for position, video in enumerate(found):
        old = known.get(video.video_id)
        if old is not None and _unchanged(old, video):
            found[position] = replace(old, label=video.label, label_name=video.label_name)
        elif video.status == "ok":
            todo.append(position)
    paths = [listing.root / found[position].path for position in todo]
    results = examine_files(paths, probe, workers=workers, timeout_seconds=timeout_seconds)
    for done, (which, examined) in enumerate(results, start=1):
        found[todo[which]] = _with_facts(found[todo[which]], examined)
        if on_progress:
            on_progress(done, len(todo))
    videos = sorted((_judge_length(video, min_frames) for video in found), key=lambda video: video.video_id)
    return Catalog(tuple(videos), listing.root, listing.classes)


def _from_stat(listed: ListedVideo, root: Path) -> Video:
    """A row with what the file system knows; status `ok` means: worth a probe."""
    size = mtime_ns = 0
    status, detail = ("unreadable", listed.problem) if listed.problem else ("ok", "")
    if not listed.problem:
        try:
            size, mtime_ns = size_and_mtime(root / listed.path)
        except VideoError as error:
            status, detail = error.status, error.reason
    return Video(
        video_id=listed.video_id, path=listed.path, label=listed.label, label_name=listed.label_name,
        frames=0, fps=0.0, width=0, height=0, size=size, mtime_ns=mtime_ns, sha256="",
        status=status, detail=detail, decoder="",
    )  # fmt: skip


def _unchanged(old: Video, new: Video) -> bool:
    same_file = (old.path, old.size, old.mtime_ns) == (new.path, new.size, new.mtime_ns)
    return same_file and new.status == "ok" and old.status not in ("timeout", "missing")


def _with_facts(video: Video, examined: Examined) -> Video:
    video = replace(video, status=examined.status, detail=examined.detail, sha256=examined.sha256)
    info = examined.info
    if info is None:
        return video
    return replace(video, frames=info.frames, fps=info.fps, width=info.width, height=info.height, decoder=info.decoder)


def _judge_length(video: Video, min_frames: int) -> Video:
    """Short videos keep their facts, so a rescan with another minimum needs no reading."""
    if video.frames == 0:
        return video
    if video.frames < min_frames:
        return replace(video, status="too_short", detail=f"{video.frames} frames; at least {min_frames} are asked for")
    return replace(video, status="ok", detail="")
