"""Drawing views: a function of seed, video, group and segment alone, one by one or all of a catalog."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mvd_offline.randomness import KeyedStream
from mvd_offline.recipe import ViewSection
from mvd_offline.video.catalog import Video
from mvd_offline.video.crops import (
    CropBox,
    center_crop,
    draw_flip,
    draw_multiscale_crop,
    random_resized_crop_box,
)
from mvd_offline.video.sampling import distillation_clips, distillation_first_frame, distillation_indices

BLOCK_ROWS: Final = 1 << 20
"""Views that are drawn at a time: a row group of the plan's file."""

_NO_CROP: Final = CropBox(0, 0, 0, 0)


class _Drawn(NamedTuple):
    """What is random in a view."""

    first: int
    crop: CropBox
    flip: bool


def draw_view(video: Video, section: ViewSection, group: int, segment: int = 0) -> dict[str, Any]:
    """A view's columns except its place in the table.

    Args:
        segment: which of the video's `section.num_sample` clips.
    """
    view: dict[str, Any] = {
        "video_id": video.video_id,
        "path": video.path,
        "label": video.label,
        "group": group,
        "frame_indices": (),
        "crop": _NO_CROP,
        "flip": False,
        "width": video.width,
        "height": video.height,
        "frames": video.frames,
        "status": video.status,
        "detail": video.detail,
        "decoder": video.decoder,
    }
    if video.status == "ok":
        drawn = _draw(video, section, segment, KeyedStream(*_key(video, section, group, segment)))
        view["frame_indices"] = distillation_indices(video.frames, drawn.first, section.frames, section.stride)
        view["crop"], view["flip"] = drawn.crop, drawn.flip
    return view


def in_order(videos: Sequence[Video], seed: int) -> list[Video]:
    """The order of a plan's videos: more videos leave it as it is."""
    return sorted(videos, key=lambda video: hashlib.sha256(f"order\x1f{seed}\x1f{video.video_id}".encode()).digest())


def draw_blocks(videos: Sequence[Video], section: ViewSection) -> Iterator[dict[str, Any]]:
    """The views of all groups, videos and segments, in this order, as columns of `BLOCK_ROWS` rows and a rest.

    All columns of a plan but `view_id` and `shard`. What is known of videos is gathered once, so that millions of views
    take no more memory than their table, and a block of it.
    """
    facts = _facts(videos)
    per_group = len(videos) * section.num_sample
    rows = per_group * section.groups
    stream = KeyedStream()
    for start in range(0, rows, BLOCK_ROWS):
        place = np.arange(start, min(start + BLOCK_ROWS, rows))
        group, clip = np.divmod(place, per_group)
        which, segment = np.divmod(clip, section.num_sample)
        drawn = [
            _draw(video, section, part, stream.restart(*_key(video, section, of_group, part)))
            if video.status == "ok"
            else None
            for video, of_group, part in zip(
                map(videos.__getitem__, which.tolist()), group.tolist(), segment.tolist(), strict=True
            )
        ]
        taken = {name: values.take(pa.array(which)) for name, values in facts.items()}
        yield {"group": group.astype(np.int32), **taken, **_drawn_columns(drawn, taken["frames"].to_numpy(), section)}


def _facts(videos: Sequence[Video]) -> dict[str, pa.Array]:
    texts = {name: pa.string() for name in ("video_id", "path", "status", "detail", "decoder")}
    numbers = {name: pa.int32() for name in ("label", "width", "height", "frames")}
    return {name: pa.array([getattr(v, name) for v in videos], kind) for name, kind in {**texts, **numbers}.items()}


def _drawn_columns(
    drawn: Sequence[_Drawn | None], frames: NDArray[np.int32], section: ViewSection
) -> dict[str, pa.Array | NDArray[Any]]:
    """Columns of what was drawn; None stands for a view of a video that cannot be read."""
    there = np.array([one is not None for one in drawn])
    found = [one for one in drawn if one is not None]
    first = np.array([one.first for one in found], np.int32)
    clips = distillation_clips(frames[there], first, section.frames, section.stride)
    ends = np.concatenate([[0], np.cumsum(there * section.frames)]).astype(np.int32)
    crops = np.zeros((len(drawn), 4), np.int32)
    crops[there] = np.array([(c.x, c.y, c.w, c.h) for _, c, _ in found], np.int32).reshape(-1, 4)
    flip = np.zeros(len(drawn), bool)
    flip[there] = [one.flip for one in found]
    return {
        "frame_indices": pa.ListArray.from_arrays(pa.array(ends), pa.array(clips.reshape(-1))),
        **{f"crop_{side}": crops[:, place] for place, side in enumerate("xywh")},
        "flip": flip,
    }


def _key(video: Video, section: ViewSection, group: int, segment: int) -> tuple[int | str, ...]:
    """Of the stream that a view is drawn from."""
    which = (group, segment) if section.num_sample > 1 else (group,)
    return ("view", section.seed, video.video_id, *which)


def _draw(video: Video, section: ViewSection, segment: int, stream: KeyedStream) -> _Drawn:
    span = section.frames * section.stride
    first = distillation_first_frame(video.frames, span, stream, segment, section.num_sample)
    crop = _draw_crop(video, section, stream)
    return _Drawn(first, crop, draw_flip(section.flip, stream))


def _draw_crop(video: Video, section: ViewSection, stream: KeyedStream) -> CropBox:
    if section.crop == "multiscale":
        return draw_multiscale_crop(video.width, video.height, section.image_size, stream, section.crop_scales)
    if section.crop == "random_resized":
        return random_resized_crop_box(video.width, video.height, stream, area=section.crop_area)
    return center_crop(video.width, video.height)
