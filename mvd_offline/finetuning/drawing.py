"""What is drawn for each view of a video in an epoch: pure functions of (seed, epoch, video, repeat)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mvd_offline.randomness import KeyedStream
from mvd_offline.recipe import AugmentSection, ClipSection, ErasingSection
from mvd_offline.video.catalog import Video
from mvd_offline.video.crops import CropBox, draw_flip, random_resized_crop_box
from mvd_offline.video.rand_augment import Operation, apply_operations, draw_operations
from mvd_offline.video.render import crop_and_resize
from mvd_offline.video.sampling import Indices, dense_train_indices, uniform_train_indices

_TRIES = 100


@dataclass(frozen=True)
class Erasure:
    """A box of the view's pixels that becomes noise; `seed` is that of the noise."""

    box: CropBox
    seed: int


@dataclass(frozen=True)
class ViewDraw:
    """How one view is made of a clip's frames, in this order; all frames are treated alike."""

    operations: tuple[Operation, ...]
    crop: CropBox
    """Of the whole frame, in its pixels."""
    flip: bool
    erasure: Erasure | None
    """Of the normalised view."""

    def render(self, frames: NDArray[np.uint8], image_size: int) -> NDArray[np.uint8]:
        """The view before erasing: uint8 (T, H, W, 3) to uint8 (T, image_size, image_size, 3)."""
        changed = apply_operations(frames, self.operations)
        return crop_and_resize(changed, self.crop, image_size, image_size, flip=self.flip, resample="bilinear")


@dataclass(frozen=True)
class ClipDraw:
    """The frames of a video in an epoch, and the views that are made of them."""

    indices: Indices
    views: tuple[ViewDraw, ...]


@dataclass(frozen=True)
class SampleKey:
    """What the draws for a video in an epoch depend on."""

    seed: int
    epoch: int
    video_id: str

    def stream(self, use: str, repeat: int = 0) -> KeyedStream:
        """The draws of one use for one view of the video."""
        key = (use, self.seed, self.epoch, self.video_id)
        return KeyedStream(*key, repeat) if repeat else KeyedStream(*key)


def draw_clip(video: Video, clip: ClipSection, augment: AugmentSection, key: SampleKey) -> ClipDraw:
    """The frames that a video shows in an epoch, and the repeated views of them."""
    # The first view's crop and flip go on in the stream of the frames.
    streams = [key.stream("augment", repeat) for repeat in range(augment.repeats)]
    if clip.sampling == "dense":
        indices = dense_train_indices(video.frames, streams[0], clip.frames, clip.stride)
    else:
        indices = uniform_train_indices(video.frames, streams[0], clip.frames)
    views = []
    for repeat, stream in enumerate(streams):
        operations: tuple[Operation, ...] = ()
        if augment.rand_augment:
            operations = draw_operations(augment.rand_augment, key.stream("rand_augment", repeat))
        crop = random_resized_crop_box(video.width, video.height, stream, augment.area, augment.aspect)
        flip, erasure = draw_flip(augment.flip, stream), None
        if augment.erasing:
            erasure = draw_erasure(augment.erasing, clip.image_size, key.stream("erasing", repeat))
        views.append(ViewDraw(operations, crop, flip, erasure))
    return ClipDraw(indices, tuple(views))


def draw_erasure(section: ErasingSection, image_size: int, stream: KeyedStream) -> Erasure | None:
    """A box smaller than the square view, if this view is erased and a fitting one is found in 100 tries."""
    if stream.uniform() >= section.probability:
        return None
    low, high = (math.log(ratio) for ratio in section.aspect)
    for _ in range(_TRIES):
        area = image_size**2 * stream.uniform(*section.area)
        aspect = math.exp(stream.uniform(low, high))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < h < image_size and 0 < w < image_size:
            y, x = stream.below(image_size - h + 1), stream.below(image_size - w + 1)
            return Erasure(CropBox(x, y, w, h), stream.torch_seed())
    return None
