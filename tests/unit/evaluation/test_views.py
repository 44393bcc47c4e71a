"""Which frames and crops a test looks at, in which batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mvd_offline.evaluation.views import ViewBatches
from mvd_offline.recipe import ClipSection, EvaluationSection
from mvd_offline.video.catalog import Video
from mvd_offline.video.decode import decode
from mvd_offline.video.multicrop import multi_crop_views

CLIP = ClipSection(frames=4, stride=4, image_size=32)
VIEWS = EvaluationSection(segments=2, crops=3, batch_size=12)


def batches(known_videos: Any, *videos: Video, clip: ClipSection = CLIP, **changes: int) -> ViewBatches:
    section = VIEWS.model_copy(update=changes)
    return ViewBatches(videos or (known_videos.ramp,), known_videos.root, clip, section)


def test_dense_clips_are_spread_over_the_whole_video_at_the_exact_stride(known_videos: Any) -> None:
    views = batches(known_videos, segments=3, crops=1).views(0)
    # 54 frames: every fourth is 0, 4, ..., 52 (14 of them); clips of 4 start at entries 0, 5 and 10.
    assert [known_videos.frames_in(view) for view in views] == [[0, 4, 8, 12], [20, 24, 28, 32], [40, 44, 48, 52]]


def test_uniform_clips_take_their_half_of_every_segment(known_videos: Any) -> None:
    uniform = ClipSection(frames=4, image_size=32, sampling="uniform")
    views = batches(known_videos, clip=uniform, crops=1).views(0)
    # Segments of 13.25 frames, halves of 6.625: the middles of [0, 7], [13, 20], ... and of [7, 13], [20, 26], ...
    assert [known_videos.frames_in(view) for view in views] == [[3, 16, 29, 43], [10, 23, 36, 49]]


def test_views_come_clip_by_clip_and_crop_by_crop(known_videos: Any) -> None:
    disc = known_videos.disc
    views = batches(known_videos, disc).views(0)
    clips = [decode(known_videos.root / disc.path, frames).frames for frames in ((0, 4, 8, 12), (4, 8, 12, 16))]
    assert (views == np.concatenate([multi_crop_views(clip, 32, 3) for clip in clips])).all()


@pytest.mark.parametrize("sampling", ["dense", "uniform"])
@pytest.mark.parametrize(("segments", "crops"), [(1, 1), (1, 3), (3, 1), (5, 2), (7, 4)])
def test_any_number_of_segments_and_crops_works(sampling: Any, segments: int, crops: int, known_videos: Any) -> None:
    clip = ClipSection(frames=4, stride=4, image_size=32, sampling=sampling)
    views = batches(known_videos, clip=clip, segments=segments, crops=crops).views(0)
    assert views.shape == (segments * crops, 4, 32, 32, 3)
    clips = [known_videos.frames_in(view) for view in views[::crops]]
    assert clips == sorted(clips), "later clips show later frames"
    assert len({tuple(clip) for clip in clips}) == segments
    if segments == 1:  # from the middle
        assert sum(clips[0]) / 4 == pytest.approx(53 / 2, abs=4)


def test_one_crop_is_the_centre_and_more_reach_both_ends(known_videos: Any) -> None:
    disc = known_videos.disc  # 64 x 48, resized to 42 x 32
    views = {crops: batches(known_videos, disc, segments=1, crops=crops).views(0) for crops in (1, 2, 3)}
    assert (views[1][0] == views[3][1]).all()
    assert (views[2][0] == views[3][0]).all()
    assert (views[2][1] == views[3][2]).all()
    assert (views[3][0] != views[3][2]).any()


def test_a_video_is_decoded_once_whatever_its_views(known_videos: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []

    def counted(path: Path, indices: list[int], **options: Any) -> Any:
        asked.append(list(indices))
        return decode(path, indices, **options)

    monkeypatch.setattr("mvd_offline.evaluation.views.decode", counted)
    batches(known_videos, segments=3, crops=3).views(0)
    assert asked == [[0, 4, 8, 12, 20, 24, 28, 32, 40, 44, 48, 52]]


def test_batches_hold_whole_videos_and_do_not_depend_on_the_launch(known_videos: Any) -> None:
    videos = [known_videos.ramp] * 5
    found = batches(known_videos, *videos)  # 6 views a video, batches of at most 12
    assert [found[i].rows for i in range(len(found))] == [(0, 1), (2, 3), (4,)]
    assert found[0].clips is not None
    assert found[0].clips.shape == (12, 4, 32, 32, 3)
    assert [batches(known_videos, *videos, batch_size=5)[i].rows for i in range(5)] == [(i,) for i in range(5)]


def test_an_unreadable_video_is_a_reason_and_leaves_the_rest_of_its_batch(known_videos: Any) -> None:
    gone = replace(known_videos.ramp, path="gone.mp4")
    batch = batches(known_videos, gone, known_videos.disc)[0]
    assert batch.rows == (1,)
    assert batch.failed == {0: "no such file"}
    assert batches(known_videos, gone)[0].clips is None


def test_a_video_of_another_size_than_the_scan_saw_is_not_tested(known_videos: Any) -> None:
    batch = batches(known_videos, replace(known_videos.disc, width=60))[0]
    assert batch.failed == {
        0: "frames are 64 x 48 pixels, and 60 x 48 when it was scanned: the file changed since; scan the videos again"
    }
