"""Frame numbers of clips, against the official code's and as properties."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvd_offline.errors import UsageError
from mvd_offline.randomness import KeyedStream
from mvd_offline.video.sampling import (
    dense_indices_until,
    dense_test_indices,
    dense_train_indices,
    distillation_clips,
    distillation_first_frame,
    distillation_indices,
    uniform_test_indices,
    uniform_train_indices,
)

FACTS: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "reference" / "mvd_tiny" / "facts.json").read_text(encoding="utf-8")
)


@pytest.mark.parametrize("case", FACTS["distillation_frame_indices"], ids=str)
def test_distillation_frames_are_the_official_ones(case: dict[str, Any]) -> None:
    assert list(distillation_indices(case["frames_in_video"], case["first_frame"])) == case["indices"]


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_a_video_of_at_most_five_frames_repeats_its_first(frames: int) -> None:
    assert distillation_indices(frames, 0) == (0,) * 16


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(0, 299)), max_size=8), st.integers(1, 9), st.integers(1, 40))
def test_many_clips_at_once_are_those_one_by_one(clips: list[tuple[int, int]], frames: int, stride: int) -> None:
    starts = [(length, first % length) for length, first in clips]
    found = distillation_clips(*np.array(starts, np.int32).reshape(-1, 2).T, frames, stride)
    assert list(map(tuple, found.tolist())) == [distillation_indices(*start, frames, stride) for start in starts]


def test_sixteen_frames_give_four_different_ones() -> None:
    assert distillation_indices(16, 0) == (0, 4, 8, *[12] * 13)


def test_the_first_frame_reaches_both_ends_of_its_range_and_no_further() -> None:
    drawn = {distillation_first_frame(67, 64, KeyedStream(i)) for i in range(200)}
    assert drawn == {0, 1, 2, 3}


@pytest.mark.parametrize("frames", [1, 10, 63, 64])
def test_a_video_no_longer_than_the_span_starts_at_its_first_frame(frames: int) -> None:
    assert distillation_first_frame(frames, 64, KeyedStream(0)) == 0


@given(st.integers(1, 300), st.integers(1, 80), st.integers(1, 6), st.integers(0, 9))
def test_several_clips_start_in_equal_parts_and_one_clip_anywhere(
    frames: int, span: int, segments: int, seed: int
) -> None:
    starts = max(1, frames - span + 1)
    drawn = [distillation_first_frame(frames, span, KeyedStream(seed, s), s, segments) for s in range(segments)]
    assert all(0 <= first < starts for first in drawn)
    if part := (frames - span + 1) // segments if frames >= span else 0:
        assert [first // part for first in drawn] == list(range(segments))
    whole = distillation_first_frame(frames, span, KeyedStream(seed))
    assert whole == (KeyedStream(seed).below(starts) if frames >= span else 0)


@pytest.mark.parametrize("case", FACTS["dense_test_indices"], ids=lambda case: case["frames_in_video"])
def test_dense_test_clips_are_the_official_ones(case: dict[str, Any]) -> None:
    clips = [list(dense_test_indices(case["frames_in_video"], clip)) for clip in range(5)]
    assert clips == case["clips"]


@pytest.mark.parametrize("case", FACTS["uniform_test_indices"], ids=lambda case: case["frames_in_video"])
def test_uniform_test_clips_are_the_official_ones(case: dict[str, Any]) -> None:
    clips = [list(uniform_test_indices(case["frames_in_video"], clip)) for clip in range(2)]
    assert clips == case["clips"]


def test_uniform_test_clips_of_48_frames() -> None:
    first, second = (uniform_test_indices(48, clip) for clip in range(2))
    assert (first[:2], first[-1]) == ((0, 3), 45)
    assert second[:4] == (2, 5, 8, 11)
    assert (second[7], second[8], second[9], second[-1]) == (23, 25, 28, 46)


def test_dense_training_windows_are_spaced_by_64_over_15() -> None:
    assert dense_indices_until(300, 64) == (0, 4, 8, 12, 17, 21, 25, 29, 34, 38, 42, 46, 51, 55, 59, 63)


def test_short_videos_pad_dense_training_clips_with_their_last_frame() -> None:
    assert dense_indices_until(40, 40) == (0, 4, 8, 13, 17, 22, 26, 31, 35, *[39] * 7)
    assert dense_indices_until(16, 16) == (0, 5, 10, *[15] * 13)


def test_dense_training_windows_end_anywhere_between_the_span_and_the_last_frame() -> None:
    starts = {dense_train_indices(68, KeyedStream(i))[0] for i in range(200)}
    assert starts == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("frames", "bounds"),
    [
        # 2.4375 frames a segment: 19.5 is rounded to 20.
        (40, (0, 2, 5, 7, 10, 12, 15, 17, 20, 22, 24, 27, 29, 32, 34, 37, 39)),
        # 1.5 frames a segment: halves are rounded to the even neighbour, 1.5 to 2, 4.5 to 4, 7.5 to 8.
        (25, (0, 2, 3, 4, 6, 8, 9, 10, 12, 14, 15, 16, 18, 20, 21, 22, 24)),
        # Fewer frames than segments.
        (9, (0, 0, 1, 2, 2, 2, 3, 4, 4, 4, 5, 6, 6, 6, 7, 8, 8)),
    ],
)
def test_uniform_training_segments_share_their_ends_and_reach_both(frames: int, bounds: tuple[int, ...]) -> None:
    drawn = [uniform_train_indices(frames, KeyedStream(i)) for i in range(150)]
    for segment in range(16):
        low, high = bounds[segment : segment + 2]
        assert {indices[segment] for indices in drawn} == set(range(low, high + 1))


def test_a_video_of_just_the_span_is_a_short_one_and_of_one_frame_more_a_long_one() -> None:
    assert dense_train_indices(64, KeyedStream(0)) == dense_indices_until(64, 64)
    assert dense_indices_until(64, 64) == (0, 4, 8, 12, 17, 21, 25, 29, 34, 38, 42, 46, 51, 55, 59, 63)
    assert {dense_train_indices(65, KeyedStream(i)) for i in range(20)} == {dense_indices_until(65, 64)}


def test_one_dense_test_clip_is_the_centred_one() -> None:
    assert dense_test_indices(300, 0, clips=1)[0] == 4 * ((75 - 16) // 2)


@given(st.integers(1, 2000), st.integers(0, 99), st.sampled_from([(16, 4), (8, 4), (8, 2), (4, 1)]))
def test_every_sampler_gives_ascending_frames_of_the_video(frames: int, seed: int, clip: tuple[int, int]) -> None:
    count, stride = clip
    stream = KeyedStream("test", seed)
    first = distillation_first_frame(frames, count * stride, stream)
    samples = [
        distillation_indices(frames, first, count, stride),
        dense_train_indices(frames, stream, count, stride),
        uniform_train_indices(frames, stream, count),
        *(dense_test_indices(frames, c, 5, count, stride) for c in range(5)),
        *(uniform_test_indices(frames, c, 2, count) for c in range(2)),
    ]
    for sample in samples:
        assert len(sample) == count
        assert list(sample) == sorted(sample)
        assert sample[0] >= 0
        assert sample[-1] < frames


def test_impossible_requests_are_refused() -> None:
    with pytest.raises(UsageError, match="at least one frame"):
        distillation_indices(0, 0)
    with pytest.raises(UsageError, match="outside"):
        distillation_indices(10, 10)
    with pytest.raises(UsageError, match="numbered from 0 to 4"):
        dense_test_indices(10, 5)
    with pytest.raises(UsageError, match="allowed: 64 to 99"):
        dense_indices_until(100, 100)
