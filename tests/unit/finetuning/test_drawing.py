"""What is drawn for the views of a video: frames, repeated views, what is erased."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import NAME_TO_OP
from torch.nn import functional as F

from mvd_offline.finetuning.drawing import Erasure, SampleKey, ViewDraw, draw_clip, draw_erasure
from mvd_offline.models.inputs import normalize
from mvd_offline.randomness import KeyedStream
from mvd_offline.recipe import AugmentSection, ClipSection, ErasingSection, RandAugmentSection
from mvd_offline.video.crops import CropBox
from mvd_offline.video.rand_augment import Operation, apply_operations
from mvd_offline.video.render import crop_and_resize

CLIP = ClipSection(frames=4, stride=4, image_size=32)
EVERYTHING = AugmentSection(repeats=2, rand_augment=RandAugmentSection(), erasing=ErasingSection(probability=0.5))


def test_repeated_views_share_their_frames_and_nothing_else(known_videos: Any) -> None:
    draws = [draw_clip(known_videos.ramp, CLIP, EVERYTHING, SampleKey(0, epoch, "ramp.mp4")) for epoch in range(40)]
    assert len({draw.indices for draw in draws}) > 10
    pairs = [draw.views for draw in draws]
    assert all(first.crop != second.crop for first, second in pairs)
    assert sum(first.operations != second.operations for first, second in pairs) > 30
    assert sum(first.flip != second.flip for first, second in pairs) == pytest.approx(20, abs=12)
    erased = [(first.erasure is None) == (second.erasure is None) for first, second in pairs]
    assert sum(erased) == pytest.approx(20, abs=12)


def test_a_draw_is_a_function_of_seed_epoch_and_video(known_videos: Any) -> None:
    draw = draw_clip(known_videos.ramp, CLIP, EVERYTHING, SampleKey(0, 3, "ramp.mp4"))
    assert draw == draw_clip(known_videos.ramp, CLIP, EVERYTHING, SampleKey(0, 3, "ramp.mp4"))
    for other in (
        draw_clip(known_videos.ramp, CLIP, EVERYTHING, SampleKey(0, 4, "ramp.mp4")),
        draw_clip(known_videos.ramp, CLIP, EVERYTHING, SampleKey(1, 3, "ramp.mp4")),
        draw_clip(known_videos.ramp, CLIP, EVERYTHING, SampleKey(0, 3, "other.mp4")),
    ):
        assert all(a != b for a, b in zip(draw.views, other.views, strict=True))


def test_what_else_a_recipe_asks_for_changes_neither_frames_nor_crops(known_videos: Any) -> None:
    """So that a comparison with and without one kind of augmentation compares nothing else."""
    all_of_it = draw_clip(known_videos.ramp, CLIP, EVERYTHING, SampleKey(0, 0, "ramp.mp4"))
    plain = draw_clip(known_videos.ramp, CLIP, AugmentSection(), SampleKey(0, 0, "ramp.mp4"))
    assert plain.indices == all_of_it.indices
    (view,) = plain.views
    assert view == replace(all_of_it.views[0], operations=(), erasure=None)


def test_whole_frames_are_augmented_before_the_crop() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 40, 60, 3), dtype=np.uint8)
    operations, crop = (Operation("Rotate", (30.0,)), Operation("ShearX", (0.2,))), CropBox(20, 4, 24, 30)
    found = ViewDraw(operations, crop, True, None).render(frames, 16)
    rotated = apply_operations(frames, operations)
    assert np.array_equal(found, crop_and_resize(rotated, crop, 16, 16, flip=True, resample="bilinear"))
    cropped = frames[:, 4:34, 20:44]
    other_order = crop_and_resize(apply_operations(cropped, operations), CropBox(0, 0, 24, 30), 16, 16, flip=True)
    assert not np.array_equal(found, other_order)


def test_a_view_is_that_of_the_released_order_to_the_rounding_of_its_pixels() -> None:
    """There, clips are normalised before they are cropped, and never rounded after RandAugment."""
    frames = np.random.default_rng(0).integers(0, 256, (2, 40, 60, 3), dtype=np.uint8)
    operations, crop = (
        (Operation("ColorIncreasing", (1.6,)), Operation("TranslateYRel", (-0.3,))),
        CropBox(9, 4, 24, 30),
    )
    ours = normalize(torch.from_numpy(ViewDraw(operations, crop, True, None).render(frames, 16))[None])[0]
    pictures = [Image.fromarray(frame) for frame in frames]
    for name, argument in (("ColorIncreasing", 1.6), ("TranslateYRel", -0.3)):
        how = {"fillcolor": (128, 128, 128), "resample": Image.Resampling.BICUBIC}
        pictures = [NAME_TO_OP[name](picture, argument, **how) for picture in pictures]
    clip = normalize(torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))[None])[0]
    cut = clip[:, :, 4:34, 9:33]
    theirs = F.interpolate(cut, (16, 16), mode="bilinear", align_corners=False, antialias=False).flip(3)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0.52 / 255 / 0.224)


def test_erased_boxes_have_the_shares_and_shapes_of_the_recipe() -> None:
    drawn = [draw_erasure(ErasingSection(), 224, KeyedStream(key)) for key in range(8000)]
    erasures = [erasure for erasure in drawn if erasure]
    assert len(erasures) / len(drawn) == pytest.approx(0.25, abs=0.02)
    boxes = [erasure.box for erasure in erasures]
    area = np.array([box.w * box.h for box in boxes]) / 224**2
    aspect = np.array([box.h / box.w for box in boxes])
    assert all(box.inside(224, 224) and max(box.w, box.h) < 224 for box in boxes)
    assert 0.018 < area.min() < 0.025
    assert 0.325 < area.max() < 0.337
    # Uniform, but for the few large and long boxes that do not fit.
    assert area.mean() == pytest.approx((0.02 + 1 / 3) / 2, abs=0.01)
    assert 0.28 < aspect.min() < 0.35
    assert 2.9 < aspect.max() < 3.5
    assert (aspect > 1).mean() == pytest.approx(0.5, abs=0.05)
    assert {box.x for box in boxes} >= {0, 100}
    assert len({erasure.seed for erasure in erasures}) == len(erasures)


def test_a_frame_that_no_box_fits_into_is_left_whole() -> None:
    section = ErasingSection(probability=1.0, area=(1.0, 1.0), aspect=(1.0, 1.0))
    assert draw_erasure(section, 32, KeyedStream(0)) is None
    whole = draw_erasure(ErasingSection(probability=1.0), 32, KeyedStream(0))
    assert isinstance(whole, Erasure)
    assert draw_erasure(ErasingSection(probability=0.0), 32, KeyedStream(0)) is None
