"""MultiScaleCrop against the official code's tables, and boxes that stay inside the frame."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvd_offline.errors import UsageError
from mvd_offline.randomness import KeyedStream
from mvd_offline.video.crops import (
    CropBox,
    center_crop,
    draw_multiscale_crop,
    multiscale_crop_shapes,
    multiscale_offsets,
)

TABLES: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "reference" / "mvd_tiny" / "facts.json").read_text(encoding="utf-8")
)["multi_scale_crop"]


@pytest.mark.parametrize("size", TABLES)
def test_crop_shapes_are_the_official_ones(size: str) -> None:
    width, height = map(int, size.split("x"))
    shapes = multiscale_crop_shapes(width, height, TABLES[size]["input_size"])
    assert [list(shape) for shape in shapes] == TABLES[size]["crop_wh_pairs"]


@pytest.mark.parametrize("size", TABLES)
def test_offsets_are_the_official_ones(size: str) -> None:
    width, height = map(int, size.split("x"))
    shapes = multiscale_crop_shapes(width, height, TABLES[size]["input_size"])
    offsets = [[list(o) for o in multiscale_offsets(width, height, *shape)] for shape in (shapes[0], shapes[-1])]
    assert offsets == TABLES[size]["offsets_for_first_and_last_pair"]


def test_a_size_within_three_pixels_becomes_the_image_size() -> None:
    assert (224, 224) in multiscale_crop_shapes(340, 258, 224)  # int(258 * 0.875) = 225
    assert (227, 227) in multiscale_crop_shapes(340, 260, 224)  # 227 is 3 away


def test_snapping_never_leaves_the_frame() -> None:
    assert multiscale_crop_shapes(400, 222, 224)[0] == (222, 222)


def test_all_ten_shapes_and_thirteen_offsets_are_drawn_about_equally() -> None:
    drawn = Counter(draw_multiscale_crop(401, 303, 128, KeyedStream(i)) for i in range(5200))
    by_shape = Counter[tuple[int, int]]()
    for box, count in drawn.items():
        by_shape[box.w, box.h] += count
    assert set(by_shape) == set(multiscale_crop_shapes(401, 303, 128))
    assert max(by_shape.values()) < 1.35 * min(by_shape.values())
    smallest = multiscale_crop_shapes(401, 303, 128)[-1]
    assert {(b.x, b.y) for b in drawn if (b.w, b.h) == smallest} == set(multiscale_offsets(401, 303, *smallest))


@given(st.integers(1, 2000), st.integers(1, 2000), st.sampled_from([32, 64, 196, 224]), st.integers(0, 9))
def test_crops_lie_inside_the_frame(width: int, height: int, image_size: int, seed: int) -> None:
    assert draw_multiscale_crop(width, height, image_size, KeyedStream(seed)).inside(width, height)
    square = center_crop(width, height)
    assert square.inside(width, height)
    assert square.w == square.h == min(width, height)


def test_inside_refuses_boxes_that_are_empty_or_stick_out() -> None:
    for box in (CropBox(0, 0, 0, 4), CropBox(-1, 0, 4, 4), CropBox(1, 0, 4, 4), CropBox(0, 1, 4, 4)):
        assert not box.inside(4, 4)


def test_a_frame_without_pixels_is_refused() -> None:
    with pytest.raises(UsageError, match="0 x 10"):
        center_crop(0, 10)
