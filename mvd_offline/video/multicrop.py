"""Geometry of the multi-view test: square crops along the long side.

Frames are resized by bilinear interpolation without antialiasing, as the MVD official code does with OpenCV.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mvd_offline.errors import UsageError
from mvd_offline.video.crops import CropBox
from mvd_offline.video.render import crop_and_resize


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
