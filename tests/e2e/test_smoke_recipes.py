"""The tiny twin of every recipe runs, on what its header says that it reads."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from mvd_offline.cli.main import main
from mvd_offline.models import load_student
from mvd_offline.recipe import DistillRecipe, load_distill, recipe_header, shipped_recipes
from mvd_offline.training.order import BatchShape

TWINS = [name for name in shipped_recipes() if name.startswith("smoke/")]
DISTILL = [name for name in TWINS if name.startswith("smoke/distill_")]
PRETRAIN = [name for name in TWINS if name.startswith("smoke/pretrain_")]
FRAMES = "smoke/distill_table9_vit_b_momentum_in1k"
FINETUNE = [name for name in TWINS if name.startswith("smoke/finetune_")]


def command(*words: str | Path) -> None:
    assert main([str(word) for word in words]) == 0


def further_objectives(recipe: DistillRecipe) -> list[str]:
    return [name for name in ("pixels", "momentum") if getattr(recipe, name) is not None]


def losses_of(run: Path) -> list[float]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if "loss" in record]


@pytest.fixture(scope="module")
def catalogs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Ten labelled videos to train on and four to test on; as many images; and the ten images in a tar."""
    folder = tmp_path_factory.mktemp("synthetic")
    small = ("--classes", "2", "--short-side", "48", "64", "--frames", "12", "24", "--workers", "1")
    found = {}
    for sort, options in (("", ()), ("image_", ("--images",))):
        root = folder / f"{sort}synthetic"
        command("videos", "synth", root, "--videos-per-class", "5", "--test-videos-per-class", "2", *small, *options)
        found |= {f"{sort}{side}": root / side for side in ("train", "test")}
    found["image_tar"] = folder / "synthetic.tar"
    with tarfile.open(found["image_tar"], "w") as archive:
        archive.add(found["image_train"], ".")
    for name, source in found.items():
        command("videos", "scan", source, "--out", folder / f"{name}.parquet", "--workers", "1")
    return {name: folder / f"{name}.parquet" for name in found}


def catalog_of(name: str, side: str = "train") -> str:
    """The catalog that a twin's header makes."""
    header = " ".join(recipe_header(shipped_recipes()[name].read_text(encoding="utf-8")))
    if "scan synthetic_images.tar" in header:
        return "image_tar"
    return f"image_{side}" if "--images" in header else side


class Stores:
    """Stores for distillation twins: those of the same views share one, and each adds the columns that it needs."""

    def __init__(self, folder: Path, catalogs: dict[str, Path]) -> None:
        self._folder, self._catalogs = folder, catalogs
        self._stores: list[tuple[object, Path]] = []
        self._columns: dict[Path, set[str]] = {}

    def of(self, name: str) -> Path:
        recipe = load_distill(name)
        folder = next((folder for key, folder in self._stores if key == (recipe.view, recipe.store)), None)
        if folder is None:
            folder = self._folder / str(len(self._stores))
            self._stores.append(((recipe.view, recipe.store), folder))
        columns = {recipe.column(teacher) for teacher in recipe.teachers}
        if not folder.exists() or not columns <= self._columns[folder]:
            command("plan", name, "--videos", self._catalogs[catalog_of(name)], "--store", folder)
            if recipe.teachers:
                command("extract", folder, "--workers", "1")
            self._columns.setdefault(folder, set()).update(columns)
        return folder


