"""`plan` says what a store will cost; `bench step` times it, `bench read` its reading; `demo` is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mvd_offline.bench.read import CODECS
from mvd_offline.bench.suite.lines import lines_of
from mvd_offline.cli.main import main
from mvd_offline.recipe import dump_recipe, load_distill

RECIPE = "smoke/distill_vit_s_from_vit_b_k400"


@pytest.fixture(scope="module")
def catalog(synthetic_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("catalog") / "videos.parquet"
    assert main(["videos", "scan", str(synthetic_videos), "--out", str(path), "--workers", "1"]) == 0
    return path


def test_plan_reports_rows_bytes_and_costs(catalog: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", RECIPE, "--videos", str(catalog), "--store", str(tmp_path / "store"), "--json"]
    capsys.readouterr()

    assert main(command) == 0
    report = json.loads(capsys.readouterr().out)

    tokens, width = 2 * 2 * 2, 192
    assert report["rows"] == 16
    assert report["bytes_by_codec"]["float16"] == 16 * 2 * tokens * width * 2
    assert report["bytes_by_codec"]["float32"] == 2 * report["bytes_by_codec"]["float16"]
    hours = report["hours"]
    extraction, cached, online = (hours[name]["device_seconds"] for name in ("extraction", "cached", "online"))
    assert online > cached + extraction > cached > 0
    assert hours["speedup"] == pytest.approx(online / (cached + extraction))
    assert {name: figure["basis"] for name, figure in hours["teachers"].items()} == {
        "image": "unknown", "video": "unknown"
    }  # fmt: skip
    assert report["break_even_epoch"] == pytest.approx(1.0)
    assert main(command) == 0, "the same plan may be made again"


def test_plan_measures_this_machine_and_leaves_nothing_beside_the_store(
    catalog: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["plan", RECIPE, "--videos", str(catalog), "--store", str(tmp_path / "store"), "--measure"]
    command += ["--set", "store.bake={}", "--set", "training.workers=1"]
    capsys.readouterr()

    assert main([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)

    measured = report["measured"]
    positive = [value for value in measured.values() if isinstance(value, int | float)]
    positive += [*measured["teacher_seconds"].values(), *measured["row_bytes"].values(), report["step_seconds"]]
    assert min(value for value in positive if value != measured["computing_cores"]) > 0
    assert measured["teacher_seconds"].keys() == {"image", "video"}
    assert measured["row_bytes"] == {"clips": measured["row_bytes"]["clips"], "image": 3072, "video": 3072}
    assert report["bytes_by_codec"]["float16"] == 16 * 2 * 3072
    assert report["clips_bytes"] == 16 * measured["row_bytes"]["clips"]
    assert measured["micro_batch"] == 3
    assert report["sustained_tflops"] is None
    for figure in (report["hours"][name] for name in ("extraction", "cached", "online")):
        assert figure["device_seconds"] > 0
        assert figure["how"].startswith("from what was measured on this machine")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]

    assert main([*command, "--tflops", "3"]) == 2
    assert "leave one of them out" in capsys.readouterr().err


def test_plan_measures_what_a_store_of_views_alone_costs(
    catalog: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["plan", RECIPE, "--videos", str(catalog), "--store", str(tmp_path / "store"), "--measure"]
    assert main([*command, "--set", "teachers={}", "--set", "loss.weights={}", "--set", "pixels={}"]) == 0

    table = capsys.readouterr().out
    assert "measured on this machine" in table
    assert "loading a clip" in table
    assert "writing a view" not in table


def test_plan_tells_the_hours_of_teachers_that_were_pretrained_here(
    catalog: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = tmp_path / "videomae"
    pretrain = ["pretrain", "smoke/pretrain_videomae_vit_s_k400", "--videos", str(catalog), "--run", str(teacher)]
    assert main([*pretrain, "--set", "view.patch_size=16", "--set", "model.width=64"]) == 0
    seconds = json.loads((teacher / "report.json").read_text(encoding="utf-8"))["training"]["device_seconds"]
    plan = ["plan", RECIPE, "--videos", str(catalog), "--store", str(tmp_path / "store")]
    plan += ["--set", f"teachers.video.weights={teacher / 'teacher.safetensors'}", "--set", "teachers.video.heads=2"]
    capsys.readouterr()

    assert main([*plan, "--json"]) == 0
    figure = json.loads(capsys.readouterr().out)["hours"]["teachers"]["video"]
    assert figure == {"device_seconds": seconds, "basis": "measured", "how": str(teacher)}
    assert main(plan) == 0
    table = capsys.readouterr().out
    for name in ("pretraining of the image teacher", "pretraining of the video teacher", "extraction"):
        assert name in table
    assert "estimated (at 100 TFLOP/s)" in table


def test_plan_refuses_a_folder_that_holds_another_store(
    catalog: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["plan", RECIPE, "--videos", str(catalog), "--store", str(tmp_path / "store")]
    assert main(command) == 0

    assert main([*command, "--set", "view.seed=1"]) == 1
    assert "view.seed" in capsys.readouterr().err


def test_bench_step_times_both_kinds_on_the_same_store(
    catalog: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = str(tmp_path / "store")
    assert main(["plan", RECIPE, "--videos", str(catalog), "--store", store]) == 0
    assert main(["extract", store, "--workers", "1"]) == 0
    capsys.readouterr()

    assert main(["bench", "step", RECIPE, "--store", store, "--steps", "2", "--batch-size", "4", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)

    assert report["steps"] == 2
    assert report["machine"]["torch_threads"] >= 1
    for name in ("online_seconds", "cached_seconds", "speedup"):
        assert 0 < report[name]["low"] <= report[name]["median"] <= report[name]["high"]
    assert 0 <= report["cached_wait_share"]["median"] <= 1
    assert [line.unit for line in lines_of("step", report)] == ["s", "s", "x"]

    # The same store, read by loader processes.
    command = ["bench", "pipeline", RECIPE, "--store", store, "--steps", "2", "--rounds", "2", "--batch", "4"]
    assert main([*command, "--set", "training.workers=1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)

    assert [report[name] for name in ("batch_size", "steps", "rounds", "workers")] == [4, 2, 2, 1]
    for name in ("loaded_clips_per_second", "memory_clips_per_second", "of_memory"):
        assert 0 < report[name]["low"] <= report[name]["median"] <= report[name]["high"]
    assert 0 <= report["wait_share"]["median"] <= 1
    assert [line.unit for line in lines_of("pipeline", report)] == ["clips/s", "clips/s", "%", "%"]
    assert main([*command, "--batch", "4000"]) == 2
    assert "fewer than a batch of 4000" in capsys.readouterr().err


def test_bench_read_compares_every_reader_under_the_same_conditions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["bench", "read", "--rows", "32", "--tokens", "4", "--repeats", "2", "--out", str(tmp_path)]

    assert main([*command, "--workers", "0,2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)

    readers = {"np.fromfile", "pread", "mvd-offline zarr", "mvd-offline tar", "zarr-python", "webdataset"}
    readers |= {"mosaicml-streaming", "litdata"} - set(report["absent"])
    conditions = {(codec, cache, workers) for codec in CODECS for cache in ("warm", "cold") for workers in (0, 2)}
    found = [(r["reader"], (r["codec"], r["cache"], r["workers"])) for r in report["readings"]]
    assert sorted(found) == sorted((reader, condition) for reader in readers for condition in conditions)
    assert report["row_bytes"] == {"float16": 4 * 1024 * 2, "int8": 5 * 1028}
    assert report["machine"]["torch_threads"] == 1
    assert len(lines_of("read", report)) == 2 * len(readers)
    for reading in report["readings"]:
        speed, share = reading["gigabytes_per_second"], reading["of_ceiling"]
        assert 0 < speed["low"] <= speed["median"] <= speed["high"]
        assert reading["reader"] != "np.fromfile" or share == {"median": 1, "low": 1, "high": 1}
    assert not list(tmp_path.iterdir()), "the samples were left behind"
    assert main([*command, "--workers", "4"]) == 2
    assert "32 rows are too few; 4 loader processes need at least 64" in capsys.readouterr().err


def test_distill_refuses_before_a_run_begins(catalog: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = load_distill(RECIPE)
    image_only = recipe.model_copy(update={"teachers": {"image": recipe.teachers["image"]}})
    (tmp_path / "image.yaml").write_text(dump_recipe(image_only), encoding="utf-8")
    store, run = str(tmp_path / "store"), tmp_path / "run"
    assert main(["plan", str(tmp_path / "image.yaml"), "--videos", str(catalog), "--store", store]) == 0
    assert main(["extract", store, "--workers", "1"]) == 0
    distill = ["distill", RECIPE, "--store", store, "--run", str(run)]

    assert main(distill) == 1
    assert "has columns image" in capsys.readouterr().err
    image_alone = [*distill, "--set", "loss.weights.video=0"]
    assert main([*image_alone, "--set", "optim.batch_size=5"]) == 2
    assert "optim.micro_batch_size" in capsys.readouterr().err
    assert not run.exists()
    assert main([*image_alone, "--set", "training.precision=no"]) == 0
    assert (run / "student.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_demo_ends_with_a_student_that_beats_scratch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--out", str(tmp_path), "--json"]) == 0

    report = json.loads(capsys.readouterr().out)
    assert report["distilled_top1"] > report["scratch_top1"]
    assert (tmp_path / "curves.png").is_file()
    assert (tmp_path / "contact_sheet.png").is_file()


def test_bench_extraction_holds_an_extraction_against_its_teachers(
    catalog: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    assert main(["plan", RECIPE, "--videos", str(catalog), "--store", str(store)]) == 0
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    capsys.readouterr()

    assert main(["bench", "extraction", str(store), "--rows", "5", "--rounds", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)

    assert (report["rows"], report["batch_rows"], report["rounds"]) == (5, 2, 1)
    assert 0 < report["share"]["low"] <= report["share"]["median"]
    assert report["extraction_clips_per_second"]["median"] > 0
    assert [line.unit for line in lines_of("extraction", report)] == ["clips/s", "clips/s", "%", "%"]
    assert 0 < report["processor_share"]["median"] < 1
    assert report["bytes_a_row"] == 2 * 3072
    assert report["seconds"].keys() == {"waiting for decode", "teachers", "waiting for disk", "sealing"}
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == before
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
