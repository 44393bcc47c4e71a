"""The scan: every file ends with a status, whatever it does to its decoder, and nothing is read twice without need."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from mvd_offline.errors import UsageError
from mvd_offline.video.catalog import Catalog, scan
from mvd_offline.video.files import file_sha256


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Probes that misbehave; the scan's processes find their module because they inherit sys.path."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    import misbehaving

    return misbehaving


@pytest.fixture
def videos(synthetic_videos: Path, tmp_path: Path) -> Path:
    """Four good videos of two classes."""
    for number, name in enumerate(("a_left", "a_right", "b_left", "b_right")):
        source = sorted(synthetic_videos.rglob("*.mp4"))[number]
        (tmp_path / name[0]).mkdir(exist_ok=True)
        shutil.copyfile(source, tmp_path / name[0] / f"{name}.mp4")
    return tmp_path


def test_a_scan_finds_facts_labels_and_hashes(videos: Path) -> None:
    found = scan(videos, workers=2)
    assert [video.video_id for video in found.videos] == [
        "a/a_left.mp4", "a/a_right.mp4", "b/b_left.mp4", "b/b_right.mp4",
    ]  # fmt: skip
    assert found.classes == ("a", "b")
    assert [video.label for video in found.videos] == [0, 0, 1, 1]
    assert found.counts == {"ok": 4, "unreadable": 0, "too_short": 0, "timeout": 0, "missing": 0}
    for video in found.videos:
        assert 30 <= video.frames <= 90
        assert video.fps in (24, 25, 30)
        assert video.sha256 == file_sha256(videos / video.path)
        assert video.size == (videos / video.path).stat().st_size


def test_files_that_hang_or_crash_their_process_do_not_stop_the_scan(videos: Path, probes: ModuleType) -> None:
    for name in ("hang_1", "crash_1", "odd", "crash_2"):
        shutil.copyfile(videos / "a/a_left.mp4", videos / f"b/{name}.mp4")
    (videos / "b/broken.mp4").write_bytes(b"no video")
    os.mkfifo(videos / "b/pipe.mp4")
    start = time.monotonic()
    found = scan(videos, workers=2, timeout_seconds=3, probe=probes.by_file_name).by_id
    assert time.monotonic() - start < 60
    assert found["b/hang_1.mp4"].status == "timeout"
    assert found["b/hang_1.mp4"].detail == "decoding took longer than 3 s and was stopped"
    for name in ("crash_1", "crash_2"):
        assert (found[f"b/{name}.mp4"].status, found[f"b/{name}.mp4"].detail) == (
            "unreadable",
            "the decoder took its process down (SIGSEGV)",
        )
    assert found["b/odd.mp4"].detail == "unexpected ValueError: a decoder's own complaint"
    assert found["b/broken.mp4"].status == found["b/pipe.mp4"].status == "unreadable"
    assert found["b/pipe.mp4"].detail == "not a regular file"
    good = [video for video in found.values() if video.status == "ok"]
    assert sorted(video.path for video in good) == ["a/a_left.mp4", "a/a_right.mp4", "b/b_left.mp4", "b/b_right.mp4"]


def test_a_rescan_reads_only_files_that_changed(videos: Path, probes: ModuleType) -> None:
    first = scan(videos, workers=1)
    assert scan(videos, workers=1, previous=first, probe=probes.refuses) == first

    shutil.copyfile(videos / "b/b_right.mp4", videos / "a/a_left.mp4")
    os.utime(videos / "a/a_right.mp4", ns=(1, 1))
    calls: list[tuple[int, int]] = []
    again = scan(
        videos, workers=1, previous=first, probe=probes.leaves_a_mark, on_progress=lambda *call: calls.append(call)
    )
    assert sorted(path.name for path in videos.rglob("*.seen")) == ["a_left.seen", "a_right.seen"]
    assert calls == [(1, 2), (2, 2)]
    assert again.by_id["a/a_left.mp4"].sha256 == first.by_id["b/b_right.mp4"].sha256
    assert again.by_id["a/a_right.mp4"] == replace(first.by_id["a/a_right.mp4"], mtime_ns=1)


def test_a_rescan_takes_labels_from_the_list_and_facts_from_the_catalog(videos: Path, probes: ModuleType) -> None:
    first = scan(videos, workers=1)
    (videos / "train.csv").write_text("a/a_left.mp4 7\n")
    again = scan(videos / "train.csv", workers=1, previous=first, probe=probes.refuses)
    assert again.videos == (replace(first.by_id["a/a_left.mp4"], label=7, label_name=""),)


def test_files_that_timed_out_or_were_missing_are_tried_again(videos: Path) -> None:
    (videos / "train.csv").write_text("a/a_left.mp4 0\na/late.mp4 0\n")
    first = scan(videos / "train.csv", workers=1)
    assert first.by_id["a/late.mp4"].status == "missing"
    slow = replace(first.by_id["a/a_left.mp4"], status="timeout", frames=0, sha256="")
    shutil.copyfile(videos / "a/a_right.mp4", videos / "a/late.mp4")
    again = scan(videos / "train.csv", workers=1, previous=replace(first, videos=(slow, first.by_id["a/late.mp4"])))
    assert again.counts["ok"] == 2


def test_a_file_that_vanished_is_missing(videos: Path) -> None:
    (videos / "train.csv").write_text("a/a_left.mp4 0\nb/b_left.mp4 1\n")
    first = scan(videos / "train.csv", workers=1)
    (videos / "b/b_left.mp4").unlink()
    again = scan(videos / "train.csv", workers=1, previous=first)
    assert (again.counts["ok"], again.by_id["b/b_left.mp4"].status) == (1, "missing")
    assert again.by_id["b/b_left.mp4"].detail == "no such file"


def test_a_minimum_of_frames_is_judged_anew_without_reading(videos: Path, probes: ModuleType) -> None:
    first = scan(videos, workers=1)
    longest = max(video.frames for video in first.videos)
    strict = scan(videos, workers=1, previous=first, probe=probes.refuses, min_frames=longest)
    assert strict.counts["too_short"] == sum(video.frames < longest for video in first.videos) > 0
    assert f"at least {longest} are asked for" in next(v.detail for v in strict.videos if v.status == "too_short")
    assert scan(videos, workers=1, previous=strict, probe=probes.refuses) == first


def test_a_catalog_is_read_back_as_written(videos: Path, tmp_path: Path) -> None:
    found = scan(videos, workers=1)
    found.write(tmp_path / "out" / "catalog.parquet")
    assert Catalog.read(tmp_path / "out" / "catalog.parquet") == found
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["catalog.parquet"]


def test_what_is_no_catalog_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("hello")
    with pytest.raises(UsageError, match="this is none"):
        Catalog.read(tmp_path / "a.parquet")
    with pytest.raises(UsageError, match="videos scan"):
        Catalog.read(tmp_path / "b.parquet")


def test_impossible_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="workers is 0"):
        scan(tmp_path, workers=0)


def test_the_real_clips_get_their_true_statuses(shared_clips: Path) -> None:
    found = scan(shared_clips, workers=2)
    assert found.counts == {"ok": 7, "unreadable": 1, "too_short": 0, "timeout": 0, "missing": 0}
    assert "Error sending packet" in found.by_id["corrupted.mp4"].detail
    assert found.by_id["av1.mkv"].decoder == "pyav"
