"""`mvd-offline evaluate` as users run it: two processes, splits, ensembles, official files, lists, mistakes."""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from small_runs import make_videos, once, run_side_by_side

from mvd_offline.cli.main import main
from mvd_offline.finetune import CLASSES_FILE, CLASSIFIER_FILE
from mvd_offline.models.classifier import build_classifier
from mvd_offline.models.saving import save_model
from mvd_offline.recipe import dump_recipe, load_finetune
from mvd_offline.training.run import IDENTITY_FILE, RECIPE_FILE
from mvd_offline.video.catalog import Catalog
from mvd_offline.video.lists import list_videos

# 6 views a video and batches of at most 6: a batch a video.
RECIPE: dict[str, Any] = {
    "kind": "finetune",
    "name": "small",
    "clip": {"frames": 4, "stride": 2, "image_size": 32},
    "model": {"width": 48, "depth": 1, "heads": 3, "classes": 4, "head_init_scale": 1.0},
    "training": {"workers": 0},
    "evaluation": {"segments": 2, "crops": 3, "batch_size": 6},
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once(tmp_path_factory, "videos", make_videos)


def make_run(folder: Path, seed: int = 0, classes: tuple[str, ...] = ()) -> Path:
    """What a finished fine-tuning leaves, with random weights."""
    recipe = load_finetune(RECIPE)
    folder.mkdir(parents=True)
    (folder / RECIPE_FILE).write_text(dump_recipe(recipe))
    (folder / CLASSES_FILE).write_text(json.dumps(classes))
    (folder / IDENTITY_FILE).write_text(json.dumps({"source": "of other videos"}))
    torch.manual_seed(seed)
    save_model(folder / CLASSIFIER_FILE, build_classifier(recipe.model, recipe.clip))
    return folder


def evaluate(*words: str | Path) -> int:
    return main(["evaluate", *map(str, words)])


def result_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "evaluation.json").read_text())


def some_of(catalog: Path, count: int, out: Path) -> Path:
    whole = Catalog.read(catalog)
    Catalog(whole.videos[:count], whole.root, whole.classes).write(out)
    return out


# ---- processes ---------------------------------------------------------------------------------------------------


def test_two_processes_leave_byte_for_byte_what_one_leaves(made: Path, tmp_path: Path) -> None:
    """Seven videos, one of them gone, and one video alone, which leaves the second process without work."""
    videos = tmp_path / "videos"
    shutil.copytree(made / "videos", videos)
    whole = Catalog.read(made / "catalog.parquet")
    Catalog(whole.videos[:7], videos, whole.classes).write(tmp_path / "seven.parquet")
    Catalog(whole.videos[7:8], videos, whole.classes).write(tmp_path / "one.parquet")
    (videos / whole.videos[2].path).unlink()
    run_folder = make_run(tmp_path / "run", classes=whole.classes)
    tests = {
        name: ["evaluate", str(run_folder), "--videos", str(tmp_path / f"{catalog}.parquet"), "--unreadable", how]
        for name, catalog, how in (
            ("wrong", "seven", "wrong"),
            ("left out", "seven", "exclude"),
            ("one", "one", "error"),
        )
    }
    # One script for all: starting two processes takes longer than what they do.
    script = tmp_path / "tests.py"
    lines = [f"assert main({[*words, '--out', str(tmp_path / 'two' / name)]}) == 0\n" for name, words in tests.items()]
    # Loader processes change nothing either.
    lines[0] = lines[0].replace("]) == 0", ", '--set', 'training.workers=1']) == 0")
    script.write_text("from mvd_offline.cli.main import main\n" + "".join(lines))
    printed = run_side_by_side(2, [sys.executable, str(script)], tmp_path / "log")
    assert printed.count("top-1 ") == 3, "one process prints"
    assert " of 2 processes, " in printed

    for name, words in tests.items():
        assert main([*words, "--out", str(tmp_path / "alone" / name)]) == 0
        alone, two = (files_of(tmp_path / launch / name) for launch in ("alone", "two"))
        assert len(alone) == 6
        assert two == alone
    assert not result_of(tmp_path / "two" / "one")["on_training_videos"]
    counted = [result_of(tmp_path / "two" / name)["videos"] for name in tests]
    assert counted == [7, 6, 1]
    assert [row["reason"] for row in result_of(tmp_path / "two" / "wrong")["unreadable"]] == ["no such file"]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---- one run, several runs, ensembles ----------------------------------------------------------------------------


