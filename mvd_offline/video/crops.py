"""Where a view is cut out of a frame: integer boxes, in pixels of the decoded frame."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from mvd_offline.errors import UsageError
from mvd_offline.randomness import KeyedStream

SCALES = (1.0, 0.875, 0.75, 0.66)
"""MVD's crop sizes as shares of the shorter side."""

# In quarters of the room that the crop leaves: corners, centre, edge middles, quarter points.
_OFFSETS = (
    (0, 0), (4, 0), (0, 4), (4, 4), (2, 2), (0, 2), (4, 2), (2, 4), (2, 0), (1, 1), (3, 1), (1, 3), (3, 3),
)  # fmt: skip
_SNAP_PIXELS = 3
_TRIES = 10


@dataclass(frozen=True)
class CropBox:
    """`w` x `h` pixels whose top left pixel is `(x, y)`."""

    x: int
    y: int
    w: int
    h: int

    def inside(self, width: int, height: int) -> bool:
        """Whether the box is not empty and lies within a frame of `width` x `height` pixels."""
        fits = self.x + self.w <= width and self.y + self.h <= height
        return fits and min(self.w, self.h) >= 1 and min(self.x, self.y) >= 0


def multiscale_crop_shapes(
    width: int, height: int, image_size: int, scales: Sequence[float] = SCALES
) -> list[tuple[int, int]]:
    """All `(w, h)` of MultiScaleCrop (MVD official code): neighbouring sizes paired; 10 for four scales.

    A size less than 3 pixels from `image_size` becomes `image_size`, which saves a resize. Where the shorter side
    itself is 1 or 2 pixels below `image_size` that would reach beyond the frame, and the size is kept (the official
    code pads with black there).
    """
    base = _short_side(width, height)
    sizes = [max(1, int(base * scale)) for scale in scales]
    sizes = [image_size if abs(size - image_size) < _SNAP_PIXELS and image_size <= base else size for size in sizes]
    return [(w, h) for i, h in enumerate(sizes) for j, w in enumerate(sizes) if abs(i - j) <= 1]


def multiscale_offsets(width: int, height: int, w: int, h: int) -> list[tuple[int, int]]:
    """The 13 `(x, y)` of a `w` x `h` crop in MultiScaleCrop (MVD official code), in its order, duplicates kept."""
    dx, dy = (width - w) // 4, (height - h) // 4
    return [(dx * column, dy * row) for column, row in _OFFSETS]


def draw_multiscale_crop(
    width: int, height: int, image_size: int, stream: KeyedStream, scales: Sequence[float] = SCALES
) -> CropBox:
    """One shape, then one offset, each uniform: MVD's crop of a whole clip."""
    shapes = _shapes(width, height, image_size, tuple(scales))
    w, h = shapes[stream.below(len(shapes))]
    offsets = multiscale_offsets(width, height, w, h)
    x, y = offsets[stream.below(len(offsets))]
    return CropBox(x, y, w, h)


def center_crop(width: int, height: int) -> CropBox:
    """The largest centred square."""
    side = _short_side(width, height)
    return CropBox((width - side) // 2, (height - side) // 2, side, side)


def random_resized_crop_box(
    width: int,
    height: int,
    stream: KeyedStream,
    area: tuple[float, float] = (0.08, 1.0),
    aspect: tuple[float, float] = (0.75, 4 / 3),
) -> CropBox:
    """torchvision's: a box of random area (a share of the frame) and random width / height, log-uniform; 10 tries.

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


@lru_cache
def _shapes(width: int, height: int, image_size: int, scales: tuple[float, ...]) -> tuple[tuple[int, int], ...]:
    # The frames of a data set have few sizes, and a plan draws millions of crops.
    return tuple(multiscale_crop_shapes(width, height, image_size, scales))


def _short_side(width: int, height: int) -> int:
    side = min(width, height)
    if side < 1:
        raise UsageError(f"a frame has at least one pixel along each axis, not {width} x {height}")
    return side
