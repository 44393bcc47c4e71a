"""A run's report says where its hours went: teachers, extraction, training, beside what online teachers would take."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from small_runs import make_store, once, recipe_data, small_recipe, write_recipe

from mvd_offline.accounting import begin_launch, write_distill_report, write_report
from mvd_offline.cli.common import hours_rows
from mvd_offline.cli.main import main
from mvd_offline.extraction.timekeeper import Timekeeper
from mvd_offline.hours import REPORT_FILE, Figure, Hours
from mvd_offline.local import ExtractionTime, Local, TeacherTime, read_local, write_local
from mvd_offline.recipe import DistillRecipe, load_distill


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once(tmp_path_factory, "store", make_store) / "store"


def report_of(run: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((run / REPORT_FILE).read_text(encoding="utf-8"))
    return report


def times(run: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["time"]["step_seconds"]) for line in lines]


@dataclass
class Launched:
    """What `begin_launch` asks of an accelerator."""

    num_processes: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


def lines(*steps: tuple[int, float]) -> str:
    return "".join(json.dumps({"step": step, "time": {"step_seconds": seconds}}) + "\n" for step, seconds in steps)


def test_a_run_that_went_on_has_all_its_hours(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, run = write_recipe(tmp_path / "small.yaml"), tmp_path / "run"
    command = ["distill", str(recipe), "--store", str(store), "--run", str(run)]
    assert main([*command, "--set", "optim.stop_after_epochs=1"]) == 0
    capsys.readouterr()
    assert main([*command, "--set", "optim.stop_after_epochs=2"]) == 0
    printed, report = capsys.readouterr().out, report_of(run)

    # 12 views an epoch, 4 a step, a line of metrics each step.
    seconds = sum(one for _, one in times(run))
    assert [(one["after_step"], one["processes"]) for one in report["launches"]] == [(0, 1), (3, 1)]
    assert report["training"] == {
        "steps": 6,
        "clips": 24,
        "seconds": pytest.approx(seconds),
        "device_seconds": pytest.approx(seconds),
    }
    (extraction,) = read_local(store).extractions.values()
    hours = report["hours"]
    assert hours["cached"] == {"device_seconds": pytest.approx(seconds), "basis": "measured", "how": "this run"}
    assert hours["extraction"]["device_seconds"] == pytest.approx(extraction.seconds)
    assert {name: taken.clips for name, taken in extraction.teachers.items()} == {"image": 24, "video": 24}
    teachers = sum(taken.seconds for taken in extraction.teachers.values())
    assert 0 < teachers < extraction.seconds
    assert hours["online"]["device_seconds"] == pytest.approx(seconds + 24 * teachers / 24)
    assert {name: figure["basis"] for name, figure in hours["teachers"].items()} == {
        "image": "unknown", "video": "unknown"
    }  # fmt: skip
    for told in (
        "pretraining of the image teacher: unknown: only a run folder of `mvd-offline pretrain` tells it",
        "extraction: ",
        "training on the store: ",
        "training with online teachers: ",
        ", estimated (this run, and",
    ):
        assert told in printed

    assert main([*command, "--set", "optim.stop_after_epochs=2"]) == 0
    assert report_of(run)["training"] == report["training"], "a finished run takes no more time"


def test_an_online_run_estimates_nothing(store: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "small.yaml", {"targets": "online", "optim.stop_after_epochs": 1})
    run = tmp_path / "run"
    assert main(["distill", str(recipe), "--store", str(store), "--run", str(run)]) == 0
    report = report_of(run)

    hours = report["hours"]
    assert (hours["extraction"]["basis"], hours["cached"]["basis"], hours["online"]["basis"]) == (
        "unknown", "unknown", "measured"
    )  # fmt: skip
    assert "bench step" in hours["cached"]["how"]
    assert hours["online"]["device_seconds"] == report["training"]["device_seconds"] > 0
    assert hours["speedup"] is None


def hours_after(run: Path, recipe: DistillRecipe, store: Path) -> Hours:
    hours = write_distill_report(run, recipe, [store]).hours
    assert hours is not None
    return hours


def test_each_launch_counts_its_own_devices_and_lost_steps_are_counted_once(tmp_path: Path) -> None:
    begin_launch(tmp_path, Launched(1))
    (tmp_path / "checkpoints" / "step-0000010").mkdir(parents=True)
    begin_launch(tmp_path, Launched(1))
    begin_launch(tmp_path, Launched(4))
    (tmp_path / "metrics.jsonl").write_text(lines((10, 2.0), (15, 1.0), (20, 0.5)))

    report = write_report(tmp_path, batch_size=8)

    # The second launch did nothing that lasted: the third goes on from the same step.
    assert [(launch.after_step, launch.processes) for launch in report.launches] == [(0, 1), (10, 4)]
    assert report.training.seconds == 20 + 5 + 2.5
    assert report.training.device_seconds == 20 + 4 * 7.5
    assert (report.training.steps, report.training.clips) == (20, 160)


def test_the_pretraining_of_a_teacher_and_all_extractions_are_found(tmp_path: Path) -> None:
    run, teacher, store = tmp_path / "run", tmp_path / "teacher", tmp_path / "store"
    for folder in (run, teacher, store):
        folder.mkdir()
    for folder, seconds in ((run, 0.5), (teacher, 3.0)):
        begin_launch(folder, Launched(4))
        (folder / "metrics.jsonl").write_text(lines((10, seconds)))
    write_report(teacher, batch_size=8)
    weights = teacher / "teacher.safetensors"
    weights.touch()
    taken = [
        ExtractionTime("gpu", seconds, {"video": TeacherTime(clips, seconds / 2)})
        for seconds, clips in ((8.0, 10), (4.0, 5))
    ]
    write_local(store, Local(None, {"video": str(weights)}, {"a": taken[0], "b": taken[1]}))
    recipe = small_recipe({"loss": {"weights": {"image": 0, "video": 1}}, "teachers.video.weights": "moved.pth"})

    hours = hours_after(run, recipe, store)

    assert hours.teachers == {"video": Figure(4 * 30.0, "measured", str(teacher))}
    assert hours.extraction.device_seconds == 12
    # 10 steps of 4 clips; 6 seconds of the teacher for 15 clips.
    assert hours.online.device_seconds == pytest.approx(4 * 5.0 + 40 * 6 / 15)
    assert hours.speedup == pytest.approx((20 + 16) / (20 + 12))

    begin_launch(teacher, Launched(4))
    unfinished = hours_after(run, recipe, store).teachers["video"]
    assert unfinished.basis == "unknown"
    assert f"its run {teacher} is not at its end" in unfinished.how

    both = hours_after(run, load_distill(recipe_data()), store)
    assert both.online == Figure(None, "unknown", both.online.how), "the image teacher was never timed"


def test_what_learns_from_no_teacher_has_the_hours_of_its_training_alone(tmp_path: Path) -> None:
    begin_launch(tmp_path, Launched(2))
    (tmp_path / "metrics.jsonl").write_text(lines((10, 1.0)))
    recipe = small_recipe({"teachers": {}, "loss": {"weights": {}}, "pixels": {}})

    hours = hours_after(tmp_path, recipe, tmp_path)

    assert (hours.cached.device_seconds, hours.online.device_seconds, hours.extraction.device_seconds) == (20, 20, 0)
    assert hours_rows(hours.to_json()) == [("training", "20.0 s, measured (this run)")]


def test_interrupted_extractions_add_up(store: Path, tmp_path: Path) -> None:
    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    before = read_local(copy)
    keeper = Timekeeper(copy, "cpu", began=0.0)
    keeper.ran("video", 2, 0.25)
    keeper.ran("video", 2, 0.5)
    with pytest.raises(KeyboardInterrupt), keeper:
        raise KeyboardInterrupt
    with Timekeeper(copy, "cpu", began=0.0):
        pass

    after = read_local(copy)
    (added,) = (taken for name, taken in after.extractions.items() if name not in before.extractions)
    assert (after.videos_root, after.teachers) == (before.videos_root, before.teachers)
    assert added.teachers == {"video": TeacherTime(4, 0.75)}
