"""`analyze similarity|features|predictions|gradients` through the command line, on a small store and small models."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import fill, plan_small, run_distill, write_recipe

from mvd_offline.analysis.similarity import cross_frame_cosines
from mvd_offline.cli.main import main
from mvd_offline.geometry import TokenGrid
from mvd_offline.models import load_student
from mvd_offline.models.inputs import normalize
from mvd_offline.randomness import KeyedStream
from mvd_offline.recipe import load_distill
from mvd_offline.shards.store import open_store
from mvd_offline.sheet import CELL, GAP, LABEL, MARGIN
from mvd_offline.video.masking import draw_mask
from mvd_offline.video.views import Plan, render

GRID = TokenGrid(2, 2, 2)


def analyse(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, object]:
    """The JSON of a command that must succeed."""
    assert main(["analyze", *map(str, words), "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def test_a_stores_teachers_are_compared_without_running_them(store: Path, tmp_path: Path, capsys) -> None:
    found = analyse(capsys, "similarity", "--store", store, "--clips", 5, "-o", tmp_path / "out")

    opened = open_store(store)
    assert found["clips"] == 5
    assert found["models"].keys() == {"image", "video"}
    with (tmp_path / "out" / "similarity.csv").open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 2 * 2 * 4
    every = analyse(capsys, "similarity", "--store", store, "--clips", 1000, "-o", tmp_path / "all")
    rows = opened.read(opened.ok_rows(), ["video"])["video"]
    wanted = np.mean([cross_frame_cosines(row, GRID)["per_token"] for row in rows], axis=0)
    np.testing.assert_allclose(every["models"]["video"]["per_token"]["mean"], wanted, atol=1e-9)
    with Image.open(every["picture"]) as picture:
        assert picture.format == "PNG"


def test_a_teacher_that_runs_gives_what_the_store_holds_of_it(store: Path, tmp_path: Path, capsys) -> None:
    # `random:` means a video teacher; that of the store has seed 2.
    found = analyse(
        capsys, "similarity", "--store", store, "--model", "again=random:vit_tiny:2", "--clips", 3, "-o", tmp_path
    )

    models = found["models"]
    np.testing.assert_allclose(
        models["again"]["flattened"]["mean"], models["video"]["flattened"]["mean"], rtol=0, atol=1e-5
    )
    assert models["again"]["per_token"]["other_slices"]["mean"] != models["image"]["per_token"]["other_slices"]["mean"]


def test_videos_of_a_catalog_are_compared_too(made: Path, tmp_path: Path, capsys) -> None:
    words = ["--videos", made / "catalog.parquet", "--model", "a=random:vit_tiny:1", "--image-size", 32, "--frames", 6]
    found = analyse(capsys, "similarity", *words, "--stride", 1, "--clips", 2, "-o", tmp_path)

    assert (found["clips"], found["repeating"]) == (2, 0)
    assert np.shape(found["models"]["a"]["per_token"]["mean"]) == (3, 3)


def test_a_clip_in_which_nothing_moves_tells_what_places_do(made: Path, tmp_path: Path, capsys) -> None:
    words = ["--videos", made / "catalog.parquet", "--model", "a=random:vit_tiny:1", "--image-size", 32, "--still"]
    found = analyse(capsys, "similarity", *words, "--frames", 4, "--stride", 20, "--clips", 3, "-o", tmp_path)

    moving, still = (found["models"][name]["per_token"]["other_slices"]["mean"] for name in ("a", "a, still"))
    # The videos are shorter than these clips.
    assert found["repeating"] == 3
    assert moving < still < 1


def test_views_of_videos_that_are_gone_are_left_out_one_by_one(made: Path, store: Path, tmp_path: Path, capsys) -> None:
    # The store has two views of each of twelve videos.
    shutil.copytree(made / "videos", tmp_path / "videos")
    videos = sorted((tmp_path / "videos").rglob("*.mp4"))
    words = ["similarity", "--store", store, "--root", tmp_path / "videos", "--model", "a=random:vit_tiny:1"]
    words += ["--clips", 1000, "-o", tmp_path / "out"]
    for video in videos[:2]:
        video.unlink()
    found = analyse(capsys, *words)

    assert (found["clips"], len(found["unread"])) == (20, 2)
    for video in videos[2:]:
        video.unlink()
    assert main(["analyze", *map(str, words)]) == 2
    said = capsys.readouterr().err
    assert "none of the 24 clips that were drawn can be read, of 12 videos; one of them is" in said
    assert "no such file. Put the videos back" in said


def test_names_are_shown_as_they_are_written(made: Path, tmp_path: Path, capsys) -> None:
    # Dollar signs would be a formula in a figure; brackets, and a word between colons, mark a table's text.
    catalog = Path(shutil.copy(made / "catalog.parquet", tmp_path / "x[b]$1_$:x:.parquet"))
    words = ["similarity", "--videos", catalog, "--model", "[old]x[/b]$2^$=random:vit_tiny:1", "--image-size", "32"]

    assert main(["analyze", *map(str, words), "--frames", "4", "--clips", "1", "-o", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert catalog.name in said
    assert "│ [old]x[/b]$2^$ │" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "image=random:vit_tiny"], "has a column of that name"),
        (["--frames", "8"], "--frames and --stride go with --videos"),
        (["--model", "x"], "write it as NAME=PATH"),
    ],
)
def test_similarity_says_what_cannot_be(words: list[str], said: str, store: Path, tmp_path: Path, capsys) -> None:
    assert main(["analyze", "similarity", "--store", str(store), *words, "-o", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err


# ---- gradients -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def in_int8(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small store's views and teachers, in codec int8."""
    return fill(
        plan_small(made / "catalog.parquet", tmp_path_factory.mktemp("int8") / "store", {"store.codec": "int8"})
    )


