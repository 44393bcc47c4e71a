"""Fine-tuning and its test on real, small videos: from a student and from scratch, killed, and on two processes."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from small_runs import command, make_videos, once, run_side_by_side, started, wait_until

from mvd_offline.cli.main import main
from mvd_offline.finetune import finetune
from mvd_offline.models import load_classifier, load_student
from mvd_offline.models.saving import save_model
from mvd_offline.models.student import build_student
from mvd_offline.recipe import DecoderSection, StudentSection, ViewSection, load_finetune
from mvd_offline.video.catalog import Catalog

# 12 videos of 4 classes: 3 steps an epoch, each of two micro-batches of two videos, that is, of four views.
RECIPE: dict[str, Any] = {
    "kind": "finetune",
    "name": "small",
    "clip": {"frames": 4, "stride": 2, "image_size": 32},
    "model": {
        "width": 48, "depth": 2, "heads": 3, "classes": 4,
        "drop_path": 0.2, "head_dropout": 0.3, "head_init_scale": 1.0,
    },
    "augment": {
        "repeats": 2, "rand_augment": {}, "area": [0.3, 1.0], "flip": 0.0, "erasing": {"probability": 0.5},
    },
    "mixing": {},
    "ema": {"decay": 0.9},
    "optim": {
        "epochs": 8, "warmup_epochs": 1, "batch_size": 4, "micro_batch_size": 2,
        "base_lr": 2.0e-3, "min_lr": 1.0e-5, "lr_reference_batch": 4, "layer_decay": 0.75,
    },
    "training": {
        "workers": 0, "log_every_steps": 1, "checkpoint_every_epochs": 0.34, "tensorboard": False,
    },
    "evaluation": {"segments": 2, "crops": 3, "batch_size": 12},
}  # fmt: skip
STEPS = 24


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once(tmp_path_factory, "videos", make_videos) / "catalog.parquet"


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory, catalog: Path) -> Path:
    """A run from scratch that nothing interrupted."""

    def make(folder: Path) -> None:
        torch.set_num_threads(1)
        finetune(load_finetune(RECIPE), catalog_path=catalog, run=folder)

    return once(tmp_path_factory, "finetune-whole", make)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student's file, with random weights."""
    torch.manual_seed(5)
    section = StudentSection(width=48, depth=2, heads=3, decoder=DecoderSection(depth=1))
    path = tmp_path_factory.mktemp("student") / "student.safetensors"
    save_model(path, build_student(section, ViewSection(frames=4, image_size=32), {"image": 24, "video": 40}))
    return path


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    data = copy.deepcopy(RECIPE)
    for path, value in changes.items():
        section, key = path.split(".")
        data[section][key] = value
    return data


