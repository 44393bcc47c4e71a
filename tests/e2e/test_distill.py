"""Distillation on real, small videos: cached targets against online ones, what is refused, what stops a run."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from small_runs import fill, metrics, plan_small, run_distill, scan_videos, small_recipe, write_recipe
from torch import Tensor

from mvd_offline.distill import distill
from mvd_offline.distillation.checking import check_store
from mvd_offline.distillation.data import DistillData
from mvd_offline.distillation.task import DistillTask
from mvd_offline.errors import PixelMismatchError
from mvd_offline.models import load_student
from mvd_offline.shards import IdentityError, open_store
from mvd_offline.targets import open_targets
from mvd_offline.training.loop import batches_of
from mvd_offline.training.optim import build_optimizer, set_learning_rate
from mvd_offline.video.decode import decode
from mvd_offline.video.synthetic import encode
from mvd_offline.video.views import Plan

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

TWO_EPOCHS = {"optim.stop_after_epochs": 2}


def one_paragraph(error: str) -> str:
    (line,) = [line for line in error.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in error
    return line


# ---- cached and online -----------------------------------------------------------------------------------------------


def trajectory(targets: str, store: Path, steps: int) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Losses and gradients of each step of a run in float32, updates included."""
    recipe = small_recipe({"targets": targets, "optim.epochs": 7})
    accelerator, opened = Accelerator(), open_store(store)
    root = Path(json.loads((store / "local.json").read_text())["videos_root"])
    data = DistillData.of_store(recipe, opened, root)
    task = DistillTask(recipe, data, open_targets(recipe, opened, accelerator.device))
    optimizer = build_optimizer(task.groups(), recipe.optim, accelerator.device)
    set_learning_rate(optimizer, recipe.optim.peak_lr)
    losses: list[dict[str, Tensor]] = []
    for request, batch in islice(batches_of(task, recipe.optim, recipe.training, accelerator), 2 * steps):
        parts = task.loss(task.model, batch)
        (parts["loss"] / 2).backward()
        losses.append({name: value.detach() for name, value in parts.items()})
        if request.last_of_step:
            gradients = {n: p.grad.clone() for n, p in task.model.named_parameters() if p.grad is not None}
            yield {f"{name} {i}": value for i, part in enumerate(losses) for name, value in part.items()}, gradients
            losses = []
            optimizer.step()
            optimizer.zero_grad()


