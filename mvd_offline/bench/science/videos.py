"""The miniature's data: one set of videos with two labels, what the disc looks like and where it goes.

Texture and direction are drawn independently of each other. One frame shows the texture. It does not show the
direction: a disc starts anywhere on a torus, so that each frame by itself is equally likely under all four. Played
backwards, a clip has the opposite direction; from its frames in no order one can tell at most the axis, and which of
its two directions it was is a coin toss. (Left and right alone would leave nothing to chance, but a classifier from
scratch learns those from eight labelled videos.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from mvd_offline.video.catalog import Catalog, Video, scan
from mvd_offline.video.synthetic import synthesize

Task: TypeAlias = Literal["spatial", "temporal"]
TASKS: tuple[Task, ...] = ("spatial", "temporal")
_PART: dict[Task, int] = {"spatial": 0, "temporal": 1}  # of a class such as `dots_left`

CLASSES = 16
CLASSES_OF: dict[Task, int] = {"spatial": 4, "temporal": 4}
SIDE = 64
"""Pixels. Widths that 32 does not divide are left to the slower reader."""
FRAMES = (18, 26)
"""Four frames at stride 4 span 13."""
JITTER = 0.06
"""Of the side: an untrained encoder, which sees little more than neighbouring frames, is right half of the time."""


@dataclass(frozen=True)
class Counts:
    """Videos of each of the 16 classes."""

    train: int
    labelled: int
    """Those of the training videos whose labels fine-tuning sees."""
    test: int


def labels_of(video: Video) -> dict[Task, str]:
    """Both labels of a video whose class is `texture_direction`."""
    parts = video.label_name.split("_")
    return {task: parts[_PART[task]] for task in TASKS}


def task_catalog(catalog: Catalog, task: Task) -> Catalog:
    """The same videos with one of their two labels."""
    names = tuple(sorted({labels_of(video)[task] for video in catalog.videos}))
    named = [(video, labels_of(video)[task]) for video in catalog.videos]
    videos = tuple(replace(video, label=names.index(name), label_name=name) for video, name in named)
    return Catalog(videos, catalog.root, names)


def make_videos(out: Path, counts: Counts, workers: int) -> None:
    """Writes encoded videos, and the catalogs `train`, `labelled-TASK` and `test-TASK`."""
    for split, count in (("train", counts.train), ("test", counts.test)):
        folder = out / "videos" / split
        synthesize(
            folder,
            videos_per_class=count,
            split=split,
            classes=CLASSES,
            short_side=(SIDE, SIDE),
            frames=FRAMES,
            aspects=(1.0,),
            jitter=JITTER,
            workers=workers,
        )
        catalog = scan(folder, workers=workers)
        if split == "train":
            catalog.write(catalog_path(out, "train"))
            few = tuple(video for video in catalog.videos if int(Path(video.path).stem) < counts.labelled)
            catalog = replace(catalog, videos=few)
        for task in TASKS:
            task_catalog(catalog, task).write(catalog_path(out, "labelled" if split == "train" else "test", task))


def catalog_path(out: Path, split: str, task: Task | None = None) -> Path:
    """Of `train` (both labels), or of `labelled` or `test` for a task."""
    return out / f"{split}-{task}.parquet" if task else out / f"{split}.parquet"
