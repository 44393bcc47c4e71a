"""Generated videos: the same bytes from the same seed, and classes that need both texture and motion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mvd_offline.errors import UsageError
from mvd_offline.randomness import KeyedStream
from mvd_offline.video.decode import decode, probe
from mvd_offline.video.synthetic import MOTIONS, class_names, draw_frames, synthesize


def bytes_of(paths: list[Path]) -> list[bytes]:
    return [path.read_bytes() for path in paths]


def test_a_seed_gives_the_same_bytes_with_any_number_of_processes(tmp_path: Path) -> None:
    one = synthesize(tmp_path / "one", videos_per_class=2, classes=4, seed=5, short_side=(32, 48), frames=(5, 20))
    two = synthesize(
        tmp_path / "two", videos_per_class=2, classes=4, seed=5, short_side=(32, 48), frames=(5, 20), workers=2
    )
    assert bytes_of(one) == bytes_of(two)
    assert [p.relative_to(tmp_path / "one") for p in one] == [p.relative_to(tmp_path / "two") for p in two]


def test_more_videos_leave_the_first_ones_as_they_are(tmp_path: Path) -> None:
    few = synthesize(tmp_path / "few", videos_per_class=1, classes=2, frames=(5, 20))
    many = synthesize(tmp_path / "many", videos_per_class=3, classes=2, frames=(5, 20))
    assert bytes_of(few) == bytes_of(many[::3])


@pytest.mark.parametrize("change", [{"seed": 1}, {"split": "test"}])
def test_another_seed_or_split_has_the_same_classes_and_other_videos(change: dict[str, object], tmp_path: Path) -> None:
    one = synthesize(tmp_path / "one", videos_per_class=2, classes=4, frames=(5, 20))
    other = synthesize(tmp_path / "other", videos_per_class=2, classes=4, frames=(5, 20), **change)  # type: ignore[arg-type]
    assert [path.parent.name for path in one] == [path.parent.name for path in other]
    assert not set(bytes_of(one)) & set(bytes_of(other))


def test_sizes_rates_and_lengths_vary_and_some_are_shorter_than_a_clip(synthetic_videos: Path) -> None:
    facts = [probe(path) for path in synthetic_videos.rglob("*.mp4")]
    assert len(facts) == 16
    assert len({(info.width, info.height) for info in facts}) > 8
    assert {info.fps for info in facts} == {24, 25, 30}
    assert 0 < sum(info.frames < 64 for info in facts) < 16
    assert all(46 <= min(info.width, info.height) <= 80 for info in facts)
    assert {info.width > info.height for info in facts} == {True, False}


def test_classes_are_textures_times_motions() -> None:
    assert len(class_names(16)) == 16
    assert len({name.split("_")[0] for name in class_names(16)}) == 4
    assert {name.split("_")[1] for name in class_names(2)} == {"left", "right"}
    with pytest.raises(UsageError, match="allowed: 2, 4, 8, 16"):
        class_names(5)


@pytest.mark.parametrize("motion", MOTIONS)
def test_the_first_frame_is_the_same_for_every_motion(motion: str) -> None:
    first = draw_frames(64, 48, 1, "dots", motion, KeyedStream("a"))
    assert np.array_equal(first, draw_frames(64, 48, 1, "dots", "left", KeyedStream("a")))


@pytest.mark.parametrize("motion", MOTIONS)
def test_the_disc_moves_where_its_class_says(motion: str) -> None:
    before, after = draw_frames(64, 64, 9, "checks", motion, KeyedStream("b"))[[0, 8]].astype(int)
    dx, dy = MOTIONS[motion]
    # The contrast of the disc's texture outweighs the background's, so the best shift of the frame is the disc's.
    errors = {d: np.abs(np.roll(before, (d * dy, d * dx), (0, 1)) - after).mean() for d in range(-16, 17)}
    assert 6 <= min(errors, key=lambda d: errors[d]) <= 12


def test_the_encoded_video_shows_the_drawn_frames(tmp_path: Path) -> None:
    from mvd_offline.video.synthetic import encode

    drawn = draw_frames(64, 48, 12, "stripes", "up", KeyedStream("c"))
    encode(tmp_path / "a.mp4", drawn, 25)
    shown = decode(tmp_path / "a.mp4", range(12)).frames
    assert shown.shape == drawn.shape
    assert np.abs(shown.astype(int) - drawn).mean() < 12


def test_impossible_requests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="videos_per_class is 0"):
        synthesize(tmp_path, videos_per_class=0)
    with pytest.raises(UsageError, match="smallest and largest"):
        synthesize(tmp_path, videos_per_class=1, short_side=(96, 64))
    with pytest.raises(UsageError, match="fewest and most"):
        synthesize(tmp_path, videos_per_class=1, frames=(0, 4))
