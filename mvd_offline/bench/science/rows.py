"""What is compared: every row of the two tables, the recipe behind it, and the nearest published numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Table: TypeAlias = Literal["objectives", "reuse"]

FRESH: Final = "fresh"
"""A store with as many groups as a student has epochs: no view is seen twice. Nothing is extracted into it."""


@dataclass(frozen=True)
class Row:
    """One way to come to an encoder.

    Attributes:
        store: groups of the store, or `fresh`; None for a row that is no student.
        overrides: of the recipe `science/distill`, which has both teachers.
        compute_of: the row whose operations it may spend; the recipe's epochs when None.
        paper: top-1 on Kinetics-400 (appearance) and Something-Something v2 (motion) of the nearest published run;
            `note` says which one where it is not ViT-B, 400 epochs.
    """

    name: str
    title: str
    table: Table = "objectives"
    store: int | Literal["fresh"] | None = None
    overrides: tuple[str, ...] = ()
    compute_of: str | None = None
    paper: tuple[float | None, float | None] = (None, None)
    note: str = ""


BOTH = "both"
"""The paper's method, and the row that the second table shares with the first."""

# BootMAE's schedule is for hundreds of epochs of thousands of steps; this one forgets the first steps as soon.
_MOMENTUM = "momentum={decay: [[0, 0.97], [40, 0.995]]}"

SCRATCH = Row("scratch", "no pretraining, weights as classifiers begin (normal, 0.02)")
UNTRAINED = Row("untrained", "no pretraining, weights as students begin (Xavier)")
"""What pretraining has to beat: for so small a model and so few labels, the initialisation alone is worth more than
what is learnt on top of it."""
IMAGE_TEACHER = Row("image_teacher", "the image teacher itself (MAE)")
VIDEO_TEACHER = Row("video_teacher", "the video teacher itself (VideoMAE)")


def student_rows(groups: tuple[int, ...]) -> tuple[Row, ...]:
    """Students in the order in which they are trained; those of the first table learn from the most groups."""
    most = groups[-1]
    objectives = (
        Row(BOTH, "image and video teacher", store=most, paper=(82.7, 72.5)),
        Row("image", "image teacher", store=most, overrides=("loss.weights={image: 1.0}",), paper=(82.3, 71.4)),
        Row("video", "video teacher", store=most, overrides=("loss.weights={video: 1.0}",), paper=(82.1, 71.8)),
        Row(
            "per_token",
            "video teacher, per token (nothing masked)",
            store=most,
            overrides=("loss.weights={video: 1.0}", "mask.kind=none"),
            paper=(80.9, 70.5),
        ),
        Row(
            "both_pixels",
            "image and video teacher, and pixels",
            store=most,
            overrides=("pixels={weight: 1.0, normalize_targets: true}",),
            paper=(None, 69.0),
            note="ViT-S, 300 epochs; 70.1 without pixels",
        ),
        Row(
            "momentum",
            "momentum teacher (online)",
            store=most,
            overrides=("teachers={}", "targets=online", _MOMENTUM),
            paper=(80.5, 70.4),
            note="800 epochs",
        ),
        Row(
            "pixels",
            "pixels alone (VideoMAE, with the operations of image and video teacher)",
            store=most,
            overrides=("teachers={}", "pixels={weight: 1.0, normalize_targets: false}"),  # as `science/videomae`
            compute_of=BOTH,
            paper=(81.5, 69.7),
            note="1600 epochs",
        ),
    )
    reuse = tuple(Row(f"groups_{count}", views_title(count), table="reuse", store=count) for count in groups[:-1])
    fresh = Row("fresh", "new views in every epoch (online)", "reuse", FRESH, ("targets=online",))
    return (*objectives, *reuse, fresh)


def store_rows(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """For each store one row that has both teachers: who plans it."""
    return tuple(row for row in rows if row.name == BOTH or row.table == "reuse")


def views_title(count: int) -> str:
    return f"{count} view{'s' * (count != 1)} of each video (cached)"