def test_what_is_printed(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, catalog = make_run(tmp_path / "run"), made / "catalog.parquet"
    assert evaluate(folder, "--videos", catalog) == 0
    printed, result = capsys.readouterr().out, result_of(folder)
    assert printed.startswith(
        f"top-1 {100 * result['top1']:.2f} %, top-5 100.00 % on 12 videos (2 segments x 3 crops); "
        f"mean class accuracy {100 * result['mean_class_accuracy']:.2f} %\n"
    )
    assert re.search(r"\d videos/s, \d+ % of it waiting for decoding", printed)
    for name in ("per_class.csv", "confusion.png", "confusion.csv", "predictions.parquet", "logits.parquet"):
        assert name in printed
        assert (folder / name).is_file()


def test_other_views_are_a_setting_and_go_elsewhere(made: Path, tmp_path: Path) -> None:
    folder, catalog = make_run(tmp_path / "run"), made / "catalog.parquet"
    for segments, crops in ((1, 1), (3, 2)):
        views = ["--set", f"evaluation.segments={segments}", "--set", f"evaluation.crops={crops}"]
        assert evaluate(folder, "--videos", catalog, *views, "--out", tmp_path / "out") == 0
        assert pq.read_metadata(tmp_path / "out" / "logits.parquet").num_rows == 12 * segments * crops
    assert not (folder / "evaluation.json").exists()


def test_several_runs_give_the_mean_over_splits(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [make_run(tmp_path / f"split{seed}", seed) for seed in range(3)]
    lists = [some_of(made / "catalog.parquet", 12 - seed, tmp_path / f"test{seed}.parquet") for seed in range(3)]
    words = [*runs, *(word for path in lists for word in ("--videos", path))]
    assert evaluate(*words, "--out", tmp_path / "splits") == 0
    printed = capsys.readouterr().out
    values = [result_of(folder)["top1"] for folder in runs]
    assert [result_of(folder)["videos"] for folder in runs] == [12, 11, 10]
    assert re.search(rf"mean +{100 * sum(values) / 3:.2f} +100.00", printed)
    assert "was there" not in printed
    summary = json.loads((tmp_path / "splits" / "splits.json").read_text())
    assert summary["mean"]["top1"] == pytest.approx(sum(values) / 3)
    assert [split["top1"] for split in summary["splits"]] == values

    assert evaluate(*words) == 0
    assert capsys.readouterr().out.count("was there") == 3
    assert evaluate(*words, "--json") == 0
    assert json.loads(capsys.readouterr().out) == summary


def test_an_ensemble_of_two_tests(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [make_run(tmp_path / f"run{seed}", seed) for seed in range(2)]
    for folder in runs:
        assert evaluate(folder, "--videos", made / "catalog.parquet") == 0
    capsys.readouterr()
    assert evaluate("--ensemble", runs[0] / "logits.parquet", runs[1], "--out", tmp_path / "both") == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith(f"{runs[0] / 'logits.parquet'}: top-1 {100 * result_of(runs[0])['top1']:.2f} %")

    mean = torch.zeros(12, 4, dtype=torch.float64)
    for folder in runs:
        table = pq.read_table(folder / "predictions.parquet")
        mean += torch.tensor(table["probabilities"].to_pylist()) / 2
    right = (mean.argmax(1) == torch.tensor(table["label"].to_pylist())).double().mean().item()
    assert printed[2].startswith(f"ensemble of 2: top-1 {100 * right:.2f} %, top-5 100.00 % on 12 videos")
    assert sorted(files_of(tmp_path / "both")) == [
        "confusion.csv", "confusion.png", "ensemble.json", "per_class.csv", "predictions.parquet",
    ]  # fmt: skip

    assert evaluate("--ensemble", *runs, "--out", runs[0]) == 2
    assert "holds a test (evaluation.json), whose tables an ensemble's would replace" in capsys.readouterr().err
    assert evaluate("--ensemble", runs[0] / "logits.parquet", runs[1], "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ensemble"]["top1"] == right
    assert json.loads((tmp_path / "both" / "ensemble.json").read_text()) == found


# ---- official files and lists ------------------------------------------------------------------------------------

OFFICIAL = Path(__file__).parents[1] / "reference" / "mvd_tiny" / "finetuned_mvd.pth"


def test_an_official_file_is_tested_by_a_list_as_mvd_writes_it(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Paths with blanks, brackets and dots, one name in two folders, two blanks before the label."""
    names = ("making tea/a [1].b.c.mp4", "x/clip.v1.mp4", "y/clip.v1.mp4", "y/clip.v2.mp4")
    sources = sorted((made / "videos").rglob("*.mp4"))[: len(names)]
    for name, source in zip(names, sources, strict=True):
        (tmp_path / "k400" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, tmp_path / "k400" / name)
    test_list = tmp_path / "k400" / "test.csv"
    test_list.write_text("".join(f"{name}  {label}\n" for label, name in enumerate(names)))
    assert main(["videos", "scan", str(test_list), "--out", str(tmp_path / "c.parquet"), "--workers", "1"]) == 0

    recipe = tmp_path / "tiny.yaml"
    clip, model = {"frames": 8, "image_size": 64}, {"width": 64, "depth": 3, "heads": 4, "classes": 6}
    recipe.write_text(yaml.safe_dump({**RECIPE, "clip": clip, "model": model}))
    words = ["--checkpoint", OFFICIAL, "--recipe", recipe, "--videos", tmp_path / "c.parquet"]
    assert evaluate(*words, "--out", tmp_path / "out") == 0
    assert "positions: sincos_3d; a file of VideoMAE's" in capsys.readouterr().out
    rows = pq.read_table(tmp_path / "out" / "predictions.parquet").to_pylist()
    assert [(row["video_id"], row["label"]) for row in rows] == [(name, label) for label, name in enumerate(names)]
    assert evaluate(*words, "--out", tmp_path / "mae", "--positions", "interleaved_1d") == 0
    assert "positions:" not in capsys.readouterr().out
    assert result_of(tmp_path / "mae")["settings"]["positions"] == "interleaved_1d"


def test_the_test_list_of_a_split_is_what_is_tested(made: Path, tmp_path: Path) -> None:
    """UCF101 and HMDB51 as they are published: train and test lists side by side."""
    root = made / "videos"
    classes = sorted(folder.name for folder in root.iterdir())
    ucf, hmdb = tmp_path / "ucf", tmp_path / "hmdb"
    ucf.mkdir()
    hmdb.mkdir()
    (ucf / "classInd.txt").write_text("".join(f"{k} {name}\n" for k, name in enumerate(classes, start=1)))
    files = {name: sorted(path.name for path in (root / name).iterdir()) for name in classes}
    (ucf / "testlist02.txt").write_text("".join(f"{name}/{files[name][2]}\n" for name in classes))
    for name in classes:
        lines = [f"{file} {use} \n" for file, use in zip(files[name], (0, 1, 2), strict=True)]
        (hmdb / f"{name}_test_split2.txt").write_text("".join(lines))
    expected = [(f"{name}/{files[name][2]}", label) for label, name in enumerate(classes)]
    folder = make_run(tmp_path / "run", classes=tuple(classes))
    known = Catalog.read(made / "catalog.parquet").by_id
    for name, source in (("ucf", ucf / "testlist02.txt"), ("hmdb", hmdb)):
        listing = list_videos(source, root, split=2, subset="test")
        videos = tuple(replace(known[video.path], label=video.label) for video in listing.videos)
        Catalog(videos, root, listing.classes).write(tmp_path / f"{name}.parquet")
        assert evaluate(folder, "--videos", tmp_path / f"{name}.parquet", "--out", tmp_path / name) == 0
        rows = pq.read_table(tmp_path / name / "predictions.parquet").to_pylist()
        assert [(row["video_id"], row["label"]) for row in rows] == expected


# ---- mistakes ----------------------------------------------------------------------------------------------------


def test_mistakes_are_one_paragraph(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, catalog = make_run(tmp_path / "run"), made / "catalog.parquet"
    videos, official = ("--videos", catalog), ("--checkpoint", OFFICIAL)
    small = folder / RECIPE_FILE
    for status, message, words in (
        (2, "give either a RUN", videos),
        (2, "give either a RUN", (folder, *official, *videos)),
        (2, "needs one --videos, the catalog of its test videos; 0 were given", (folder,)),
        (2, "needs --recipe, which says its model", (*official, *videos)),
        (2, "and --out, the folder of the results", (*official, "--recipe", small, *videos)),
        (2, "--recipe cannot go with a RUN", (folder, "--recipe", small, *videos)),
        (2, "has no classifier_ema.safetensors", (folder, "--ema", *videos)),
        (2, "--videos cannot go with --ensemble", ("--ensemble", folder, folder, *videos)),
        (2, "--unreadable cannot go with --ensemble", ("--ensemble", folder, folder, "--unreadable", "wrong")),
        (2, "at least two members", ("--ensemble", folder)),
        (2, "give each run once, and as many --videos", (folder, tmp_path / "run", *videos)),
        (1, "model.width is 48 there and 64", (*official, "--recipe", small, *videos, "--out", tmp_path / "o",
                                               "--set", "model.heads=4")),
        (1, "none: no such file or folder", ("--checkpoint", tmp_path / "none", "--recipe", small, *videos,
                                             "--out", tmp_path / "o")),
        (2, "evaluation.crops: input should be greater than or equal to 1", (folder, *videos, "--set",
                                                                             "evaluation.crops=0")),
        (2, "'skip' is not one of", (folder, *videos, "--unreadable", "skip")),
    ):  # fmt: skip
        assert evaluate(*words) == status, message
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert "this is a bug" not in error
    assert not (tmp_path / "o").exists()
