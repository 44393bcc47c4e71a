"""The labelled videos of a probe: to fit on and to test on, with the same classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mvd_offline.errors import UsageError
from mvd_offline.training.catalogs import CatalogRows


@dataclass(frozen=True)
class LabelledVideos:
    """Catalogs whose readable videos all have a label below `classes`.

    Attributes:
        names: of the classes; empty where neither catalog has any.
    """

    train: CatalogRows
    test: CatalogRows
    classes: int
    names: tuple[str, ...]


def read_labelled(train: Path, test: Path) -> LabelledVideos:
    """The videos of two catalogs.

    Raises:
        UsageError: a video without a label, fewer than two classes, or catalogs of other classes.
    """
    catalogs = CatalogRows(train), CatalogRows(test)
    for path, rows in zip((train, test), catalogs, strict=True):
        _require_labels(path, rows)
    names = _common_names(train, catalogs[0], test, catalogs[1])
    classes = len(names) or 1 + max(video.label for rows in catalogs for video in rows.videos)
    if classes < 2:
        raise UsageError(f"{train}: all its videos are of one class; a probe tells at least two apart.")
    for rows in catalogs:
        rows.require_labels(classes)
    return LabelledVideos(*catalogs, classes, names)


def _require_labels(path: Path, rows: CatalogRows) -> None:
    missing = [video.video_id for video in rows.videos if video.label < 0]
    if missing:
        raise UsageError(
            f"{path}: {len(missing)} of {len(rows.videos)} videos have no label, such as {missing[0]}. A probe needs a "
            "label for each: scan a list with labels, or a folder with one folder a class."
        )


def _common_names(train: Path, ours: CatalogRows, test: Path, theirs: CatalogRows) -> tuple[str, ...]:
    """The names of the classes, in the same order in both."""
    if not ours.classes or not theirs.classes or ours.classes == theirs.classes:
        return ours.classes or theirs.classes
    place = next(
        (n for n, (one, other) in enumerate(zip(ours.classes, theirs.classes, strict=False)) if one != other),
        min(len(ours.classes), len(theirs.classes)),
    )
    one, other = (repr(names[place]) if place < len(names) else "none" for names in (ours.classes, theirs.classes))
    raise UsageError(
        f"{train} has {len(ours.classes)} classes and {test} has {len(theirs.classes)}, and they differ: class {place} "
        f"is {one} in the one and {other} in the other. Scan both with the same list of classes."
    )
