"""The videos of a catalog as rows of a training: which ones, in which order, under which identity."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from mvd_offline.errors import UsageError
from mvd_offline.training.order import epoch_order
from mvd_offline.video.catalog import Catalog, Video


class CatalogRows:
    """Readable videos of a catalog; row i is the i-th of them, by video id.

    Attributes:
        videos, root, classes: of the catalog; `videos` holds readable ones only.
        left_out: (video_id, reason) of the others.
        source: sha256 over video ids, file hashes and labels: the data's identity.
    """

    def __init__(self, path: Path) -> None:
        catalog = Catalog.read(path)
        self.root, self.classes = catalog.root, catalog.classes
        self.videos: tuple[Video, ...] = tuple(video for video in catalog.videos if video.status == "ok")
        self.left_out = [(v.video_id, v.detail or v.status) for v in catalog.videos if v.status != "ok"]
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

    def require_labels(self, classes: int) -> None:
        """The catalog has `classes` classes, and every video a label below that.

        Raises:
            UsageError: gives both numbers, or names the first video whose label does not fit.
        """
        if self.classes and len(self.classes) != classes:
            raise UsageError(
                f"{self._path} has {len(self.classes)} classes and model.classes is {classes}; "
                f"--set model.classes={len(self.classes)}, or give the catalog of the other data set."
            )
        for video in self.videos:
            if not 0 <= video.label < classes:
                raise UsageError(
                    f"{self._path}: video {video.video_id} has label {video.label}"
                    f"{' (none was listed)' if video.label < 0 else ''}; model.classes is {classes}, so labels are 0 "
                    f"to {classes - 1}. Scan a list with labels, or --set model.classes to the number of classes."
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
