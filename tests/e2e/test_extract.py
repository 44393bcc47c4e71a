"""`mvd-offline extract` on real files: what ends in the ledger, what is tried again, what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from multiprocessing import active_children
from pathlib import Path

import pytest
from small_runs import contents, file_names, fill, hanging, make_videos, once, plan_small, scan_videos, wait_until

from mvd_offline.cli.main import main
from mvd_offline.shards import Store, open_store
from mvd_offline.video.feed import RenderFeed
from mvd_offline.video.synthetic import synthesize
from mvd_offline.video.views import Plan


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once(tmp_path_factory, "videos", make_videos)


@pytest.fixture(scope="module")
def healthy(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of which every row is ok."""
    return fill(plan_small(videos / "catalog.parquet", tmp_path_factory.mktemp("healthy") / "store"))


@pytest.fixture
def store(videos: Path, tmp_path: Path) -> Path:
    """A planned, empty store, whose videos are a copy that a test may damage: `tmp_path / "videos"`."""
    shutil.copytree(videos / "videos", tmp_path / "videos")
    folder = plan_small(videos / "catalog.parquet", tmp_path / "store")
    (folder / "local.json").write_text(
        json.dumps({"videos_root": str(tmp_path / "videos"), "teachers": dict.fromkeys(("image", "video"), "unset")})
    )
    return folder


WEIGHTS = ("--teacher", "image=random:vit_tiny:1", "--teacher", "video=random:vit_tiny:2")


def ledger(store: Store, path: str) -> set[tuple[str, str]]:
    """(status, reason) of all views of a video, in both columns."""
    views = [view.view_id for view in Plan.read(store.plan_path) if view.path == path]
    rows = [store.status(column).row(view) for column in store.columns for view in views]
    assert len(rows) == 4
    return {(row.status, row.detail) for row in rows}


def checksums(store: Store) -> dict[tuple[str, int], int]:
    """crc32c of every payload."""
    return {
        (column, int(view)): store.status(column).row(view).crc32c
        for column in store.columns
        for view in store.ok_rows([column])
    }


# ---- videos that fail ------------------------------------------------------------------------------------------------