def records(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without what depends on the machine."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "time"} for line in lines]


PRODUCTS = ("classifier.safetensors", "classifier_ema.safetensors")


def products(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in PRODUCTS]


# ---- a run and its test ------------------------------------------------------------------------------------------


def test_a_run_leaves_a_classifier_that_loads_without_arguments(whole_run: Path) -> None:
    classifier = load_classifier(whole_run / "classifier.safetensors")
    assert classifier(torch.zeros(1, 3, 4, 32, 32)).shape == (1, 4)
    assert classifier.positions == "sincos_3d"
    assert [line["step"] for line in records(whole_run)] == list(range(1, STEPS + 1))
    assert {"loss", "accuracy", "lr", "grad_norm", "epoch"} <= records(whole_run)[0].keys()


def test_evaluate_prints_the_accuracies_and_writes_them(
    whole_run: Path, catalog: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(whole_run), "--videos", str(catalog)]) == 0
    result = json.loads((whole_run / "evaluation.json").read_text())
    printed = capsys.readouterr().out
    assert f"top-1 {100 * result['top1']:.2f} %, top-5 100.00 % on 12 videos (2 segments x 3 crops)" in printed
    assert f"per class: {whole_run / 'per_class.csv'}" in printed
    assert "note: these are the very videos that it was trained on" in printed
    assert sum(row["top1"] for row in result["classes"]) == round(12 * result["top1"])
    assert len((whole_run / "per_class.csv").read_text().splitlines()) == 5

    assert main(["evaluate", str(whole_run), "--videos", str(catalog), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed.pop("timing")["processes"] == 1
    assert printed == result


def test_a_run_starts_from_a_students_encoder(student: Path, catalog: Path, tmp_path: Path) -> None:
    frozen = changed({"optim.base_lr": 1e-12, "optim.min_lr": 0.0, "optim.epochs": 1})
    finetune(load_finetune(frozen), catalog_path=catalog, init=student, run=tmp_path / "run")
    classifier = load_classifier(tmp_path / "run" / "classifier.safetensors")
    video = torch.randn(2, 3, 4, 32, 32)
    torch.testing.assert_close(classifier.encode_tokens(video), load_student(student).encode_tokens(video))
    assert main(["evaluate", str(tmp_path / "run"), "--videos", str(catalog)]) == 0


def test_uniform_sampling_trains_and_is_tested(catalog: Path, tmp_path: Path) -> None:
    recipe = changed({"clip.sampling": "uniform", "optim.epochs": 2})
    finetune(load_finetune(recipe), catalog_path=catalog, run=tmp_path / "run")
    assert main(["evaluate", str(tmp_path / "run"), "--videos", str(catalog)]) == 0
    assert len(records(tmp_path / "run")) == 6


def test_the_average_of_the_weights_trails_them(whole_run: Path) -> None:
    weights, average = (load_classifier(whole_run / name).state_dict()["head.weight"] for name in PRODUCTS)
    assert not torch.equal(weights, average)
    torch.testing.assert_close(average, weights, atol=0.1, rtol=0.5)


def test_bfloat16_and_recomputed_activations_stay_close_to_the_plain_run(
    whole_run: Path, catalog: Path, tmp_path: Path, fresh_accelerator: None
) -> None:
    changes = {"training.precision": "bf16", "model.checkpoint_activations": True, "optim.stop_after_epochs": 1}
    finetune(load_finetune(changed(changes)), catalog_path=catalog, run=tmp_path / "run")
    ours, theirs = ([line["loss"] for line in records(path)[:3]] for path in (tmp_path / "run", whole_run))
    assert ours == pytest.approx(theirs, rel=2e-2)
    assert ours != theirs


def test_a_tiny_classifier_learns_eight_videos_by_heart(catalog: Path, tmp_path: Path) -> None:
    all_videos = Catalog.read(catalog)
    eight = tuple(video for video in all_videos.videos if not video.path.endswith("00002.mp4"))
    Catalog(eight, all_videos.root, all_videos.classes).write(tmp_path / "eight.parquet")
    recipe = changed({
        "model.drop_path": 0.0, "model.head_dropout": 0.0, "optim.layer_decay": 1.0, "optim.weight_decay": 0.0,
        "optim.epochs": 40, "optim.warmup_epochs": 4, "optim.batch_size": 8, "optim.micro_batch_size": 8,
        "training.checkpoint_every_epochs": 100,
        "augment.area": [0.9, 1.0], "augment.repeats": 1, "augment.rand_augment": None, "augment.erasing": None,
    }) | {"label_smoothing": 0.0, "mixing": None}  # fmt: skip
    finetune(load_finetune(recipe), catalog_path=tmp_path / "eight.parquet", run=tmp_path / "run")
    losses = [line["loss"] for line in records(tmp_path / "run")]
    assert losses[0] > 1.0
    assert sum(losses[-5:]) / 5 < losses[0] / 5


# ---- interruption, processes -------------------------------------------------------------------------------------


def test_a_killed_run_goes_on_as_if_it_had_not_been(
    whole_run: Path, recipe_file: Path, catalog: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    words = command("finetune", recipe_file, "--videos", catalog, "--run", folder)

    def reached() -> bool:
        return (folder / "metrics.jsonl").is_file() and len((folder / "metrics.jsonl").read_bytes().splitlines()) >= 8

    with started(words, tmp_path / "log") as process:
        assert wait_until(lambda: reached() or process.poll() is not None, seconds=120), (tmp_path / "log").read_text()
        process.kill()
        process.wait()
    assert (folder / "checkpoints").is_dir()
    assert not (folder / "checkpoints" / f"step-{STEPS:07d}").exists(), "it ended before it was killed"

    summary = finetune(load_finetune(RECIPE), catalog_path=catalog, run=folder)
    assert summary.steps < STEPS
    assert records(folder) == records(whole_run)
    assert products(folder) == products(whole_run)


def test_a_run_stopped_within_an_epoch_goes_on_as_if_it_had_not_been(
    catalog: Path, recipe_file: Path, tmp_path: Path
) -> None:
    """One epoch of 9 steps, without a checkpoint of its own before the last."""
    videos = Catalog.read(catalog)
    many = [replace(video, video_id=f"{video.video_id}#{k}") for k in range(3) for video in videos.videos]
    Catalog(tuple(sorted(many, key=lambda video: video.video_id)), videos.root).write(tmp_path / "many.parquet")
    changes = {"optim.epochs": 1, "optim.warmup_epochs": 0.2, "training.checkpoint_every_epochs": 5}
    words = ["finetune", str(recipe_file), "--videos", str(tmp_path / "many.parquet")]
    words += [word for path, value in changes.items() for word in ("--set", f"{path}={value}")]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert main([*words, "--run", str(whole)]) == 0

    with started(command(*words, "--run", stopped), tmp_path / "log") as process:
        begun = stopped / "metrics.jsonl"  # opened once signals are listened to
        assert wait_until(lambda: begun.is_file() or process.poll() is not None, seconds=120), "it does not begin"
        process.terminate()
        assert process.wait(timeout=120) == 75, (tmp_path / "log").read_text()
    steps = len(records(stopped))
    assert 1 <= steps < 9, "it stopped within its only epoch"

    assert main([*words, "--run", str(stopped), "--set", "training.workers=2"]) == 0
    assert records(stopped) == records(whole)
    for name in PRODUCTS:
        ours, theirs = (load_file(folder / name) for folder in (stopped, whole))
        assert all(torch.equal(ours[tensor], theirs[tensor]) for tensor in theirs), name


def test_a_run_with_checkpoints_goes_on_when_the_weights_that_it_began_with_are_gone(
    student: Path, catalog: Path, tmp_path: Path, complains: Complains
) -> None:
    moved, runs = Path(shutil.copy(student, tmp_path)), (tmp_path / "whole", tmp_path / "interrupted")
    for epochs, folder in ((2, runs[0]), (1, runs[1])):
        recipe = load_finetune(changed({"optim.stop_after_epochs": epochs}))
        finetune(recipe, catalog_path=catalog, init=moved, run=folder)
    moved.unlink()
    finetune(load_finetune(changed({"optim.stop_after_epochs": 2})), catalog_path=catalog, init=moved, run=runs[1])
    assert records(runs[1]) == records(runs[0])
    assert products(runs[1]) == products(runs[0])
    words = ("--videos", str(catalog), "--run", str(tmp_path / "new"), "--init", str(moved))
    complains("finetune", *words, status=1, message=f"{moved}: no such file or folder")


# What is registered first runs last. A thread of gloo that outlives Python aborts its process now and then.
COUNT_THREADS_AT_THE_END = """
import atexit, os, pathlib

@atexit.register
def count():
    left = [name.read_text() for name in pathlib.Path("/proc/self/task").glob("*/comm")]
    if any("gloo" in name for name in left):
        print("left at the end:", left, flush=True)
        os._exit(9)

"""


def test_two_processes_train_and_test_as_one_does(
    whole_run: Path, recipe_file: Path, catalog: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    train = ["finetune", str(recipe_file), "--videos", str(catalog), "--run", str(folder), "--json"]
    test = ["evaluate", str(folder), "--videos", str(catalog), "--json"]
    # One script for both commands: starting two processes takes longer than what they do.
    script = tmp_path / "both.py"
    commands = f"from mvd_offline.cli.main import main\nassert main({train}) == 0\nassert main({test}) == 0\n"
    script.write_text(COUNT_THREADS_AT_THE_END + commands)
    output = run_side_by_side(2, [sys.executable, str(script)], tmp_path / "log")

    losses = [[line["loss"] for line in records(path)] for path in (folder, whole_run)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    averages = [load_classifier(path / "classifier_ema.safetensors").state_dict() for path in (folder, whole_run)]
    torch.testing.assert_close(averages[0], averages[1], rtol=1e-3, atol=1e-4)
    both = (folder / "evaluation.json").read_bytes()
    assert json.loads(both)["videos"] == 12
    assert output.count('"top1":') == 1 + 4, "one process prints"
    page = (folder / "report.html").read_text()
    assert "on 2 × cpu" in page
    assert "Test of the weights at the end" in page
    assert "To try again" not in output
    (folder / "evaluation.json").unlink()
    assert main(["evaluate", str(folder), "--videos", str(catalog)]) == 0
    assert (folder / "evaluation.json").read_bytes() == both


def test_a_run_goes_on_only_from_the_weights_and_the_data_that_it_began_with(
    whole_run: Path, student: Path, catalog: Path, tmp_path: Path, complains: Complains
) -> None:
    words = ("finetune", "--run", str(whole_run), "--videos", str(catalog))
    complains(*words, "--init", str(student), status=1, message="init was 'scratch' and is ")
    complains(*words, "--set", "label_smoothing=0.2", status=2, message="was started with label_smoothing = 0.1")
    halves = ("--set", "optim.micro_batch_size=1")
    complains(*words, *halves, status=2, message="was started with micro-batches of 2 videos")
    all_videos = Catalog.read(catalog)
    Catalog(all_videos.videos[1:], all_videos.root, all_videos.classes).write(tmp_path / "fewer.parquet")
    complains(*words[:-1], str(tmp_path / "fewer.parquet"), status=1, message="source was ")


# ---- mistakes ----------------------------------------------------------------------------------------------------

Complains = Callable[..., None]


@pytest.fixture
def complains(recipe_file: Path, capsys: pytest.CaptureFixture[str]) -> Complains:
    """Runs `finetune` with the small recipe in this process; it must fail with one line that holds the message."""

    def check(name: str, *words: str, status: int, message: str) -> None:
        capsys.readouterr()
        found = main([name, str(recipe_file), *words] if name == "finetune" else [name, *words])
        error = capsys.readouterr().err
        assert found == status, error
        assert message in error
        assert error.count("\n") == 1
        assert "this is a bug" not in error

    return check


def test_mistakes_are_found_before_any_work(
    student: Path, whole_run: Path, catalog: Path, tmp_path: Path, complains: Complains
) -> None:
    new, videos = ("--run", str(tmp_path / "new")), ("--videos", str(catalog))
    none = str(tmp_path / "none")
    complains("finetune", *new, "--videos", none, status=2, message="no such catalog")
    complains("finetune", *new, *videos, "--init", none, status=1, message=f"{none}: no such file or folder")
    depth = ("--set", "model.depth=3", "--init", str(student))
    size = "an encoder of another size cannot start this recipe's classifier: it has depth 2 (the recipe: 3)"
    complains("finetune", *new, *videos, *depth, status=1, message=size)
    classes = ("--set", "model.classes=5")
    complains("finetune", *new, *videos, *classes, status=2, message="has 4 classes and model.classes is 5")
    many = ("--set", "optim.batch_size=16")
    complains("finetune", *new, *videos, *many, status=2, message="an epoch has 12 usable samples")
    alone = ("--set", "optim.micro_batch_size=1", "--set", "augment.repeats=1")
    complains("finetune", *new, *videos, *alone, status=2, message="mixing needs two views in a micro-batch")
    odd = ("--set", "optim.micro_batch_size=3")
    complains("finetune", *new, *videos, *odd, status=2, message="no multiple of optim.micro_batch_size (3)")
    complains("evaluate", none, *videos, status=2, message="has no classifier.safetensors")
    complains("evaluate", str(whole_run), "--videos", none, status=2, message="no such catalog")
    assert not (tmp_path / "new").exists()


def test_a_label_outside_the_classes_is_refused(catalog: Path, tmp_path: Path, complains: Complains) -> None:
    unnamed = Catalog.read(catalog)
    Catalog(unnamed.videos, unnamed.root).write(tmp_path / "unnamed.parquet")
    words = ("--videos", str(tmp_path / "unnamed.parquet"), "--run", str(tmp_path / "new"))
    complains("finetune", *words, "--set", "model.classes=3", status=2, message="has label 3; model.classes is 3")


def test_a_list_with_a_missing_file_is_refused_before_any_work(
    catalog: Path, tmp_path: Path, complains: Complains
) -> None:
    videos = Catalog.read(catalog)
    shutil.copytree(videos.root, tmp_path / "videos")
    first, second = videos.videos[:2]
    lines = [f"{video.path} {video.label}\n" for video in videos.videos]
    (tmp_path / "list.csv").write_text("".join(lines))
    scan = ["videos", "scan", str(tmp_path / "list.csv"), "--root", str(tmp_path / "videos")]
    assert main([*scan, "--out", str(tmp_path / "list.parquet"), "--workers", "1"]) == 0
    (tmp_path / "videos" / first.path).unlink()
    (tmp_path / "videos" / second.path).write_bytes(b"")
    words = ("--videos", str(tmp_path / "list.parquet"), "--run", str(tmp_path / "new"))
    complains("finetune", *words, status=2, message=f"2 of its 12 videos below {tmp_path / 'videos'} are not as they")
    complains("finetune", *words, status=2, message=f"{second.video_id}: it has 0 bytes now, and had {second.size}")
    assert not (tmp_path / "new").exists()
