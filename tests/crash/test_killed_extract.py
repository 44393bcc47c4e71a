"""Extraction killed and interrupted: what is left, and what a second run makes of it."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from small_runs import (
    command,
    contents,
    descendants,
    file_names,
    fill,
    hanging,
    make_videos,
    once,
    plan_small,
    run,
    started,
    wait_until,
)

from mvd_offline.local import read_local
from mvd_offline.shards.verify import verify
from mvd_offline.video.views import Plan

# How long after a view hangs its run is killed: the writes of the views before it go on meanwhile, so that the kills
# come in the middle of shards, of commits and between them.
KILL_AFTER_SECONDS = (0.0, 0.02, 0.3, 0.0, 0.05, 0.3, 0.01, 0.1, 0.3)


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that is planned and empty."""
    videos = once(tmp_path_factory, "videos", make_videos)
    return plan_small(videos / "catalog.parquet", tmp_path_factory.mktemp("planned") / "store")


@pytest.fixture(scope="module")
def uninterrupted(planned: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Contents of the same store, extracted in one go."""
    store = tmp_path_factory.mktemp("uninterrupted") / "store"
    shutil.copytree(planned, store)
    return contents(fill(store))


def temporary_files(store: Path) -> list[str]:
    return [name for name in file_names(store) if ".tmp-" in name]


def extract(store: Path) -> list[str]:
    return command("extract", store, "--workers", "1")


def kill_at(video: Path, seconds: float, store: Path, root: Path, log: Path) -> int:
    """Start an extraction that cannot get past `video`, and kill it there; returns how many shards are done."""
    with hanging(video) as somebody_hangs, started([*extract(store), "--root", str(root)], log) as process:
        assert wait_until(somebody_hangs, seconds=60), log.read_text()
        time.sleep(seconds)
        process.kill()
        assert process.wait(10) == -signal.SIGKILL
        assert wait_until(lambda: not descendants(process.mark), seconds=5, step=0.1), (
            "decode processes outlive the extraction"
        )
    return sum(name.startswith("commits/") and ".tmp-" not in name for name in file_names(store))


def test_a_store_that_was_killed_ten_times_equals_one_made_in_one_go(
    planned: Path, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    store, root = tmp_path / "store", tmp_path / "videos"
    shutil.copytree(planned, store)
    shutil.copytree(read_local(store).videos_root, root)
    views = list(Plan.read(store / "plan.parquet"))
    # From the first view to the last: each run gets a little further than the one before.
    places = [views[i * (len(views) - 1) // (len(KILL_AFTER_SECONDS) - 1)] for i in range(len(KILL_AFTER_SECONDS))]

    done = [
        kill_at(root / place.path, seconds, store, root, tmp_path / f"kill{i}.log")
        for i, (place, seconds) in enumerate(zip(places, KILL_AFTER_SECONDS, strict=True))
    ]
    with started(extract(store), tmp_path / "seal.log") as process:
        assert wait_until(lambda: any("index" in name for name in file_names(store)), seconds=60, step=0.002)
        process.kill()
        assert process.wait(10) == -signal.SIGKILL

    assert done == sorted(done), "a committed shard is never lost"
    assert len(set(done)) >= 4, f"the kills must hit different stages, not {done}"
    run(extract(store), tmp_path / "last.log")
    assert contents(store) == uninterrupted
    assert temporary_files(store) == []
    assert not verify(store, "full").findings


def test_ctrl_c_ends_with_status_130_and_one_line_and_leaves_no_temporary_file(
    planned: Path, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    store, log, videos = tmp_path / "store", tmp_path / "log", tmp_path / "videos"
    shutil.copytree(planned, store)
    shutil.copytree(read_local(store).videos_root, videos)
    *_, last = Plan.read(store / "plan.parquet")

    # The last view hangs, so that the interrupt always comes in the middle of a shard.
    with (
        hanging(videos / last.path) as somebody_hangs,
        started([*extract(store), "--root", str(videos)], log) as process,
    ):
        assert wait_until(lambda: somebody_hangs() and temporary_files(store), seconds=60), log.read_text()
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the decode processes get it as well
        status = process.wait(30)
        assert wait_until(lambda: not descendants(process.mark), seconds=5, step=0.1)

    # decord's library may write a line of its own, "[time] file: ...", when its process ends in the middle of an open.
    ours = [line for line in log.read_text().splitlines() if not line.startswith("[")]
    assert (status, ours) == (130, ["interrupted; run the same command again to go on"])
    assert temporary_files(store) == []
    assert contents(store) != uninterrupted
    assert contents(fill(store)) == uninterrupted


def test_no_decode_process_outlives_a_killed_extraction_even_when_it_hangs(planned: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(planned, store)
    view = next(iter(Plan.read(store / "plan.parquet")))
    shutil.copytree(read_local(store).videos_root, tmp_path / "videos")

    with (
        hanging(tmp_path / "videos" / view.path) as somebody_hangs,
        started([*extract(store), "--root", str(tmp_path / "videos")], tmp_path / "log") as process,
    ):
        assert wait_until(somebody_hangs, seconds=60), (tmp_path / "log").read_text()
        process.kill()
        process.wait(10)
        assert somebody_hangs()
        assert wait_until(lambda: not descendants(process.mark), seconds=5, step=0.1), (
            "a decode process outlives the extraction"
        )
