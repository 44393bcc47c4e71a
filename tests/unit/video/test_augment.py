"""Crops of fine-tuning and of the multi-view test."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mvd_offline.randomness import KeyedStream
from mvd_offline.video.crops import CropBox, draw_flip, random_resized_crop_box
from mvd_offline.video.multicrop import (
    multi_crop_boxes,
    multi_crop_views,
    short_side_size,
)
from mvd_offline.video.render import Resample, crop_and_resize, pixel_hash


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


def test_test_views_are_interpolated_without_antialiasing() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (1, 40, 40, 3), dtype=np.uint8)
    view = multi_crop_views(frames, 8, crops=1)[0]
    assert (view == crop_and_resize(frames, CropBox(0, 0, 40, 40), 8, 8, resample="bilinear")).all()


# ---- resizing


def wavy_frames() -> np.ndarray:
    """uint8 (3, 60, 80, 3) from integer formulas alone."""
    y, x, t = np.meshgrid(np.arange(60), np.arange(80), np.arange(3), indexing="ij")
    channels = [(y * (3 + c) + x * (5 + 2 * c) + t * 31 + (y * x) % (17 + c)) % 256 for c in range(3)]
    return np.ascontiguousarray(np.stack(channels, axis=-1).transpose(2, 0, 1, 3).astype(np.uint8))


def test_the_pixels_of_distillation_have_not_changed() -> None:
    frames = wavy_frames()
    shrunk = crop_and_resize(frames, CropBox(7, 3, 52, 40), 32, 32)
    grown = crop_and_resize(frames, CropBox(7, 3, 20, 16), 32, 32, flip=True)
    assert (pixel_hash(shrunk), pixel_hash(grown)) == ("5014d13914c470bc", "790ac80a856c4b84")


@pytest.mark.parametrize(("resample", "way"), [("bilinear_antialias", 2), ("bicubic_antialias", 3)])
def test_antialiased_resizing_is_pils(resample: Resample, way: int) -> None:
    frames = wavy_frames()
    found = crop_and_resize(frames, CropBox(5, 4, 70, 50), 24, 16, resample=resample)
    expected = Image.fromarray(frames[1]).crop((5, 4, 75, 54)).resize((24, 16), Image.Resampling(way))
    assert (found[1] == np.asarray(expected)).all()


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))
def test_plain_bilinear_is_torchs_to_rounding(width: int, height: int, w: int, h: int, seed: int) -> None:
    frames = np.random.default_rng(seed).integers(0, 256, (2, height + 3, width + 2, 3), dtype=np.uint8)
    found = crop_and_resize(frames, CropBox(2, 3, width, height), w, h, resample="bilinear")
    inside = torch.from_numpy(frames[:, 3:, 2:]).permute(0, 3, 1, 2).float()
    expected = torch.nn.functional.interpolate(inside, (h, w), mode="bilinear", align_corners=False, antialias=False)
    # 0.5 of rounding; torch computes positions in float32.
    assert np.abs(found - expected.permute(0, 2, 3, 1).numpy()).max() <= 0.52


def test_plain_bilinear_is_neither_darker_nor_brighter() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (1, 240, 320, 3), dtype=np.uint8)
    found = crop_and_resize(frames, CropBox(0, 0, 320, 240), 224, 224, resample="bilinear")
    inside = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    expected = torch.nn.functional.interpolate(inside, (224, 224), mode="bilinear", align_corners=False)
    assert abs(found.mean() - float(expected.mean())) < 0.02


def test_a_flip_mirrors_the_resized_crop() -> None:
    for resample in get_args(Resample):
        plain, flipped = (
            crop_and_resize(wavy_frames(), CropBox(3, 2, 16, 12), 8, 8, flip=flip, resample=resample)
            for flip in (False, True)
        )
        assert (plain[:, :, ::-1] == flipped).all()
        assert flipped.flags.c_contiguous


def test_a_crop_beyond_the_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="does not lie inside frames of 80 x 60 pixels"):
        crop_and_resize(wavy_frames(), CropBox(40, 0, 41, 10), 8, 8)
