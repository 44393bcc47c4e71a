"""What a probe refuses, and how it says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

from mvd_offline.errors import MvdError
from mvd_offline.evaluation.videos import EvaluationVideos
from mvd_offline.probing.job import probe
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