def test_a_codecs_error_moves_loss_and_gradient_a_little(
    made: Path, store: Path, in_int8: Path, tmp_path: Path, capsys
) -> None:
    recipe = write_recipe(tmp_path / "r.yaml")
    found = analyse(capsys, "gradients", recipe, "--store", store, "--against", in_int8, "--clips", 4)

    assert found["clips"] == 4
    assert [one["column"] for one in found["effects"]] == ["image", "video"]
    for one in found["effects"]:
        assert one["codec"] == "int8"
        assert 3 < one["smaller"] < 4  # a scale a token, and exponents a channel, of 8 tokens
        assert 0 < one["relative_error"] < 0.02
        assert 0 < abs(one["effect"]["change"]) < 0.02
        assert 0.99 < one["effect"]["gradient_cosine"] < 1


def test_the_same_targets_move_nothing(store: Path, tmp_path: Path, capsys) -> None:
    recipe = write_recipe(tmp_path / "r.yaml")
    found = analyse(capsys, "gradients", recipe, "--store", store, "--against", store, "--clips", 2)

    assert all(one["effect"]["change"] == 0 and one["relative_error"] == 0 for one in found["effects"])


def test_targets_of_another_teacher_are_not_compared(store: Path, tmp_path: Path, capsys) -> None:
    recipe = write_recipe(tmp_path / "r.yaml")

    assert main(["analyze", "gradients", str(recipe), "--store", str(store), "--column", "image=video"]) == 1
    said = capsys.readouterr().err
    assert "not the same targets in two codecs" in said
    assert "kind: 'image'" in said or "kind" in said
    assert main(["analyze", "gradients", str(recipe), "--store", str(store)]) == 2
    assert "--against STORE and --column NAME=OTHER" in capsys.readouterr().err


# ---- predictions -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def student_run(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student")
    assert run_distill(write_recipe(folder / "r.yaml"), store, folder / "run") == 0
    return folder / "run"


