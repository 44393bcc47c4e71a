"""The tiny twin of every recipe runs, by the commands that its header gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mvd_offline.cli.main import main
from mvd_offline.recipe import load_distill, shipped_recipes

TWINS = [name for name in shipped_recipes() if name.startswith("smoke/")]
DISTILL = [name for name in TWINS if name.startswith("smoke/distill_")]
PRETRAIN = [name for name in TWINS if name.startswith("smoke/pretrain_")]
FINETUNE = [name for name in TWINS if name.startswith("smoke/finetune_")]


def command(*words: str | Path) -> None:
    assert main([str(word) for word in words]) == 0


def losses_of(run: Path) -> list[float]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if "loss" in record]


@pytest.fixture(scope="module")
def catalogs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Eight labelled videos to train on and four to test on."""
    folder = tmp_path_factory.mktemp("synthetic")
    small = ("--classes", "4", "--short-side", "48", "64", "--frames", "12", "24", "--workers", "1")
    command("videos", "synth", folder, "--videos-per-class", "2", "--test-videos-per-class", "1", *small)
    for side in ("train", "test"):
        command("videos", "scan", folder / side, "--out", folder / f"{side}.parquet", "--workers", "1")
    return {side: folder / f"{side}.parquet" for side in ("train", "test")}


@pytest.fixture(scope="module")
def store(catalogs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one store that all distillation twins train from."""
    folder = tmp_path_factory.mktemp("store") / "smoke"
    command("plan", DISTILL[0], "--videos", catalogs["train"], "--store", folder)
    command("extract", folder, "--workers", "1")
    return folder


def test_all_distillation_twins_share_a_store() -> None:
    first = load_distill(DISTILL[0])

    for name in DISTILL[1:]:
        recipe = load_distill(name)
        assert (recipe.view, recipe.teachers, recipe.store) == (first.view, first.teachers, first.store)


@pytest.mark.parametrize("name", DISTILL)
def test_a_distillation_twin_trains_a_student(name: str, store: Path, tmp_path: Path) -> None:
    command("distill", name, "--store", store, "--run", tmp_path)

    assert (tmp_path / "student.safetensors").is_file()
    recipe = load_distill(name)
    assert len(losses_of(tmp_path)) == 2 * (8 // recipe.optim.batch_size)


@pytest.mark.parametrize("name", PRETRAIN)
def test_a_pretraining_twin_trains_a_teacher(name: str, catalogs: dict[str, Path], tmp_path: Path) -> None:
    command("pretrain", name, "--videos", catalogs["train"], "--run", tmp_path)

    assert (tmp_path / "teacher.safetensors").is_file()
    assert len(losses_of(tmp_path)) == 4


@pytest.mark.parametrize("name", FINETUNE)
def test_a_fine_tuning_twin_trains_and_is_tested(name: str, catalogs: dict[str, Path], tmp_path: Path) -> None:
    command("finetune", name, "--set", "model.classes=4", "--videos", catalogs["train"], "--run", tmp_path)
    command("evaluate", tmp_path, "--videos", catalogs["test"])

    assert (tmp_path / "classifier.safetensors").is_file()
    assert (tmp_path / "per_class.csv").is_file()
    assert losses_of(tmp_path)


def test_a_fine_tuning_twin_starts_from_the_student_that_its_header_names(
    catalogs: dict[str, Path], store: Path, tmp_path: Path
) -> None:
    command("distill", "smoke/distill_vit_s_from_vit_b_k400", "--store", store, "--run", tmp_path / "distill")
    student = tmp_path / "distill" / "student.safetensors"
    command(
        *("finetune", "smoke/finetune_vit_s_k400", "--set", "model.classes=4", "--videos", catalogs["train"]),
        *("--init", student, "--run", tmp_path / "finetune"),
    )

    assert (tmp_path / "finetune" / "classifier.safetensors").is_file()
