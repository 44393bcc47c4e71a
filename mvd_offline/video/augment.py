"""Geometry of fine-tuning: random resized crops for training, square crops along the long side for testing.

Both resize by bilinear interpolation without antialiasing, as the MVD official code does (torch in training, OpenCV in
testing).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mvd_offline.errors import UsageError
from mvd_offline.video.catalog import Video
from mvd_offline.video.crops import CropBox
from mvd_offline.video.render import View, crop_and_resize


def clip_view(video: Video, frame_indices: Sequence[int], crop: CropBox, *, flip: bool, group: int) -> View:
    """A drawn clip as a view, for `render`; it belongs to no store, so it has no place in a table."""
    return View(
        view_id=0,
        shard=0,
        group=group,
        video_id=video.video_id,
        path=video.path,
        label=video.label,
        frame_indices=tuple(frame_indices),
        crop=crop,
        flip=flip,
        width=video.width,
        height=video.height,
        frames=video.frames,
        status=video.status,
        detail=video.detail,
        decoder=video.reader,
    )


def short_side_size(width: int, height: int, size: int) -> tuple[int, int]:
    """(width, height) with the shorter side resized to `size`, the longer one in proportion, truncated."""
    return (size, int(size * height / width)) if width <= height else (int(size * width / height), size)


def multi_crop_boxes(width: int, height: int, size: int, crops: int = 3) -> list[CropBox]:
    """Squares of `size`, evenly along the long side of a frame that was resized by `short_side_size`.

    Three crops are those of the MVD official code; a single one is centred. Boxes are pixels of the resized frame.
    """
    if crops < 1:
        raise UsageError(f"a test takes at least 1 crop, not {crops}")
    wide, high = short_side_size(width, height, size)
    room = max(wide, high) - size
    steps = [int(k * (room / (crops - 1))) for k in range(crops)] if crops > 1 else [room // 2]
    return [CropBox(step, 0, size, size) if wide >= high else CropBox(0, step, size, size) for step in steps]


def multi_crop_views(frames: NDArray[np.uint8], size: int, crops: int = 3) -> NDArray[np.uint8]:
    """Every crop of `multi_crop_boxes` of a clip: uint8 (T, H, W, 3) -> (crops, T, size, size, 3)."""
    height, width = frames.shape[1:3]
    wide, high = short_side_size(width, height, size)
    resized = crop_and_resize(frames, CropBox(0, 0, width, height), wide, high, resample="bilinear")
    boxes = multi_crop_boxes(width, height, size, crops)
    return np.stack([resized[:, box.y : box.y + box.h, box.x : box.x + box.w] for box in boxes])