@pytest.fixture(scope="module")
def stores(catalogs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Stores:
    return Stores(tmp_path_factory.mktemp("stores"), catalogs)


@pytest.fixture(scope="module")
def student_of_frames(stores: Stores, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The student of single frames that another twin starts from."""
    run = tmp_path_factory.mktemp("frames") / "run"
    command("distill", FRAMES, "--store", stores.of(FRAMES), "--run", run)
    return run / "student.safetensors"


def test_twins_of_the_released_recipes_share_a_store() -> None:
    released = [load_distill(name) for name in DISTILL if "_from_vit_" in name]

    assert len(released) == 7
    for recipe in released[1:]:
        assert (recipe.view, recipe.teachers, recipe.store) == (
            released[0].view,
            released[0].teachers,
            released[0].store,
        )


@pytest.mark.parametrize("name", DISTILL)
def test_a_distillation_twin_trains_a_student(
    name: str, stores: Stores, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    recipe = load_distill(name)
    start = []
    if recipe.student.init is not None:
        start = ["--set", f"student.init={request.getfixturevalue('student_of_frames')}"]
    command("distill", name, *start, "--store", stores.of(name), "--run", tmp_path)

    student = load_student(tmp_path / "student.safetensors")
    assert set(student.targets) == {*recipe.active_teachers, *further_objectives(recipe)}
    steps = 10 // recipe.optim.batch_size
    assert len(losses_of(tmp_path)) == 2 * steps
    if recipe.quirks.leftover_micro_batch:
        assert leftovers(recipe, steps), "the quirk that it sets needs rows after the last full batch"


def leftovers(recipe: DistillRecipe, steps: int) -> int:
    """Rows of an epoch of the ten videos whose gradients go to the next epoch's first step."""
    optim = recipe.optim
    shape = BatchShape(optim.batch_size, 1, optim.micro_batch_size, recipe.quirks.leftover_micro_batch)
    return len(shape.leftover_rows(np.arange(10), steps))


def test_a_twin_learns_from_the_leftovers_of_an_epoch(stores: Stores, tmp_path: Path) -> None:
    name = "smoke/distill_table10_vit_b_per_token_k400"
    students = []
    for leftover in ("2", "null"):
        run, quirk = tmp_path / leftover, f"quirks.leftover_micro_batch={leftover}"
        command("distill", name, "--store", stores.of(name), "--run", run, "--set", quirk)
        students.append(load_student(run / "student.safetensors").state_dict())

    on, off = students
    assert any(not torch.equal(on[key], off[key]) for key in on)


@pytest.mark.parametrize("name", PRETRAIN)
def test_a_pretraining_twin_trains_a_teacher(name: str, catalogs: dict[str, Path], tmp_path: Path) -> None:
    command("pretrain", name, "--videos", catalogs[catalog_of(name)], "--run", tmp_path)

    assert (tmp_path / "teacher.safetensors").is_file()
    assert len(losses_of(tmp_path)) == 4


def test_twins_see_images_in_folders_and_in_a_tar() -> None:
    assert {catalog_of(name) for name in PRETRAIN} == {"train", "image_train", "image_tar"}
    assert catalog_of("smoke/distill_table11_vit_b_image") == "image_train"
    assert catalog_of("smoke/finetune_vit_b_imagenet", "test") == "image_test"


@pytest.mark.parametrize("name", FINETUNE)
def test_a_fine_tuning_twin_trains_and_is_tested(name: str, catalogs: dict[str, Path], tmp_path: Path) -> None:
    train, test = (catalogs[catalog_of(name, side)] for side in ("train", "test"))
    command("finetune", name, "--set", "model.classes=2", "--videos", train, "--run", tmp_path)
    command("evaluate", tmp_path, "--videos", test)

    assert (tmp_path / "classifier.safetensors").is_file()
    assert (tmp_path / "per_class.csv").is_file()
    assert losses_of(tmp_path)


def test_a_fine_tuning_twin_starts_from_the_student_that_its_header_names(
    catalogs: dict[str, Path], stores: Stores, tmp_path: Path
) -> None:
    recipe = "smoke/distill_vit_s_from_vit_b_k400"
    command("distill", recipe, "--store", stores.of(recipe), "--run", tmp_path / "distill")
    student = tmp_path / "distill" / "student.safetensors"
    command(
        *("finetune", "smoke/finetune_vit_s_k400", "--set", "model.classes=2", "--videos", catalogs["train"]),
        *("--init", student, "--run", tmp_path / "finetune"),
    )

    assert (tmp_path / "finetune" / "classifier.safetensors").is_file()
