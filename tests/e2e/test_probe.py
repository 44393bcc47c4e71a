"""Encoders judged by probes on their frozen features: by command, and while a student is being distilled."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import (
    command,
    contents,
    hanging,
    launched,
    metrics,
    once,
    run,
    run_distill,
    run_side_by_side,
    started,
    wait_until,
    write_recipe,
)

from mvd_offline.cli.main import main
from mvd_offline.models.saving import save_model
from mvd_offline.models.student import build_student
from mvd_offline.recipe import DecoderSection, StudentSection, ViewSection
from mvd_offline.video.catalog import Catalog, Video

pytestmark = pytest.mark.usefixtures("one_thread")


def write_catalog(path: Path, videos: list[Video], like: Catalog, *, root: Path | None = None) -> Path:
    Catalog(tuple(videos), root or like.root, like.classes).write(path)
    return path


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory, made: Path) -> Path:
    """`train.parquet`: two videos of each class. `test.parquet`: one of each, and one that the scan could not read."""

    def make(folder: Path) -> None:
        folder.mkdir()
        everything = Catalog.read(made / "catalog.parquet")
        first = {video.label: video for video in everything.videos}
        test = list(first.values())
        train = [video for video in everything.videos if video not in test]
        broken = replace(test[0], video_id="broken.mp4", path="broken.mp4", status="unreadable", detail="no picture")
        write_catalog(folder / "train.parquet", train, everything)
        write_catalog(folder / "test.parquet", sorted([*test, broken], key=lambda video: video.video_id), everything)
        write_catalog(folder / "readable.parquet", test, everything)

    return once(tmp_path_factory, "probe-catalogs", make)


def save_student(path: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    section = StudentSection(width=48, depth=2, heads=3, decoder=DecoderSection(depth=1))
    save_model(path, build_student(section, ViewSection(frames=4, image_size=32), {"video": 24}))
    return path


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = once(tmp_path_factory, "probed-student", Path.mkdir)
    return save_student(folder / "student.safetensors", 5)


def words(student: Path, split: Path, out: Path, *options: str | Path, test: str = "test") -> list[str]:
    catalogs = ["--train", split / "train.parquet", "--videos", split / f"{test}.parquet"]
    return [
        str(word) for word in ["evaluate", student, *catalogs, "--out", out, "--stride", 2, "--workers", 1, *options]
    ]


Judge = Callable[..., dict[str, Any]]


@pytest.fixture
def judge(student: Path, split: Path, capsys: pytest.CaptureFixture[str]) -> Judge:
    """Runs the command and returns what it reports."""

    def judge(out: Path, *options: str | Path, catalogs: Path = split, test: str = "test") -> dict[str, Any]:
        assert main([*words(student, catalogs, out, *options, test=test), "--json"]) == 0
        report: dict[str, Any] = json.loads(capsys.readouterr().out)
        return report

    return judge


# ---- by command --------------------------------------------------------------------------------------------------


ALL = ("--probe", "linear", "--probe", "knn", "--probe", "attentive", "--epochs", "3", "--unreadable", "wrong")


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory, student: Path, split: Path) -> Path:
    """What all three probes leave."""

    def make(folder: Path) -> None:
        assert main(words(student, split, folder, *ALL)) == 0

    return once(tmp_path_factory, "judged", make)


def test_the_result_says_what_was_judged_and_how_each_class_fared(judged: Path, student: Path) -> None:
    report = json.loads((judged / "probe.json").read_text())

    assert report["checkpoint"] == str(student)
    assert report["clips"] == {"train": 8, "test": 4}
    assert report["extraction_seconds"] > 0
    assert set(report["probes"]) == {"linear", "knn", "attentive"}
    for found in report["probes"].values():
        assert found["videos"] == 5
        assert [row["videos"] for row in found["classes"]] == [2, 1, 1, 1], "the unreadable one counts"
        assert found["top1"] == sum(row["top1"] for row in found["classes"]) / 5
        assert found["top5"] == 0.8, "of four classes all are among the first five"
    assert [video["reason"] for video in report["unreadable"]["test"]] == ["no picture"]


def test_another_probe_reads_no_video_and_runs_no_encoder(
    judged: Path, judge: Judge, split: Path, tmp_path: Path
) -> None:
    """The videos are gone, and no file of the stores changes."""
    out, catalogs = tmp_path / "out", tmp_path / "catalogs"
    shutil.copytree(judged, out)
    catalogs.mkdir()
    for path in split.iterdir():
        catalog = Catalog.read(path)
        write_catalog(catalogs / path.name, list(catalog.videos), catalog, root=tmp_path / "gone")
    before = contents(out / "features" / "train") | contents(out / "features" / "test")
    first = json.loads((judged / "probe.json").read_text())["probes"]

    again = judge(out, *ALL, catalogs=catalogs)

    assert again["extraction_seconds"] == 0
    assert again["probes"] == first
    without = judge(out, "--probe", "knn", "--unreadable", "exclude", catalogs=catalogs)
    assert without["probes"]["knn"]["videos"] == 4
    assert contents(out / "features" / "train") | contents(out / "features" / "test") == before


@pytest.mark.slow
def test_two_processes_judge_as_one(judged: Path, student: Path, split: Path, tmp_path: Path) -> None:
    run(launched(2, *words(student, split, tmp_path, *ALL)), tmp_path / "log", timeout=300, ranks=2)

    one, two = (json.loads((folder / "probe.json").read_text()) for folder in (judged, tmp_path))
    for name in ("train", "test"):
        assert contents(judged / "features" / name) == contents(tmp_path / "features" / name)
    assert one["features"] == two["features"]
    assert one["probes"] == two["probes"]


# ---- errors, one paragraph each, before anything is computed ------------------------------------------------------


@pytest.fixture
def refusal(student: Path, split: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def refusal(*options: str | Path, status: int = 2) -> str:
        assert main([str(option) for option in options]) == status
        return " ".join(capsys.readouterr().err.split())

    return refusal


def test_videos_without_labels_are_refused(
    refusal: Callable[..., str], student: Path, split: Path, tmp_path: Path
) -> None:
    catalog = Catalog.read(split / "train.parquet")
    unlabelled = [replace(video, label=-1) for video in catalog.videos[:3]]
    write_catalog(tmp_path / "train.parquet", [*unlabelled, *catalog.videos[3:]], catalog)
    write_catalog(tmp_path / "test.parquet", list(Catalog.read(split / "readable.parquet").videos), catalog)

    said = refusal(*words(student, tmp_path, tmp_path / "out", "--probe", "linear"))

    assert re.search(r"train.parquet: 3 of 8 videos have no label, such as .*scan a list with labels", said)
    assert not (tmp_path / "out").exists()


def test_catalogs_of_other_classes_are_refused(
    refusal: Callable[..., str], student: Path, split: Path, tmp_path: Path
) -> None:
    catalog = Catalog.read(split / "readable.parquet")
    names = (catalog.classes[0], "juggling", *catalog.classes[2:])
    write_catalog(tmp_path / "train.parquet", list(Catalog.read(split / "train.parquet").videos), catalog)
    Catalog(catalog.videos, catalog.root, names).write(tmp_path / "test.parquet")

    said = refusal(*words(student, tmp_path, tmp_path / "out", "--probe", "linear"))

    assert f"they differ: class 1 is {catalog.classes[1]!r} in the one and 'juggling' in the other" in said
    assert not (tmp_path / "out").exists()


def test_a_store_of_another_encoder_is_refused(
    refusal: Callable[..., str], judged: Path, split: Path, tmp_path: Path
) -> None:
    other = save_student(tmp_path / "other.safetensors", 6)
    store, options = judged / "features", ("--probe", "linear", "--unreadable", "wrong")

    said = refusal(*words(other, split, tmp_path / "out", *options, "--store", store), status=1)
    assert re.search(r"features of another encoder than .*other.safetensors: weights_sha256: .* another folder", said)
    assert not (tmp_path / "out").exists()


def test_features_of_other_clips_are_refused(
    refusal: Callable[..., str], judged: Path, student: Path, split: Path, tmp_path: Path
) -> None:
    options = ("--probe", "linear", "--unreadable", "wrong", "--store", judged / "features", "--stride", 1)

    said = refusal(*words(student, split, tmp_path / "out", *options), status=1)

    assert "view.stride: recipe has 1, store has 2" in said


def test_an_unreadable_test_video_stops_the_test_unless_something_is_said(
    refusal: Callable[..., str], student: Path, split: Path, tmp_path: Path
) -> None:
    said = refusal(*words(student, split, tmp_path / "out", "--probe", "linear"), status=1)

    assert "1 test video cannot be read (broken.mp4: no picture)" in said
    assert "--unreadable" in said
    assert not (tmp_path / "out").exists()


def test_options_that_do_not_go_with_probes_are_refused(
    refusal: Callable[..., str], student: Path, split: Path, tmp_path: Path
) -> None:
    catalog = str(split / "readable.parquet")
    assert "takes one checkpoint (1 given), --train with the catalog to fit on (none given)" in refusal(
        "evaluate", student, "--probe", "linear", "--videos", catalog
    )
    assert "--train cannot go with a test without --probe" in refusal(
        "evaluate", student, "--train", catalog, "--videos", catalog
    )
    assert "no file or folder" in refusal(
        "evaluate", tmp_path / "nothing.pth", "--probe", "knn", "--train", catalog, "--videos", catalog
    )


# ---- while a student is distilled --------------------------------------------------------------------------------

PROBE = {"probe.every_epochs": 1, "training.tensorboard": True, "ema.decay": 0.5}


@pytest.fixture(scope="module")
def probe_videos(tmp_path_factory: pytest.TempPathFactory, split: Path) -> Path:
    """The videos of the probes, which no training reads, below `videos`; and their catalogs."""

    def make(folder: Path) -> None:
        shutil.copytree(Catalog.read(split / "train.parquet").root, folder / "videos")
        for name in ("train", "readable"):
            catalog = Catalog.read(split / f"{name}.parquet")
            write_catalog(folder / f"{name}.parquet", list(catalog.videos), catalog, root=folder / "videos")

    return once(tmp_path_factory, "probe-videos", make)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, probe_videos: Path) -> Path:
    catalogs = {
        "probe.train": str(probe_videos / "train.parquet"),
        "probe.test": str(probe_videos / "readable.parquet"),
    }
    return write_recipe(tmp_path_factory.mktemp("recipe") / "recipe.yaml", PROBE | catalogs)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, recipe: Path, store: Path) -> Path:
    """A run with probes that nothing interrupted."""

    def make(folder: Path) -> None:
        torch.set_num_threads(1)
        assert run_distill(recipe, store, folder) == 0

    return once(tmp_path_factory, "probed-whole", make)


def probed(folder: Path) -> list[int]:
    return [line["step"] for line in metrics(folder) if "probe/linear_top1" in line]


def test_probes_are_in_the_metrics_the_report_and_tensorboard_and_change_no_loss(
    whole: Path, store: Path, tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert run_distill(write_recipe(tmp_path / "recipe.yaml"), store, tmp_path / "run") == 0

    assert probed(whole) == [3, 6, 9, 12]
    assert [line for line in metrics(whole) if "loss" in line] == metrics(tmp_path / "run")
    last = metrics(whole)[-1]
    names = ["linear_top1", "linear_top5", "knn_top1", "knn_top5"]
    report = json.loads((whole / "report.json").read_text())
    assert report["probe"] == {"step": 12} | {name: last[f"probe/{name}"] for name in names}
    assert report["training"]["steps"] == 12
    board = EventAccumulator(str(whole / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("probe/linear_top1")] == [3, 6, 9, 12]


def test_the_last_probe_is_that_of_the_student_that_the_run_leaves(
    whole: Path, probe_videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    catalogs = ["--train", str(probe_videos / "train.parquet"), "--videos", str(probe_videos / "readable.parquet")]
    options = ["--probe", "linear", "--probe", "knn", "--out", str(tmp_path), "--workers", "1", "--json"]
    assert main(["evaluate", str(whole), *catalogs, *options]) == 0

    report = json.loads(capsys.readouterr().out)
    found = report["probes"]
    assert report["checkpoint"] == str(whole / "student.safetensors")
    assert (whole / "student_ema.safetensors").is_file()
    last = metrics(whole)[-1]
    assert {kind: found[kind]["top1"] for kind in found} == {kind: last[f"probe/{kind}_top1"] for kind in found}

    # Its features are a store like any other, although a clip has but one vector.
    store = str(tmp_path / "features" / "test")
    assert main(["shards", "verify", store, "--level", "recompute"]) == 0
    assert main(["shards", "info", store]) == 0
    assert "mean_over_tokens" in capsys.readouterr().out
    assert main(["shards", "report", store, "--out", str(tmp_path / "page.html")]) == 0
    assert main(["shards", "show", store, "0", "--out", str(tmp_path / "view.png")]) == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_probe_that_was_cut_short_is_made_by_the_run_that_goes_on(
    number: signal.Signals, whole: Path, recipe: Path, probe_videos: Path, store: Path, tmp_path: Path
) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    video = probe_videos / "videos" / Catalog.read(probe_videos / "readable.parquet").videos[0].path

    with ExitStack() as lease:
        somebody_hangs = lease.enter_context(hanging(video))
        with started(command("distill", recipe, "--store", store, "--run", folder), log) as process:
            assert wait_until(somebody_hangs, seconds=60), log.read_text()
            process.send_signal(number)
            lease.close()
            assert process.wait(60) == (75 if number == signal.SIGTERM else -number), log.read_text()

    assert (folder / "checkpoints" / "step-0000003").is_dir(), "the checkpoint comes before its probe"
    assert probed(folder) == []
    assert run_distill(recipe, store, folder) == 0
    assert metrics(folder) == metrics(whole)


def test_two_processes_probe_as_one(whole: Path, recipe: Path, store: Path, tmp_path: Path) -> None:
    options = ("--set", "optim.micro_batch_size=1", "--set", "optim.stop_after_epochs=2")
    distilling = ("distill", recipe, "--store", store, "--run", tmp_path / "run", *options)
    printed = run_side_by_side(2, command(*distilling), tmp_path / "log", timeout=200)

    assert "probe after step 6: linear_top1" in printed
    assert probed(tmp_path / "run") == [3, 6]
    for ours, theirs in zip(metrics(tmp_path / "run"), metrics(whole)[:8], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)


def test_a_recipe_whose_probe_has_no_labels_is_refused_before_the_run_begins(
    store: Path, probe_videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    catalog = Catalog.read(probe_videos / "train.parquet")
    write_catalog(tmp_path / "none.parquet", [replace(video, label=-1) for video in catalog.videos], catalog)
    changes = {"probe.train": str(tmp_path / "none.parquet"), "probe.test": str(probe_videos / "readable.parquet")}

    assert run_distill(write_recipe(tmp_path / "recipe.yaml", changes), store, tmp_path / "run") == 2

    assert "8 of 8 videos have no label" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()
