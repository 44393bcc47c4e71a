"""Crops of fine-tuning and of the multi-view test."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mvd_offline.randomness import KeyedStream
from mvd_offline.video.augment import (
    draw_flip,
    multi_crop_boxes,
    multi_crop_views,
    random_resized_crop_box,
    short_side_size,
    train_view,
)
from mvd_offline.video.crops import CropBox


@given(st.integers(1, 1000), st.integers(1, 1000), st.integers(0, 99))
def test_random_resized_crops_lie_inside_the_frame(width: int, height: int, seed: int) -> None:
    assert random_resized_crop_box(width, height, KeyedStream(seed)).inside(width, height)


def test_random_resized_crops_keep_area_and_aspect_within_bounds() -> None:
    for i in range(300):
        box = random_resized_crop_box(340, 256, KeyedStream(i), area=(0.2, 0.5), aspect=(0.75, 4 / 3))
        assert 0.19 < box.w * box.h / (340 * 256) < 0.51
        assert 0.74 < box.w / box.h < 1.35


def test_a_frame_too_narrow_for_any_try_gives_the_largest_box_of_allowed_aspect() -> None:
    box = random_resized_crop_box(1000, 10, KeyedStream(0), area=(0.9, 1.0))
    assert box == CropBox(493, 0, 13, 10)


def test_flips_happen_as_often_as_asked() -> None:
    assert not any(draw_flip(0.0, KeyedStream(i)) for i in range(50))
    assert all(draw_flip(1.0, KeyedStream(i)) for i in range(50))
    assert 400 < sum(draw_flip(0.5, KeyedStream(i)) for i in range(1000)) < 600


def test_three_test_crops_run_along_the_long_side() -> None:
    assert short_side_size(340, 256, 224) == (297, 224)
    assert [(b.x, b.y) for b in multi_crop_boxes(340, 256, 224)] == [(0, 0), (36, 0), (73, 0)]
    assert [(b.x, b.y) for b in multi_crop_boxes(256, 340, 224)] == [(0, 0), (0, 36), (0, 73)]


def test_one_test_crop_is_the_centred_one() -> None:
    assert multi_crop_boxes(340, 256, 224, crops=1) == [CropBox(36, 0, 224, 224)]


def test_test_views_show_the_left_the_middle_and_the_right() -> None:
    frames = np.zeros((2, 8, 24, 3), np.uint8)
    frames[:, :, :8, 0] = frames[:, :, 8:16, 1] = frames[:, :, 16:, 2] = 255
    views = multi_crop_views(frames, 8)
    assert views.shape == (3, 2, 8, 8, 3)
    assert [int(view[0, 4, 4].argmax()) for view in views] == [0, 1, 2]


def test_a_flipped_training_view_is_the_mirror_image() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), dtype=np.uint8)
    box = CropBox(3, 2, 16, 12)
    plain, flipped = (train_view(frames, box, 8, flip=flip) for flip in (False, True))
    assert (plain[:, :, ::-1] == flipped).all()
    assert flipped.flags.c_contiguous
