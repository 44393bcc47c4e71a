"""`mvd-offline extract` on real files: what ends in the ledger, what is tried again, what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import threading
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest
from small_runs import (
    command,
    contents,
    file_names,
    fill,
    hanging,
    make_videos,
    once,
    plan_small,
    run,
    scan_videos,
    started,
    wait_until,
    write_recipe,
)

from mvd_offline.cli.main import main
from mvd_offline.shards import Store, open_store
from mvd_offline.shards.verify import verify
from mvd_offline.video.decode import decode
from mvd_offline.video.feed import RenderFeed
from mvd_offline.video.synthetic import encode, synthesize
from mvd_offline.video.views import Plan, render


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once(tmp_path_factory, "videos", make_videos)


@pytest.fixture(scope="module")
def healthy(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of which every row is ok."""
    return fill(plan_small(videos / "catalog.parquet", tmp_path_factory.mktemp("healthy") / "store"))


def test_names_are_shown_as_they_are_written(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Brackets mark a table's text.
    folder = tmp_path / "videos" / "[old]"
    shutil.copytree(videos / "videos", folder)
    lost = min(folder.rglob("*.mp4")).rename(folder / "x[b].mp4")
    catalog, store = tmp_path / "catalog.parquet", tmp_path / "[old]"
    scan_videos(tmp_path / "videos", catalog)
    capsys.readouterr()

    words = [write_recipe(tmp_path / "r.yaml"), "--videos", catalog, "--store", store]
    assert main(["plan", *map(str, words)]) == 0
    assert f"Store {store}" in capsys.readouterr().out
    lost.unlink()
    main(["extract", str(store), "--workers", "1"])
    said = capsys.readouterr().out
    assert f"Extraction into {store}" in said
    assert "│ [old]/x[b].mp4 │" in said


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


# ---- how many processes decode ---------------------------------------------------------------------------------------


def test_processes_that_are_added_take_part_and_views_stay_in_order(videos: Path, healthy: Path) -> None:
    views, root = list(Plan.read(healthy / "plan.parquet")), videos / "videos"
    with RenderFeed(root, [32], workers=1, timeout_seconds=60, ahead=4) as feed:
        items = feed.items(views)
        found = [next(items)]
        feed.grow(3)
        found += items
        assert (feed.workers, len(active_children())) == (3, 3)
        feed.grow(2)
        assert feed.workers == 3

    assert [item.view for item in found] == views
    for item in found:
        assert item.renderings is not None
        assert item.seconds > 0
        np.testing.assert_array_equal(item.renderings[32].pixels, render(item.view, root, 32).pixels)


def test_an_extraction_chooses_its_processes_says_why_and_makes_the_same_store(
    store: Path, healthy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["extract", str(store), *WEIGHTS, "--json"]) == 0

    assert contents(store) == contents(healthy)
    summary = json.loads(capsys.readouterr().out)
    rates, seconds = summary["rates"], summary["seconds"]
    assert rates["decode_workers"] >= 1
    assert rates["teacher_seconds"].keys() == {"image", "video"}
    assert min(rates["decode_seconds"], rates["writing_seconds"], *rates["teacher_seconds"].values()) > 0
    assert list(seconds) == ["starting", "waiting for decode", "teachers", "waiting for disk", "sealing"]
    assert sum(seconds.values()) == pytest.approx(summary["elapsed_seconds"], rel=0.1)


# ---- what it refuses, what it says -----------------------------------------------------------------------------------


def test_a_teacher_with_other_weights_is_refused_by_the_fields_that_differ(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["extract", str(store), *WEIGHTS[:2], "--teacher", "video=random:vit_tiny:3"]) == 1

    error = capsys.readouterr().err
    assert "teacher video at random:vit_tiny:3 is not the one" in error
    (line,) = [line for line in error.splitlines() if line.startswith("  ")]
    assert re.match(r"  weights_sha256: teacher has '\w{64}', store has '\w{64}'$", line)
    assert not any(name.startswith("commits/") for name in file_names(store))


def test_a_teacher_of_another_architecture_is_refused_by_the_fields_that_differ(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["extract", str(store), *WEIGHTS[2:], "--teacher", "image=random:vit_small:1"]) == 1

    fields = re.findall(r"^  ([\w.]+): teacher has ", capsys.readouterr().err, re.MULTILINE)
    assert fields == ["architecture.width", "weights_sha256"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--retry", "broken"), "allowed: unreadable, too_short, timeout, missing"),
        (("--teacher", "sound=x"), "with NAME one of image, video, or one that starts with image_ or video_"),
        (("--codec", "int8"), "are for a column that --teacher NAME=PATH adds"),
        (("--max-relative-error", "0"), "it must be above 0"),
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


# ---- trying again ----------------------------------------------------------------------------------------------------


def drawn(
    store: Path, healthy: Path, failed: dict[str, set[int]], reason: tuple[str, str] = ("timeout", "it took too long")
) -> Store:
    """Fill a store with drawn features, which no teacher computes; `failed` names rows without target, by column."""
    opened, truth = open_store(store, sealed=False), open_store(healthy)
    for column, spec in opened.header.columns.items():
        for shard in range(opened.shard_count):
            with opened.write_shard(column, shard, producer={"torch": "1.0", "device": "drawn"}) as writer:
                for view in opened.shard_view_ids(shard).tolist():
                    if view in failed.get(column, ()):
                        writer.fail(view, *reason)
                    else:
                        features = np.random.default_rng(view).standard_normal((spec.tokens, spec.width), np.float32)
                        writer.add(view, features, pixels=truth.pixel_hash(view), decoder="decord 0.6.0")
    opened.seal()
    return open_store(store)


@pytest.mark.parametrize("container", ["zarr", "tar"])
def test_a_retry_computes_the_failed_rows_and_keeps_all_others(
    container: str, videos: Path, healthy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = plan_small(videos / "catalog.parquet", tmp_path / "store", {"store.container": container})
    failed = {"image": {5}, "video": {5, 7, 14}}
    before = drawn(folder, healthy, failed)
    untouched = {f"{column}/{shard}": before.record(column, shard) for column in before.columns for shard in (0, 2, 4)}

    fill(folder, "--retry", "timeout", "--json")
    summary = json.loads(capsys.readouterr().out)

    after = open_store(folder)
    truth = open_store(healthy)
    assert (summary["rows"], summary["shards"], summary["sealed"]) == ({"ok": 3}, 3, True)
    assert summary["coding"]["image"]["rows"] == 1
    for column in after.columns:
        for view in after.view_ids.tolist():
            row = after.status(column).row(view)
            if view in failed[column]:
                assert (row.status, row.crc32c) == ("ok", truth.status(column).row(view).crc32c)
            else:
                assert dataclasses.replace(row, offset=0) == dataclasses.replace(
                    before.status(column).row(view), offset=0
                )
    assert {f"{c}/{s}": after.record(c, s) for c in after.columns for s in (0, 2, 4)} == untouched
    assert after.record("video", 1).producer["device"].startswith("drawn, cpu")
    assert not verify(folder, "full").findings


def altered(root: Path, plan: Plan, view: int) -> None:
    """Another video of the same shape takes the place of a view's."""
    path = root / plan[view].path
    encode(path, 255 - decode(path, range(plan[view].frames)).frames, 25)


def test_a_retry_that_meets_other_pixels_than_another_column_is_refused(
    store: Path, healthy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = drawn(store, healthy, {"video": {5}})
    files, view = contents(store), Plan.read(store / "plan.parquet")[5]
    altered(tmp_path / "videos", Plan.read(store / "plan.parquet"), 5)
    again = ["extract", str(store), "--workers", "1", "--retry", "timeout", *WEIGHTS]
    capsys.readouterr()

    assert main(again) == 1

    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    recorded = before.status("image").row(5)
    assert f"column video, shard 1: view 5 of video {view.video_id} renders to other pixels than the teacher" in error
    assert re.search(rf"[0-9a-f]{{16}} with decord \S+ here, {recorded.pixels} with {recorded.decoder} there", error)
    assert contents(store) == files

    # The other column's shard may be made again instead, as the error says.
    found = re.search(r"of column image saw.* remove (\S+\.json), and `mvd-offline extract", error)
    assert found is not None
    Path(found[1]).unlink()
    assert main(again) == 0
    after = open_store(store)
    assert after.pixel_hash(5) not in ("", recorded.pixels)
    assert len(after.ok_rows()) == 24
    assert not verify(store, "full").findings


def test_a_column_added_from_other_pixels_is_refused_and_trained_on_by_nobody(
    healthy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, videos = tmp_path / "store", tmp_path / "videos"
    shutil.copytree(healthy, store)
    shutil.copytree(Path(json.loads((store / "local.json").read_text())["videos_root"]), videos)
    plan = Plan.read(store / "plan.parquet")
    altered(videos, plan, 9)
    adding = ["extract", str(store), "--teacher", "video_b=random:vit_tiny:7", "--root", str(videos), "--workers", "1"]

    assert main(adding) == 1

    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert re.search(r"column video_b, shard \d: view \d+ of video .* than the teacher of column image saw", error)
    made = open_store(store, sealed=False)
    changed = {view.shard for view in plan if view.path == plan[9].path}
    assert changed.isdisjoint(made.committed("video_b"))
    assert open_store(store, columns=["image", "video"]).is_indexed("image")


def test_a_retry_that_heals_nothing_leaves_the_store_as_it_was(store: Path, healthy: Path, tmp_path: Path) -> None:
    gone = Plan.read(store / "plan.parquet")[5].path
    (tmp_path / "videos" / gone).unlink()
    drawn(store, healthy, {"image": {5}, "video": {5}}, ("missing", "no such file"))
    before = {name: (store / name).stat().st_mtime_ns for name in file_names(store)}

    fill(store, "--retry", "missing", *WEIGHTS)

    assert {name: (store / name).stat().st_mtime_ns for name in file_names(store)} == before
    assert open_store(store).sealed


def test_after_a_killed_retry_the_next_extraction_completes_the_store_and_computes_nothing(
    videos: Path, healthy: Path, tmp_path: Path
) -> None:
    folder = plan_small(videos / "catalog.parquet", tmp_path / "store")
    opened = drawn(folder, healthy, {"video": {5}})
    before = contents(folder)
    # As a run leaves it that dies before the new file takes the old one's name: another record is announced.
    record = opened.record("video", 1)
    announced = dataclasses.replace(record, sha256="0" * 64)
    opened.next_record_path("video", 1).write_bytes(announced.to_bytes())
    opened.seal_path.unlink()

    fill(folder)

    assert contents(folder) == before


# ---- columns that come and go ----------------------------------------------------------------------------------------


def test_a_column_is_added_to_a_finished_store_trained_on_and_dropped(
    healthy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    shutil.copytree(healthy, store)
    before = contents(store)
    other = ("--teacher", "video_h=random:vit_tiny:5")

    fill(store, *other, "--codec", "float16", "--json")
    summary = json.loads(capsys.readouterr().out)

    assert (summary["added_columns"], summary["shards"], summary["rows"]) == (["video_h"], 6, {"ok": 24})
    grown = open_store(store)
    assert grown.store_id == open_store(healthy).store_id
    assert (grown.header.columns["video_h"].codec, grown.header.columns["video"].codec) == ("float16", "float32")
    assert {name: data for name, data in contents(store).items() if name in before and "/" in name} == {
        name: data for name, data in before.items() if "/" in name and name != "commits/index.json"
    } | {"commits/index.json": (store / "commits" / "index.json").read_bytes()}
    truth = fill(plan_small_of_video(healthy, tmp_path / "truth", 5))
    np.testing.assert_array_equal(
        grown.read([3, 20], ["video_h"])["video_h"],
        open_store(truth).read([3, 20], ["video"])["video"].astype(np.float16),
    )

    # The same command again finds its column; with other options it is refused.
    fill(store, *other, "--codec", "float16")
    assert main(["extract", str(store), *other, "--codec", "int8"]) == 1
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        {
            "teachers.video": {"weights": "random:vit_tiny:5", "column": "video_h"},
            "loss.weights": {"image": 0.0, "video": 1.0},
            "store.codec": "float16",
            "optim.stop_after_epochs": 1,
        },
    )
    assert main(["distill", str(recipe), "--store", str(store), "--run", str(tmp_path / "run")]) == 0

    capsys.readouterr()
    assert main(["shards", "drop-column", str(store), "video_h", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == 13
    assert contents(store) == before


def plan_small_of_video(like: Path, folder: Path, seed: int) -> Path:
    """A planned store on the same videos whose video teacher is of this seed."""
    catalog = Path(json.loads((like / "local.json").read_text())["videos_root"]).parent / "catalog.parquet"
    return plan_small(catalog, folder, {"teachers.video.weights": f"random:vit_tiny:{seed}"})


def test_a_killed_addition_goes_on_and_the_other_columns_are_trained_on_meanwhile(
    healthy: Path, tmp_path: Path
) -> None:
    store, videos, log = tmp_path / "store", tmp_path / "videos", tmp_path / "log"
    shutil.copytree(healthy, store)
    shutil.copytree(Path(json.loads((store / "local.json").read_text())["videos_root"]), videos)
    *_, last = Plan.read(store / "plan.parquet")
    adding = command(
        "extract", store, "--teacher", "image_b=random:vit_tiny:7", "--root", str(videos), "--workers", "1"
    )

    with hanging(videos / last.path) as somebody_hangs, started(adding, log) as process:
        assert wait_until(somebody_hangs, seconds=60), log.read_text()
        process.kill()
        process.wait(10)

    half = open_store(store, columns=["image", "video"])
    assert 0 < len(half.pending("image_b")) <= 6
    recipe = write_recipe(tmp_path / "recipe.yaml", {"optim.stop_after_epochs": 1})
    assert main(["distill", str(recipe), "--store", str(store), "--run", str(tmp_path / "run")]) == 0
    run(adding, log)
    assert open_store(store).columns == ("image", "image_b", "video")
    assert len(open_store(store).ok_rows()) == 24
    assert not verify(store, "full").findings


# ---- what coding may cost --------------------------------------------------------------------------------------------


def test_a_codec_that_misses_the_bound_is_refused_on_the_first_shard(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, store = write_recipe(tmp_path / "recipe.yaml", {"store.codec": "int8"}), tmp_path / "store"
    planning = ["plan", str(recipe), "--videos", str(videos / "catalog.parquet"), "--store", str(store)]
    assert main([*planning, "--max-relative-error", "1e-3"]) == 0

    assert main(["extract", str(store), "--workers", "1"]) == 1

    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert re.search(r"column image, shard 0: codec int8 costs view [0-3] a relative error of 0\.0", error)
    assert "more than the 0.001 that --max-relative-error allows" in error
    assert "float16 costs 0.000" in error
    assert "bfloat16" not in error, "which is no better"
    assert not any(name.startswith("commits/") for name in file_names(store))
    # The bound is part of what the store is.
    assert main([*planning, "--max-relative-error", "1e-2"]) == 1


def test_a_run_may_be_stricter_than_the_store_and_says_what_coding_cost(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = plan_small(videos / "catalog.parquet", tmp_path / "store", {"store.codec": "float16"})
    assert main(["extract", str(store), "--workers", "1", "--max-relative-error", "1e-6"]) == 1
    assert "float32 costs 0 (0.01 MB a row)" in " ".join(capsys.readouterr().err.split())

    fill(store, "--max-relative-error", "1e-3", "--json")

    coding = json.loads(capsys.readouterr().out)["coding"]
    ledger = open_store(store).status("video")
    errors = ledger.coding["relative_error"][ledger.ok]
    assert coding["video"]["rows"] == 24
    assert coding["video"]["max_relative_error"] == 1e-3
    assert coding["video"]["worst_relative_error"] == errors.max() > 0
    assert coding["video"]["mean_relative_error"] == pytest.approx(errors.mean())
    assert coding["video"]["worst_view"] == int(np.flatnonzero(ledger.ok)[errors.argmax()])
