"""A decode cache in the making, killed, interrupted and out of room: run again, it is byte for byte the same."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import file_calls
import pytest
from small_disks import mounted
from small_runs import (
    MVD_OFFLINE,
    command,
    contents,
    descendants,
    file_names,
    hanging,
    make_videos,
    once,
    run,
    started,
    wait_until,
)

from mvd_offline.video.cache import open_cache
from mvd_offline.video.catalog import Catalog


def words(catalog: Path, folder: Path) -> list[str | Path]:
    return ["videos", "cache", catalog, "--out", folder, "--workers", "1"]


def without_places(folder: Path) -> dict[str, bytes]:
    """Every file but the catalog, which says where the videos lie."""
    return {name: data for name, data in contents(folder).items() if name != "catalog.parquet"}


def temporary_files(folder: Path) -> list[str]:
    return [name for name in file_names(folder) if ".tmp-" in name]


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once(tmp_path_factory, "videos", make_videos) / "catalog.parquet"


def own_copy(catalog: Path, folder: Path) -> Catalog:
    """`videos/` and `catalog.parquet` of this test alone, whose files it can make hang."""
    source = Catalog.read(catalog)
    shutil.copytree(source.root, folder / "videos")
    own = Catalog(source.videos, folder / "videos", source.classes)
    own.write(folder / "catalog.parquet")
    return own


@pytest.fixture(scope="module")
def uninterrupted(catalog: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Contents of the same cache, made in one go."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "cache"
    run(command(*words(catalog, folder)), folder.parent / "log")
    return without_places(folder)


def kill_when(condition: Callable[[], object], process: subprocess.Popen[bytes], log: Path) -> None:
    assert wait_until(condition, seconds=60), log.read_text()
    process.kill()
    process.wait(10)
    mark: str = process.mark  # type: ignore[attr-defined]
    assert wait_until(lambda: not descendants(mark), seconds=60, step=0.1), "a process outlives the command"


def test_a_cache_that_was_killed_again_and_again_equals_one_made_in_one_go(
    catalog: Path, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    folder, log = tmp_path / "cache", tmp_path / "log"
    source = own_copy(catalog, tmp_path)
    make = command(*words(tmp_path / "catalog.parquet", folder))

    # Between two videos, the second of which it cannot open.
    done = []
    for video in (source.videos[0], source.videos[4]):
        with hanging(tmp_path / "videos" / video.path) as somebody_hangs, started(make, log) as process:
            kill_when(somebody_hangs, process, log)
        done.append(sum(name.endswith(".jpeg.mp4") for name in file_names(folder)))
    assert done == [0, 4]

    # In the middle of a video, unless this process was asleep for the whole of the rest.
    with started(make, log) as process:
        kill_when(lambda: temporary_files(folder) or process.poll() is not None, process, log)

    # At the last steps, when every video is there.
    for step, moment in (("rename catalog.parquet", "before"), ("rename ledger.parquet", "after")):
        struck = [sys.executable, file_calls.__file__, str(folder), "--at", step, "--moment", moment, "--", *make[1:]]
        with started(struck, log) as process:
            assert process.wait(120) == -signal.SIGKILL, f"{step}: {log.read_text()}"
        assert "progress.jsonl" in file_names(folder)

    run(make, log)
    assert without_places(folder) == uninterrupted
    assert open_cache(folder).rows
    assert temporary_files(folder) == []


def test_ctrl_c_ends_with_status_130_and_leaves_no_temporary_file(
    catalog: Path, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    folder, log = tmp_path / "cache", tmp_path / "log"
    source = own_copy(catalog, tmp_path)
    make = command(*words(tmp_path / "catalog.parquet", folder))
    with hanging(tmp_path / "videos" / source.videos[2].path) as somebody_hangs, started(make, log) as process:
        assert wait_until(somebody_hangs, seconds=60), log.read_text()
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the processes that write get it as well
        assert process.wait(60) == 130, log.read_text()
    assert "interrupted; run the same command again to go on" in log.read_text()
    assert temporary_files(folder) == []
    run(make, log)
    assert without_places(folder) == uninterrupted


def test_a_full_disk_is_one_paragraph_and_the_cache_goes_on_once_there_is_room(
    catalog: Path, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / "disk").mkdir()
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=2m", "small") as disk:
        ballast = disk.seen / "ballast"
        ballast.write_bytes(bytes(disk.free_bytes - sum(map(len, uninterrupted.values())) // 2))
        make = (MVD_OFFLINE, *words(catalog, disk.path / "cache"))

        failed = disk.run(*make)

        assert failed.returncode == 1, failed.stdout + failed.stderr
        (error,) = (line for line in failed.stderr.splitlines() if line.startswith("error: "))
        assert f"{disk.path}/cache/videos/" in error
        assert "the disk is full" in error
        assert "Make room on that disk, then run the same command again." in error
        assert temporary_files(disk.seen / "cache") == []
        assert any(name.endswith(".jpeg.mp4") for name in file_names(disk.seen / "cache")), "it began"

        ballast.unlink()
        assert disk.run(*make).returncode == 0
        assert without_places(disk.seen / "cache") == uninterrupted
