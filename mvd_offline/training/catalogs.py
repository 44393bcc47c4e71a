"""The videos of a catalog as rows of a training: which ones, in which order, under which identity."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray
from rich.console import Console

from mvd_offline.errors import UsageError, VideoError
from mvd_offline.training.order import epoch_order
from mvd_offline.video.catalog import Catalog, Video
from mvd_offline.video.files import size_and_mtime

_LOOKS_AT_A_TIME = 32
_LISTED = 5


class CatalogRows:
    """Readable videos of a catalog; row i is the i-th of them, by video id.

    Attributes:
        videos, root, classes: of the catalog; `videos` holds readable ones only.
        unreadable: the others.
        left_out: (video_id, reason) of them.
        source: sha256 over video ids, file hashes and labels: the data's identity.
    """

    def __init__(self, path: Path) -> None:
        catalog = Catalog.read(path)
        self.root, self.classes = catalog.root, catalog.classes
        self.videos: tuple[Video, ...] = tuple(video for video in catalog.videos if video.status == "ok")
        self.unreadable: tuple[Video, ...] = tuple(video for video in catalog.videos if video.status != "ok")
        self.left_out = [(video.video_id, video.detail or video.status) for video in self.unreadable]
        if not self.videos:
            raise UsageError(f"{path} has no readable video among {len(catalog.videos)}; scan the videos again.")
        digest = hashlib.sha256()
        for video in self.videos:
            digest.update(f"{video.video_id}\x1f{video.sha256}\x1f{video.label}\n".encode())
        self.source = digest.hexdigest()
        self._path = path

    def order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        rows = np.arange(len(self.videos))
        return epoch_order([rows], source=self.source, seed=seed, epoch=epoch, window=1)

    def require_labels(self, classes: int, videos: Sequence[Video] | None = None, *, trained: bool = False) -> None:
        """The catalog has `classes` classes, and every video a label below that; `videos` or those that can be read.

        Args:
            trained: the classes are those of a trained classifier, which no setting changes.

        Raises:
            UsageError: gives both numbers, or names the first video whose label does not fit.
        """
        fixed = (
            "give a catalog of the data set that the classifier was trained on, or the recipe that it was trained by."
        )
        if self.classes and len(self.classes) != classes:
            free = f"--set model.classes={len(self.classes)}, or give the catalog of the other data set."
            raise UsageError(
                f"{self._path} has {len(self.classes)} classes and model.classes is {classes}; "
                f"{fixed if trained else free}"
            )
        for video in self.videos if videos is None else videos:
            if not 0 <= video.label < classes:
                free = "scan a list with labels, or --set model.classes to the number of classes."
                raise UsageError(
                    f"{self._path}: video {video.video_id} has label {video.label}"
                    f"{' (none was listed)' if video.label < 0 else ''}; model.classes is {classes}, so labels are 0 "
                    f"to {classes - 1}: {fixed if trained else free}"
                )


def changed_files(videos: Sequence[Video], root: Path, accelerator: Accelerator) -> dict[str, str]:
    """Reasons, by video id, of files that are gone or have another size than the scan saw.

    Every process calls this and looks at its share of them.
    """

    def reason(video: Video) -> str | None:
        try:
            size, _ = size_and_mtime(root / video.path)
        except VideoError as error:
            return error.reason
        return None if size == video.size else f"it has {size} bytes now, and had {video.size} when it was scanned"

    mine = videos[accelerator.process_index :: accelerator.num_processes]
    # On a network drive a look takes a while, but many at a time take hardly longer than one.
    with ThreadPoolExecutor(_LOOKS_AT_A_TIME) as pool:
        found = {video.video_id: why for video, why in zip(mine, pool.map(reason, mine), strict=True) if why}
    return {video_id: why for part in gather_object([found]) for video_id, why in part.items()}


def require_files(rows: CatalogRows, catalog: Path, accelerator: Accelerator) -> None:
    """Every video is there as the scan saw it; called by all processes.

    Raises:
        UsageError: gives the number of those that are not, and lists the first ones.
    """
    changed = sorted(changed_files(rows.videos, rows.root, accelerator).items())
    if changed:
        listed = "; ".join(f"{video_id}: {why}" for video_id, why in changed[:_LISTED])
        more = f"; and {len(changed) - _LISTED} more" if len(changed) > _LISTED else ""
        raise UsageError(
            f"{catalog}: {len(changed)} of its {len(rows.videos)} videos below {rows.root} are not as they were when "
            f"they were scanned ({listed}{more}). Put them back, or scan the videos again: what the scan cannot read "
            "is left out."
        )


def say_left_out(rows: CatalogRows) -> None:
    """One line on standard error where a training leaves out videos that the scan could not read."""
    if not rows.left_out:
        return
    video, reason = rows.left_out[0]
    Console(stderr=True, soft_wrap=True, highlight=False).print(
        f"training on {len(rows.videos)} videos; {len(rows.left_out)} that the scan could not read are left out, such "
        f"as {video}: {reason}",
        markup=False,
    )
