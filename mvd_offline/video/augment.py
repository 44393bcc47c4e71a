"""Geometry of fine-tuning: random resized crops for training, square crops along the long side for testing.

numpy and PIL only. PIL's bilinear resize is antialiased when it shrinks; the official code's is not (torch in training,
OpenCV in testing).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mvd_offline.errors import UsageError
from mvd_offline.randomness import KeyedStream
from mvd_offline.video.crops import CropBox
from mvd_offline.video.render import crop_and_resize

_TRIES = 10


def random_resized_crop_box(
    width: int,
    height: int,
    stream: KeyedStream,
    area: tuple[float, float] = (0.08, 1.0),
    aspect: tuple[float, float] = (0.75, 4 / 3),
) -> CropBox:
    """A box of random area (a share of the frame) and random width / height, log-uniform; 10 tries to fit one in.

    Else the largest centred box whose aspect is within bounds.
    """
    for _ in range(_TRIES):
        pixels = width * height * stream.uniform(*area)
        ratio = math.exp(stream.uniform(math.log(aspect[0]), math.log(aspect[1])))
        w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < w <= width and 0 < h <= height:
            return CropBox(stream.below(width - w + 1), stream.below(height - h + 1), w, h)
    ratio = min(max(width / height, aspect[0]), aspect[1])
    w, h = min(width, max(1, round(height * ratio))), min(height, max(1, round(width / ratio)))
    return CropBox((width - w) // 2, (height - h) // 2, w, h)


def draw_flip(probability: float, stream: KeyedStream) -> bool:
    """Whether a clip is flipped horizontally."""
    return stream.uniform() < probability


def train_view(frames: NDArray[np.uint8], box: CropBox, size: int, *, flip: bool) -> NDArray[np.uint8]:
    """One crop for the whole clip: uint8 (T, H, W, 3) -> (T, size, size, 3)."""
    return crop_and_resize(frames, box, size, size, flip=flip)


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
    resized = crop_and_resize(frames, CropBox(0, 0, width, height), wide, high)
    boxes = multi_crop_boxes(width, height, size, crops)
    return np.stack([resized[:, box.y : box.y + box.h, box.x : box.x + box.w] for box in boxes])
