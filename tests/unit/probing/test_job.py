"""What a probe refuses, and what it prints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import Accelerator

from mvd_offline.cli.main import main
from mvd_offline.errors import MvdError
from mvd_offline.evaluation.scoring import Predictions, score
from mvd_offline.evaluation.videos import EvaluationVideos, Unreadable
from mvd_offline.probing.job import ProbeReport, probe
from mvd_offline.probing.preparing import ExtractionOptions
from mvd_offline.video.catalog import Catalog


def test_a_probe_and_a_test_say_the_same_of_videos_that_cannot_be_read(known_videos: Any, tmp_path: Path) -> None:
    gone = replace(known_videos.ramp, video_id="gone.mp4", path="gone.mp4", status="missing", detail="")
    catalog = tmp_path / "catalog.parquet"
    Catalog((known_videos.disc, known_videos.ramp, gone), known_videos.root, ()).write(catalog)
    videos = EvaluationVideos(catalog, 2, Accelerator(cpu=True))

    with pytest.raises(MvdError) as tested:
        videos.check(videos.unreadable, "error")
    with pytest.raises(MvdError) as probed:
        probe("none", ["knn"], train=catalog, test=catalog, out=tmp_path, extraction=ExtractionOptions(workers=0))

    assert str(probed.value) == str(tested.value)
    assert str(tested.value).startswith("1 test video cannot be read (gone.mp4: missing).")
    assert "--unreadable wrong to count them as wrong answers" in str(tested.value)


def test_videos_that_count_as_wrong_are_among_those_that_were_tested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = Unreadable("gone.mp4", 1, "no such file")
    report = ProbeReport(
        checkpoint="student.safetensors",
        encoder={},
        view={},
        views=2,
        features={"train": "", "test": ""},
        clips={"train": 6, "test": 2},
        unreadable={"train": [], "test": [gone]},
        unreadables="wrong",
        extraction_seconds=0.0,
        seconds={"knn": 0.1},
        probes={"knn": score(Predictions(("a", "b"), np.array([0, 1]), np.eye(2), (gone,)))},
    )
    monkeypatch.setattr("mvd_offline.probing.job.probe", lambda *args, **options: report)
    words = ("--probe", "knn", "--unreadable", "wrong", "--train", "t.parquet", "--videos", "v.parquet")

    assert main(["evaluate", str(tmp_path), *words]) == 0

    said = capsys.readouterr().out
    assert "knn    66.67" in said
    assert "fitted on 6 clips, tested on 3 videos; features were there" in said
    assert "counted as wrong: gone.mp4: no such file" in said
