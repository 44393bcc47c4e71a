"""The model card: true, loadable, the same on every machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml

from mvd_offline.cli.main import main
from mvd_offline.geometry import TokenGrid
from mvd_offline.models.classifier import Classifier
from mvd_offline.models.pretraining import MAEPretrainer
from mvd_offline.models.saving import save_model
from mvd_offline.models.student import Student
from mvd_offline.models.vit import Arch
from mvd_offline.recipe import dump_recipe, load_recipe

ARCH, DECODER, GRID = Arch(48, 1, 3), Arch(32, 1, 2), TokenGrid(2, 2, 2)


def a_run(folder: Path) -> Path:
    """A student with what a training leaves beside it."""
    folder.mkdir()
    recipe = dump_recipe(load_recipe("distill/vit_b_from_vit_l_k400", ["teachers.image.weights=/home/me/mae.pth"]))
    student = Student(ARCH, grid=GRID, targets={"image": 8}, decoder=DECODER)
    save_model(folder / "student.safetensors", student, recipe=recipe)
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    (folder / "identity.json").write_text(json.dumps({"store_id": "a1b2", "column_image": "c3d4"}), encoding="utf-8")
    (folder / "metrics.jsonl").write_text(
        '{"step": 7, "epoch": 0.5, "loss": 0.25, "time": {"step_seconds": 1.0}}\n', encoding="utf-8"
    )
    (folder / "evaluation.json").write_text('{"top1": 0.5, "top5": 0.75, "videos": 8}', encoding="utf-8")
    return folder / "student.safetensors"


def classifier(folder: Path) -> Path:
    folder.mkdir()
    save_model(folder / "classifier.safetensors", Classifier(ARCH, grid=GRID, classes=5))
    return folder / "classifier.safetensors"


def image_teacher(folder: Path) -> Path:
    folder.mkdir()
    save_model(folder / "mae.safetensors", MAEPretrainer(ARCH, image_size=32, patch_size=16, decoder=DECODER))
    return folder / "mae.safetensors"


def convert(source: Path, to: str, out: Path) -> str:
    assert main(["convert", str(source), "--to", to, "--out", str(out)]) == 0
    return (out / "README.md" if out.is_dir() else out.with_name(f"{out.name}.md")).read_text(encoding="utf-8")


def test_a_card_says_where_a_student_came_from_and_names_no_path_of_this_machine(tmp_path: Path) -> None:
    source = a_run(tmp_path / "run")
    text = convert(source, "safetensors", tmp_path / "out.safetensors")
    for told in (
        "`distill/vit_b_from_vit_l_k400`: ViT-B",
        "`a1b2`",
        "`c3d4`",
        "last loss | 0.25",
        "test top1 | 50.00 %",
    ):
        assert told in text, told
    assert "CC BY-NC 4.0" in text
    assert "/home/me" not in text
    assert str(tmp_path) not in text
    assert convert(source, "safetensors", tmp_path / "out.safetensors") == text


def test_a_card_that_somebody_edited_is_kept(tmp_path: Path) -> None:
    source, card = a_run(tmp_path / "run"), tmp_path / "out.safetensors.md"
    text = convert(source, "safetensors", tmp_path / "out.safetensors")
    card.write_text("mine", encoding="utf-8")

    assert convert(source, "safetensors", tmp_path / "out.safetensors") == "mine"
    assert (tmp_path / "out.safetensors.new.md").read_text(encoding="utf-8") == text


def test_averaged_weights_have_results_of_their_own(tmp_path: Path) -> None:
    source = a_run(tmp_path / "run")
    (tmp_path / "run" / "ema").mkdir()
    (tmp_path / "run" / "ema" / "evaluation.json").write_text('{"top1": 0.25, "top5": 0.75, "videos": 8}')
    averaged = source.rename(source.with_name("student_ema.safetensors"))

    text = convert(averaged, "safetensors", tmp_path / "out.safetensors")
    assert "test top1 | 25.00 %" in text
    assert "test top1 | 50.00 %" not in text


def test_a_torn_line_and_results_of_an_earlier_step_are_left_out(tmp_path: Path) -> None:
    source = a_run(tmp_path / "run")
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "ep')
    (tmp_path / "run" / "evaluation.json").write_text('{"top1": 0.5, "top5": 0.75, "videos": 8, "step": 6}')

    text = convert(source, "safetensors", tmp_path / "out.safetensors")
    assert "last loss | 0.25" in text
    assert "test top1" not in text


@pytest.mark.parametrize("name", ["smoke/finetune_vit_s_k400", "demo/mae", "finetune/vit_b_ssv2"])
def test_a_shipped_recipe_is_named_as_it_is_listed(name: str, tmp_path: Path) -> None:
    source = image_teacher(tmp_path / "run")
    (source.parent / "recipe.yaml").write_text(dump_recipe(load_recipe(name)), encoding="utf-8")
    assert f"`{name}`: " in convert(source, "hf", tmp_path / "hf")


def test_the_front_matter_is_hugging_faces(tmp_path: Path) -> None:
    text = convert(classifier(tmp_path / "c"), "hf", tmp_path / "hf")
    front = yaml.safe_load(text.split("---")[1])
    assert front["library_name"] == "transformers"
    assert (front["pipeline_tag"], front["license"]) == ("video-classification", "other")
    assert "video" in front["tags"]


@pytest.mark.parametrize(
    ("make", "to", "name"),
    [
        (a_run, "hf", "hf"),
        (a_run, "mvd", "student.pth"),
        (a_run, "safetensors", "student.safetensors"),
        (classifier, "hf", "hf"),
        (classifier, "mvd", "classifier.pth"),
        (classifier, "safetensors", "classifier.safetensors"),
        (image_teacher, "hf", "hf"),
        (image_teacher, "timm", "timm"),
        (image_teacher, "timm", "timm.safetensors"),
        (image_teacher, "safetensors", "mae.safetensors"),
    ],
)
def test_the_way_to_load_it_works(make, to: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if to == "hf":
        transformers = pytest.importorskip("transformers", reason="the extra `hf` is not installed")
        monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
        monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    source, given = make(tmp_path / "source"), []
    if to == "mvd":
        given = ["--heads", "3"]
    assert main(["convert", str(source), "--to", to, "--out", name, *given]) == 0
    card = Path(name) / "README.md" if Path(name).is_dir() else Path(f"{name}.md")
    code = card.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    found: dict[str, object] = {}
    with torch.no_grad():
        exec(code, found)
    assert "model" in found