def test_cached_float32_targets_give_the_losses_and_gradients_of_online_teachers_for_20_steps(store: Path) -> None:
    cached, online = (trajectory(targets, store, 20) for targets in ("cached", "online"))

    steps = 0
    for ours, theirs in zip(cached, online, strict=True):
        for found, expected in zip(ours, theirs, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
        steps += 1
        assert len(ours[0]) == 2 * 3
        assert len(ours[1]) > 40
    assert steps == 20


@pytest.fixture(scope="module")
def in_float32(store: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Metrics of two epochs in float32, on float32 targets."""
    folder = tmp_path_factory.mktemp("float32")
    assert run_distill(write_recipe(folder / "r.yaml", TWO_EPOCHS), store, folder / "run") == 0
    return metrics(folder / "run")


@pytest.mark.parametrize("codec", ["float16", "bfloat16"])
def test_targets_of_a_smaller_codec_give_nearly_the_same_losses(
    made: Path, in_float32: list[dict[str, Any]], tmp_path: Path, codec: str
) -> None:
    changes = {**TWO_EPOCHS, "store.codec": codec}
    store = fill(plan_small(made / "catalog.parquet", tmp_path / "store", changes))
    assert run_distill(write_recipe(tmp_path / "r.yaml", changes), store, tmp_path / "run") == 0

    for ours, theirs in zip(metrics(tmp_path / "run"), in_float32, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
        assert ours["loss"] != theirs["loss"]


def test_the_loss_falls_and_the_student_can_be_loaded(store: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", {"optim.epochs": 6, "training.tensorboard": True})
    assert run_distill(recipe, store, tmp_path / "run") == 0

    lines = metrics(tmp_path / "run")
    assert sum(line["loss"] for line in lines[-3:]) < 0.9 * sum(line["loss"] for line in lines[:3])
    assert set(lines[0]) == {"step", "epoch", "lr", "loss", "loss_image", "loss_video", "grad_norm"}
    assert [line["epoch"] for line in lines[:7]] == [step / 3 for step in range(1, 8)]
    student = load_student(tmp_path / "run" / "student.safetensors")
    mask = torch.zeros(1, 8, dtype=torch.bool)
    mask[:, :6] = True
    predictions = student(torch.zeros(1, 3, 4, 32, 32), mask)
    assert {name: tuple(p.shape) for name, p in predictions.items()} == {"image": (1, 6, 192), "video": (1, 6, 192)}
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_a_teacher_of_weight_0_is_neither_read_nor_predicted(store: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", {"loss.weights": {"video": 1.0}, "optim.stop_after_epochs": 1})
    assert run_distill(recipe, store, tmp_path / "run") == 0

    assert all(line["loss"] == line["loss_video"] for line in metrics(tmp_path / "run"))
    assert load_student(tmp_path / "run" / "student.safetensors").targets == {"video": 192}


# ---- precision -------------------------------------------------------------------------------------------------------


def test_bf16_trains_on_a_cpu_and_stays_close_to_float32(
    store: Path, in_float32: list[dict[str, Any]], tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", {**TWO_EPOCHS, "training.precision": "bf16"})
    assert run_distill(recipe, store, tmp_path / "run") == 0

    for ours, theirs in zip(metrics(tmp_path / "run"), in_float32, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-2)
        assert ours["loss"] != theirs["loss"]


def test_fp16_is_refused_where_it_would_silently_be_float32(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine's GPU trains in fp16")
    recipe = write_recipe(tmp_path / "r.yaml", {"training.precision": "fp16"})

    assert run_distill(recipe, store, tmp_path / "run") == 2
    assert "training.precision is fp16, which needs a GPU" in one_paragraph(capsys.readouterr().err)


def test_a_recipe_may_compile_the_student_without_renaming_its_parameters(store: Path) -> None:
    opened = open_store(store)
    tasks = []
    for compiled in (False, True):
        recipe = small_recipe({"student.compile": compiled})
        data = DistillData.of_store(recipe, opened, store)
        tasks.append(DistillTask(recipe, data, open_targets(recipe, opened, torch.device("cpu"))))

    # Compiling itself waits for the first batch, and takes minutes on a CPU.
    assert [task.student._compiled_call_impl is not None for task in tasks] == [False, True]
    assert tasks[0].student.state_dict().keys() == tasks[1].student.state_dict().keys()


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"view.stride": 1},
        {"view.seed": 1},
        {"view.frames": 8},
        {"view.crop": "center"},
        {"view.groups": 1},
        {"teachers.video.weights": "random:vit_tiny:3"},
        {"teachers.video.heads": 6},
        {"teachers.image.precision": "bfloat16"},
        {"store.codec": "float16"},
        {"store.container": "tar"},
        {"store.rows_per_shard": 8},
        {"store.batch_rows": 4},
        {"view.seed": 1, "view.stride": 4, "store.codec": "int8", "teachers.image.heads": 1, "teachers.video.heads": 6},
    ],
    ids=lambda changes: "+".join(changes),
)
def test_a_store_that_differs_from_the_recipe_is_refused_by_every_field(
    changes: dict[str, Any], store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_distill(write_recipe(tmp_path / "r.yaml", changes), store, tmp_path / "run") == 1

    error = capsys.readouterr().err
    assert one_paragraph(error).endswith("was not made for this recipe:")
    fields = re.findall(r"^  ([\w.]+): recipe has .+, store has .+$", error, re.MULTILINE)
    renamed = {"teachers.video.weights": "teachers.video.sha256"}
    assert sorted(fields) == sorted(renamed.get(field, field) for field in changes)
    assert not (tmp_path / "run").exists()


def test_a_store_whose_coding_cost_more_than_the_recipe_allows_is_refused(made: Path, tmp_path: Path) -> None:
    changes = {"store.codec": "int8", "view.groups": 1}
    store = open_store(fill(plan_small(made / "catalog.parquet", tmp_path / "store", changes)))
    worst = float(max(store.status(name).coding["relative_error"].max() for name in store.columns))

    check_store(small_recipe({**changes, "store.max_relative_error": worst * 1.01}), store)
    with pytest.raises(IdentityError, match=rf"\n  store\.max_relative_error: recipe has 0\.\d+, store has {worst}\n"):
        check_store(small_recipe({**changes, "store.max_relative_error": worst * 0.99}), store)


def test_a_run_does_not_go_on_with_the_store_of_another_plan(
    made: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", {"optim.stop_after_epochs": 1})
    assert run_distill(recipe, store, tmp_path / "run") == 0
    shutil.copytree(made / "videos", tmp_path / "videos")
    next((tmp_path / "videos").rglob("*.mp4")).unlink()
    scan_videos(tmp_path / "videos", tmp_path / "catalog.parquet")
    other = fill(plan_small(tmp_path / "catalog.parquet", tmp_path / "store"))
    capsys.readouterr()

    assert run_distill(recipe, other, tmp_path / "run") == 1

    assert "started on other data: plan_sha256 was " in one_paragraph(capsys.readouterr().err)


def test_cached_targets_need_a_finished_store_and_online_targets_do_not(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unfinished = plan_small(made / "catalog.parquet", tmp_path / "store")

    assert run_distill(write_recipe(tmp_path / "r.yaml"), unfinished, tmp_path / "run") == 1
    assert "6 of 6 shards of column image" in one_paragraph(capsys.readouterr().err)

    online = write_recipe(tmp_path / "r.yaml", {"targets": "online", "optim.stop_after_epochs": 1})
    assert run_distill(online, unfinished, tmp_path / "run") == 0
    assert len(metrics(tmp_path / "run")) == 3


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("optim.epoch=3", "optim.epoch is no known key; did you mean epochs?"),
        ("targets=offline", "targets: "),
        ("optim.batch_size=64", "an epoch has 12 usable samples, fewer than one batch of 64"),
        ("optim.micro_batch_size=3", "no multiple of optim.micro_batch_size (3)"),
    ],
)
def test_a_recipe_that_cannot_be_ends_with_status_2(
    option: str, message: str, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_distill(write_recipe(tmp_path / "r.yaml"), store, tmp_path / "run", "--set", option) == 2

    assert message in one_paragraph(capsys.readouterr().err)


def test_a_run_folder_of_another_recipe_is_refused_by_the_dotted_field(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", {"optim.stop_after_epochs": 1})
    assert run_distill(recipe, store, tmp_path / "run") == 0

    assert run_distill(recipe, store, tmp_path / "run", "--set", "student.drop_path=0.1") == 2
    assert "started with student.drop_path = 0.3, and this recipe has 0.1" in capsys.readouterr().err


# ---- what stops a run ------------------------------------------------------------------------------------------------


def test_a_video_that_changed_since_extraction_stops_the_run_naming_view_video_and_decoders(
    made: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(made / "videos", tmp_path / "videos")
    recipe = write_recipe(tmp_path / "r.yaml", {"optim.epochs": 1, "optim.warmup_epochs": 0, "optim.batch_size": 12})
    for view in list(Plan.read(store / "plan.parquet"))[:12]:
        path = tmp_path / "videos" / view.path
        encode(path, 255 - decode(path, range(view.frames)).frames, 25)

    assert run_distill(recipe, store, tmp_path / "run", "--root", str(tmp_path / "videos")) == 1

    error = one_paragraph(capsys.readouterr().err)
    named = re.search(r"view (\d+) of video (\S+) renders to other pixels than its teachers saw", error)
    assert named is not None, error
    assert Plan.read(store / "plan.parquet")[int(named[1])].video_id == named[2]
    assert re.search(r"with decord \S+ here, [0-9a-f]{16} with decord \S+ at extraction", error)


def test_a_video_that_changed_is_found_in_a_loader_process_as_well(made: Path, store: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "videos", tmp_path / "videos")
    for path in (tmp_path / "videos").rglob("*.mp4"):
        frames = decode(path, range(10)).frames
        encode(path, 255 - frames.repeat(3, axis=0), 25)

    with pytest.raises(PixelMismatchError, match="renders to other pixels"):
        distill(
            small_recipe({"training.workers": 1}),
            store_dir=store,
            run=tmp_path / "run",
            root=tmp_path / "videos",
        )


@pytest.mark.parametrize(("stale", "trained"), [("video", "video"), ("image", "image"), ("image", "video")])
def test_the_pixels_of_the_columns_that_are_trained_on_are_compared(
    made: Path, store: Path, tmp_path: Path, stale: str, trained: str
) -> None:
    folder = Path(shutil.copytree(store, tmp_path / "store"))
    opened = open_store(folder)
    for shard in range(opened.shard_count):
        record = opened.record(stale, shard)
        payloads = {row.view_id: opened.read_coded(stale, [row.view_id])[0].tobytes() for row in record.rows}
        with opened.write_shard(stale, shard, producer=record.producer, replace=True) as writer:
            for row in record.rows:
                writer.keep(replace(row, pixels="77" * 8), payloads[row.view_id])
    opened.seal()
    weights = {"image": 0.0, "video": 0.0, trained: 1.0}
    recipe = small_recipe({"optim.epochs": 1, "optim.warmup_epochs": 0, "loss.weights": weights})

    def train() -> None:
        distill(recipe, store_dir=folder, run=tmp_path / "run", root=made / "videos")

    if stale == trained:
        with pytest.raises(PixelMismatchError, match=f"{'77' * 8} with decord"):
            train()
    else:
        train()


def test_a_loss_that_is_not_finite_stops_with_its_step_and_rows(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    absurd = {"optim.base_lr": 1e30, "optim.warmup_epochs": 0}
    assert run_distill(write_recipe(tmp_path / "r.yaml", absurd), store, tmp_path / "run") == 1

    error = one_paragraph(capsys.readouterr().err)
    found = re.search(r"the loss of step 1 is not finite .*rows of these micro-batches: ([\d, ]+)\)", error)
    assert found is not None, error
    recipe, opened = small_recipe(absurd), open_store(store)
    order = DistillData.of_store(recipe, opened, tmp_path).samples.order(0)
    assert [int(row) for row in found[1].split(", ")] == order[4:8].tolist()
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1]
