"""The videos of a test: labelled, there, and what becomes of those that cannot be read."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from accelerate import Accelerator

from mvd_offline.errors import MvdError, UsageError
from mvd_offline.training.catalogs import CatalogRows, changed_files

Unreadables: TypeAlias = Literal["error", "wrong", "exclude"]
"""What a test does with videos that cannot be read: stop, count them as wrong answers, or leave them out. The released
code puts a random other video in their place, and so leaves them out without a word."""


@dataclass(frozen=True)
class Unreadable:
    """A test video without an answer, and why."""

    video_id: str
    label: int
    reason: str


class EvaluationVideos:
    """The videos of a catalog, checked as far as can be without decoding them.

    Attributes:
        videos: those to be read, in the catalog's order; row i of a test is the i-th of them.
        unreadable: those that the scan could not read, or whose file is gone or changed since.
        readable_source: `CatalogRows.source` of those that the scan could read.
        source: sha256 over ids, contents and labels of all of them, readable or not.
    """

    def __init__(self, path: Path, classes: int, accelerator: Accelerator) -> None:
        """Every process calls this, and looks at its share of the files.

        Raises:
            UsageError: no such catalog, classes that are not `classes` in number, a label outside of them.
        """
        rows = CatalogRows(path)
        rows.require_labels(classes, (*rows.videos, *rows.unreadable), trained=True)
        self.path, self.root, self.classes = path, rows.root, rows.classes
        gone = changed_files(rows.videos, rows.root, accelerator)
        self.videos = tuple(video for video in rows.videos if video.video_id not in gone)
        self.unreadable = known_unreadable(rows)
        self.unreadable += [
            Unreadable(v.video_id, v.label, gone[v.video_id]) for v in rows.videos if v.video_id in gone
        ]
        self.readable_source = rows.source
        others = "".join(f"{video.video_id}\x1f{video.label}\n" for video in rows.unreadable)
        self.source = hashlib.sha256(f"{rows.source}\n{others}".encode()).hexdigest()

    def check(self, found: Sequence[Unreadable], unreadables: Unreadables) -> None:
        """Refuse a test of no video at all; with `error`, one that cannot read all of them.

        Raises:
            MvdError: lists the first ten.
        """
        if found and unreadables == "error":
            raise unreadable_error(found)
        if len(found) == len(self.videos) + len(self.unreadable):
            raise UsageError(f"{self.path}: none of its videos can be read, so there is nothing to test.")


def known_unreadable(rows: CatalogRows) -> list[Unreadable]:
    """The videos that the scan could not read."""
    return [Unreadable(video.video_id, video.label, video.detail or video.status) for video in rows.unreadable]


def unreadable_error(found: Sequence[Unreadable]) -> MvdError:
    """What a test says that is to read all of its videos and cannot; lists the first ten."""
    listed = "; ".join(f"{video.video_id}: {video.reason}" for video in found[:10])
    more = f"; and {len(found) - 10} more" if len(found) > 10 else ""
    count = f"{len(found)} test video{'s' if len(found) > 1 else ''}"
    return MvdError(
        f"{count} cannot be read ({listed}{more}). A test that leaves videos out is another test: repair them, or say "
        "--unreadable wrong to count them as wrong answers, or --unreadable exclude to leave them out knowingly."
    )
