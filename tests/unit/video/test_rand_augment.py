"""RandAugment of clips: timm's operations, our draws."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from timm.data import auto_augment as timm_augment

from mvd_offline.randomness import KeyedStream
from mvd_offline.recipe import RandAugmentSection
from mvd_offline.video.decode import decode
from mvd_offline.video.rand_augment import ARGUMENTS, Operation, apply_operations, draw_operations

SECTION = RandAugmentSection()


@pytest.fixture(scope="module")
def frames(synthetic_videos: Path) -> NDArray[np.uint8]:
    """Three frames of a video, with some colour, which the generated ones have not."""
    grey = decode(sorted(synthetic_videos.rglob("*.mp4"))[5], (0, 9, 18)).frames
    tint = np.linspace([0.9, 0.4, 0.2], [0.2, 0.6, 1.0], grey.shape[2])
    return np.ascontiguousarray((grey * tint).astype(np.uint8))


def test_the_operations_are_those_of_timms_increasing_policy() -> None:
    assert list(ARGUMENTS) == timm_augment.rand_augment_choices("original", increasing=True)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_are_timms_at_every_level_and_for_both_signs(name: str) -> None:
    level_to_argument = timm_augment.LEVEL_TO_ARG[name]
    for level in np.linspace(0.0, 10.0, 41):
        ours = {ARGUMENTS[name](level, sign) for sign in (1.0, -1.0)}
        if level_to_argument is None:
            assert ours == {()}
            continue
        random.seed(0)
        assert ours == {level_to_argument(level, {}) for _ in range(20)}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_frames_become_what_timms_own_operation_makes_of_them(name: str, frames: NDArray[np.uint8]) -> None:
    theirs = timm_augment.AugmentOp(
        name, prob=1.0, magnitude=7, hparams={"img_mean": (128, 128, 128), "interpolation": Image.Resampling.BICUBIC}
    )
    ours = [apply_operations(frames, [Operation(name, ARGUMENTS[name](7.0, sign))]) for sign in (1.0, -1.0)]
    for seed in range(4):
        for place, frame in enumerate(frames):
            random.seed(seed)  # timm draws the sign, and draws it anew for every picture
            expected = np.asarray(theirs(Image.fromarray(frame)))
            assert any(np.array_equal(clip[place], expected) for clip in ours)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_the_greatest_and_the_least_level_can_be_applied(name: str, frames: NDArray[np.uint8]) -> None:
    for level in (0.0, 10.0):
        out = apply_operations(frames, [Operation(name, ARGUMENTS[name](level, 1.0))])
        assert out.shape == frames.shape
        assert out.any() != (name == "PosterizeIncreasing" and level == 10.0), "no bit is left of any colour"


def test_operations_follow_each_other_and_leave_the_frames_as_they_were(frames: NDArray[np.uint8]) -> None:
    before = frames.copy()
    first, second = Operation("Rotate", (21.0,)), Operation("SolarizeIncreasing", (77,))
    both = apply_operations(frames, [first, second])
    assert np.array_equal(both, apply_operations(apply_operations(frames, [first]), [second]))
    assert not np.array_equal(both, apply_operations(apply_operations(frames, [second]), [first]))
    assert np.array_equal(frames, before)
    assert np.array_equal(apply_operations(frames, []), frames)


def test_all_frames_of_a_clip_go_through_one_draw(frames: NDArray[np.uint8]) -> None:
    still = np.stack([frames[0]] * 4)
    changed = 0
    for key in range(20):
        out = apply_operations(still, draw_operations(SECTION, KeyedStream(key)))
        assert (out == out[:1]).all()
        changed += not np.array_equal(out, still)
    assert changed > 12


def test_a_draw_is_a_function_of_its_key() -> None:
    one, same, other = (draw_operations(SECTION, KeyedStream("clip", key)) for key in (0, 0, 1))
    assert one == same != other


def test_draws_have_the_shares_rates_and_levels_of_the_recipe() -> None:
    draws = [draw_operations(SECTION, KeyedStream("many", key)) for key in range(6000)]
    applied = [operation for draw in draws for operation in draw]

    # 4 are drawn, each is applied with probability 1/2.
    assert len(applied) / (4 * len(draws)) == pytest.approx(0.5, abs=0.015)
    number = Counter(len(draw) for draw in draws)
    assert [number[k] / len(draws) for k in range(5)] == pytest.approx(
        [1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16], abs=0.02
    )
    # Every operation as often as every other, also twice in a clip.
    share = Counter(operation.name for operation in applied)
    assert set(share) == set(ARGUMENTS)
    assert all(count / len(applied) == pytest.approx(1 / 15, abs=0.012) for count in share.values())
    assert any(len({operation.name for operation in draw}) < len(draw) for draw in draws)

    degrees = np.array([operation.arguments[0] for operation in applied if operation.name == "Rotate"])
    assert (degrees > 0).mean() == pytest.approx(0.5, abs=0.08)
    levels = np.abs(degrees) / 3.0
    assert levels.mean() == pytest.approx(7.0, abs=0.08)
    assert levels.std() == pytest.approx(0.5, abs=0.06)


def test_levels_stay_within_zero_and_ten() -> None:
    for magnitude, reached in ((10.0, 30.0), (0.0, 0.0)):
        section = RandAugmentSection(magnitude=magnitude, magnitude_std=2.0, probability=1.0)
        applied = [o for key in range(200) for o in draw_operations(section, KeyedStream(key)) if o.name == "Rotate"]
        degrees = [abs(operation.arguments[0]) for operation in applied]
        assert reached in degrees, "about half of the draws lie beyond the limit"
        assert all(0.0 <= value <= 30.0 for value in degrees)


def test_every_drawn_operation_is_applied_or_none_where_the_recipe_says_so() -> None:
    for probability, expected in ((0.0, 0), (1.0, 4)):
        section = RandAugmentSection(probability=probability)
        assert {len(draw_operations(section, KeyedStream(key))) for key in range(50)} == {expected}