def test_predictions_are_held_against_the_stores_targets(
    student_run: Path, store: Path, tmp_path: Path, capsys
) -> None:
    capsys.readouterr()
    found = analyse(capsys, "predictions", student_run, "--store", store, "-o", tmp_path, "--view", 1, "--view", 13)

    assert [one["view_id"] for one in found] == [1, 13]
    recipe = load_distill(student_run / "recipe.yaml")
    mask = draw_mask("tube", GRID, 0.75, KeyedStream("mask", recipe.training.seed, 0, 13))
    clip = render(Plan.read(store / "plan.parquet")[13], store.parent / "videos", 32).pixels
    student = load_student(student_run / "student.safetensors")
    with torch.no_grad():
        prediction = student(normalize(torch.from_numpy(clip)[None]), torch.from_numpy(mask)[None])["video"][0]
    target = torch.from_numpy(open_store(store).read([13], ["video"])["video"][0][mask])
    if recipe.loss.normalize_targets:
        target = torch.nn.functional.layer_norm(target, target.shape[-1:], eps=1e-6)
    wanted = float((1 - torch.nn.functional.cosine_similarity(prediction, target, dim=1)).mean())
    errors = found[1]["cosine_error"]["video"]
    assert errors["after training"] == pytest.approx(wanted, abs=1e-5)
    assert errors["after training"] < errors["before training"]
    assert found[1]["visible"] == (~mask).sum()
    with Image.open(tmp_path / "view-13.png") as picture:
        # Clip, what is seen, and two targets before and after; two slices.
        assert picture.size == (2 * MARGIN + LABEL + 2 * CELL + GAP, picture.height)
        assert picture.height > 6 * CELL


@pytest.mark.parametrize(
    ("changes", "targets"),
    [
        ({"mask.kind": "none"}, {"image", "video"}),
        ({"mask.decoded": 0.5, "pixels": {}}, {"image", "video", "pixels"}),
        ({"targets": "online", "momentum": {}}, {"image", "video"}),
    ],
)
def test_predictions_of_other_students(changes: dict, targets: set[str], store: Path, tmp_path: Path, capsys) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", {**changes, "optim.epochs": 1, "optim.warmup_epochs": 0})
    assert run_distill(recipe, store, tmp_path / "run") == 0
    capsys.readouterr()

    (found,) = analyse(capsys, "predictions", tmp_path / "run", "--store", store, "-o", tmp_path / "out", "--clips", 1)

    assert found["cosine_error"].keys() == targets
    assert all(np.isfinite(list(errors.values())).all() for errors in found["cosine_error"].values())


def test_predictions_need_a_finished_run_and_its_store(student_run: Path, store: Path, tmp_path: Path, capsys) -> None:
    words = ["--store", str(store), "-o", str(tmp_path)]
    assert main(["analyze", "predictions", str(tmp_path), *words]) == 2
    assert "has no recipe.yaml: give the folder of a run" in capsys.readouterr().err
    shutil.copy(student_run / "recipe.yaml", tmp_path)
    assert main(["analyze", "predictions", str(tmp_path), *words]) == 2
    assert "has no student.safetensors yet" in capsys.readouterr().err
    assert main(["analyze", "predictions", str(student_run), *words, "--view", "4711"]) == 2
    assert "has no view 4711" in capsys.readouterr().err


def test_a_students_path_is_shown_as_it_is_written(student_run: Path, store: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "[old]").mkdir()
    student = shutil.copy(student_run / "student.safetensors", tmp_path / "[old]")
    words = [write_recipe(tmp_path / "r.yaml"), "--store", store, "--against", store, "--student", student]

    assert main(["analyze", "gradients", *map(str, words), "--clips", "1"]) == 0
    assert "/[old]/student" in capsys.readouterr().out


# ---- features --------------------------------------------------------------------------------------------------------


def test_features_of_a_video_become_a_film(made: Path, student_run: Path, tmp_path: Path, capsys) -> None:
    video = next(iter(sorted((made / "videos").rglob("*.mp4"))))
    capsys.readouterr()
    found = analyse(
        capsys, "features", video, "--model", f"student={student_run}", "--token", "1,1,0", "-o", tmp_path / "f.webp"
    )

    assert found["models"]["student"]["grid"] == "2 x 2 x 2"
    with Image.open(tmp_path / "f.webp") as film:
        assert film.n_frames == 4 * found["clips"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--token", "1,1"], "write it as SLICE,ROW,COLUMN"),
        (["--token", "9,0,0"], "0,0,0 to 1,1,1 are allowed"),
        ([], "no model is given"),
    ],
)
def test_features_say_what_cannot_be(words: list[str], said: str, made: Path, student_run: Path, capsys) -> None:
    video = next(iter(sorted((made / "videos").rglob("*.mp4"))))
    model = ["--model", f"s={student_run}"] if words else []
    assert main(["analyze", "features", str(video), *model, *words, "-o", "f.gif"]) == 2
    assert said in capsys.readouterr().err
