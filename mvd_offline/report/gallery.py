"""The views that a report shows: which ones, and their pictures as data URIs."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mvd_offline.inspection import TeacherPicture, ViewPictures, framed, view_pictures
from mvd_offline.report.frame import data_uri
from mvd_offline.shards.store import Store
from mvd_offline.video.views import Plan

SIDE: Final = 224
"""Longest side of a picture, pixels."""
JPEG_QUALITY: Final = 82


@dataclass(frozen=True)
class Film:
    """The pictures of one teacher over the slices of a view; none where it has no target."""

    name: str
    picture: TeacherPicture
    cells: list[str]


@dataclass(frozen=True)
class Exhibit:
    """One view of the gallery; pictures are data URIs, one a slice."""

    pictures: ViewPictures
    originals: list[str]
    crops: list[str]
    films: list[Film]


def gallery(
    store: Store,
    plan: Plan,
    root: Path | None,
    *,
    views: int,
    seed: int,
    on_view: Callable[[int, int], None] = lambda done, total: None,
) -> list[Exhibit]:
    """Pictures of up to `views` views (see `choose_views`), by view_id; one view at a time is decoded."""
    chosen = choose_views(store, plan, views, seed)
    exhibits = []
    for view_id in chosen:
        exhibits.append(_exhibit(view_pictures(store, plan, view_id, root)))
        on_view(len(exhibits), len(chosen))
    return exhibits


def choose_views(store: Store, plan: Plan, most: int, seed: int) -> list[int]:
    """Views that have a target, in every column if there are such, drawn at random and of different videos first."""
    with_any = np.zeros(store.header.rows, bool)
    for name in store.columns:
        with_any |= store.status(name).ok
    complete = store.ok_rows()
    order = (complete if len(complete) else np.flatnonzero(with_any)).tolist()
    random.Random(seed).shuffle(order)
    first: list[int] = []
    again: list[int] = []
    seen: set[str] = set()
    for view_id in order:
        # A plan's row is slow to read: of many views a few times as many as wanted are looked at.
        if len(first) == most or len(first) + len(again) > 8 * most:
            break
        video = plan[view_id].video_id
        (again if video in seen else first).append(view_id)
        seen.add(video)
    return sorted((first + again)[:most])


def _exhibit(pictures: ViewPictures) -> Exhibit:
    originals, crops = pictures.originals, pictures.crops
    return Exhibit(
        pictures,
        originals=[] if originals is None else [_jpeg(framed(frame, pictures.view, SIDE)) for frame in originals],
        crops=[] if crops is None else [_jpeg(Image.fromarray(frame)) for frame in crops],
        films=[
            Film(name, picture, [] if picture.colours is None else [_png(picture.colours[s]) for s in pictures.slices])
            for name, picture in pictures.teachers.items()
        ],
    )


def _jpeg(picture: Image.Image) -> str:
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    sink = io.BytesIO()
    picture.save(sink, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return data_uri("jpeg", sink.getvalue())


def _png(pixels: NDArray[np.uint8]) -> str:
    """A pixel for each token: the page enlarges it without smoothing."""
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG", optimize=True)
    return data_uri("png", sink.getvalue())