def test_each_broken_video_ends_in_the_ledger_with_its_status_and_the_others_get_the_same_targets(
    store: Path, healthy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "videos"
    gone, garbage, pipe, resized, hangs = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.mp4"))[:5]
    (root / gone).unlink()
    (root / garbage).write_bytes(b"not a video" * 100)
    (root / pipe).unlink()
    os.mkfifo(root / pipe)
    (larger,) = synthesize(tmp_path / "other", videos_per_class=1, classes=2, short_side=(90, 90))[:1]
    shutil.copy(larger, root / resized)

    with hanging(root / hangs):
        fill(store, "--timeout-seconds", "3", *WEIGHTS)
    printed = capsys.readouterr().out

    made = open_store(store)
    assert ledger(made, gone) == {("missing", "no such file")}
    assert {status for status, _ in ledger(made, garbage)} == {"unreadable"}
    assert ledger(made, pipe) == {("unreadable", "not a regular file")}
    ((status, reason),) = ledger(made, resized)
    assert status == "unreadable"
    assert "the file changed since" in reason
    assert ledger(made, hangs) == {("timeout", "decoding took longer than 3 s and was stopped")}
    assert "14 ok" in printed
    assert all(name in printed for name in (gone, garbage, pipe, resized, hangs))
    reference, found = checksums(open_store(healthy)), checksums(made)
    assert len(found) == 2 * 14
    assert found == {key: reference[key] for key in found}

    # Once the cause is gone, a retry heals the row that timed out, and no payload of another row changes.
    fill(store, "--retry", "timeout")
    healed = checksums(open_store(store))
    assert ledger(open_store(store), hangs) == {("ok", "")}
    assert ledger(open_store(store), gone) == {("missing", "no such file")}
    assert healed == {key: reference[key] for key in healed}
    assert len(healed) == 2 * 16

    # With all files back, the store is the one that never saw a failure, to the byte.
    shutil.rmtree(root)
    shutil.copytree(Path(json.loads((healthy / "local.json").read_text())["videos_root"]), root)
    fill(store, "--retry", "missing,unreadable")
    assert contents(store) == contents(healthy)


def test_a_video_whose_decoder_crashes_costs_its_own_row_only(videos: Path, healthy: Path, tmp_path: Path) -> None:
    shutil.copytree(videos / "videos", tmp_path / "videos")
    views = list(Plan.read(healthy / "plan.parquet"))[:3]

    def crash(hangs: object) -> None:
        assert wait_until(hangs, seconds=30)
        (child,) = active_children()
        os.kill(child.pid or 0, signal.SIGSEGV)

    with (
        hanging(tmp_path / "videos" / views[1].path) as somebody_hangs,
        RenderFeed(tmp_path / "videos", [32], workers=1, timeout_seconds=60, ahead=3) as feed,
    ):
        killer = threading.Thread(target=crash, args=(somebody_hangs,))
        killer.start()
        first, crashed, last = feed.items(views)
        killer.join()

    assert crashed.error is not None
    assert (crashed.error.status, crashed.renderings) == ("unreadable", None)
    assert "the decoder took its process down" in crashed.error.reason
    assert first.renderings is not None
    assert last.renderings is not None


def test_what_the_scan_found_broken_is_in_the_ledger_and_is_not_tried_again(tmp_path: Path) -> None:
    root = tmp_path / "videos"
    synthesize(root, videos_per_class=2, classes=2, short_side=(40, 40), frames=(10, 12))
    (root / "broken.mp4").write_bytes(b"not a video")
    scan_videos(root, tmp_path / "catalog.parquet")
    store = plan_small(tmp_path / "catalog.parquet", tmp_path / "store")
    fill(store)
    before = {name: (store / name).stat().st_mtime_ns for name in file_names(store)}

    fill(store, "--retry", "unreadable")

    assert {status for status, _ in ledger(open_store(store), "broken.mp4")} == {"unreadable"}
    assert {name: (store / name).stat().st_mtime_ns for name in file_names(store)} == before


# ---- what it refuses, what it says -----------------------------------------------------------------------------------


def test_a_teacher_with_other_weights_is_refused_by_the_field_that_differs(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["extract", str(store), *WEIGHTS[:2], "--teacher", "video=random:vit_tiny:3"]) == 1

    error = capsys.readouterr().err
    assert "teacher video at random:vit_tiny:3 is not the one" in error
    assert "weights_sha256 is '" in error
    assert error.count("\n") == 1
    assert not any(name.startswith("commits/") for name in file_names(store))


def test_a_teacher_of_another_architecture_is_refused_by_the_field_that_differs(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["extract", str(store), *WEIGHTS[2:], "--teacher", "image=random:vit_small:1"]) == 1

    assert "architecture." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--retry", "broken"), "allowed: unreadable, too_short, timeout, missing"),
        (("--teacher", "sound=x"), "with NAME one of image, video"),
        (("--root", "/no/such/folder"), "give --root DIR"),
    ],
)
def test_wrong_usage_ends_with_status_2(
    store: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, str], message: str
) -> None:
    assert main(["extract", str(store), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_without_a_store_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["extract", str(tmp_path)]) == 1
    assert "holds no store" in capsys.readouterr().err


def test_a_finished_store_is_left_as_it_is(healthy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {name: (healthy / name).stat().st_mtime_ns for name in file_names(healthy)}

    fill(healthy, "--json")

    summary = json.loads(capsys.readouterr().out)
    assert (summary["rows"], summary["shards"], summary["sealed"]) == ({}, 0, True)
    assert {name: (healthy / name).stat().st_mtime_ns for name in file_names(healthy)} == before
