"""What a run leaves for its reader: its page and its examples; and runs side by side, in a figure and in a table."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_finetune
import test_pretrain
import torch
from headless import Page, browser
from PIL import Image
from small_runs import make_videos, once, scan_videos, small_recipe
from test_report import WIDTHS, Tags

from mvd_offline.cli.main import main
from mvd_offline.compare import compare
from mvd_offline.distill import distill
from mvd_offline.examples.files import Example, read_examples, write_examples
from mvd_offline.examples.pretrain import filled
from mvd_offline.finetune import finetune
from mvd_offline.pretrain import pretrain
from mvd_offline.recipe import load_finetune
from mvd_offline.report.run_page import write_run_report

KINDS = ("distill", "mae", "videomae", "finetune")
CLASS = "<b>bold<img src=x onerror=alert(1)>"
VIDEO = '"><script>alert(2)<.mp4'


def make_runs(folder: Path, store: Path) -> None:
    """A finished run of each kind, of three steps, on videos whose names are HTML; the classifier is tested too."""
    make_videos(folder)
    videos = folder / "videos"
    first = min(path for path in videos.iterdir() if path.is_dir())
    one = min(first.glob("*.mp4"))
    one.rename(one.with_name(VIDEO))
    first.rename(videos / CLASS)
    catalog = folder / "html.parquet"
    scan_videos(videos, catalog)
    shutil.rmtree(folder / "runs", ignore_errors=True)
    recipe = load_finetune(test_finetune.RECIPE, ["optim.epochs=1"])
    finetune(recipe, catalog_path=catalog, run=folder / "runs" / "finetune")
    shutil.copytree(folder / "runs" / "finetune", folder / "untested")
    assert main(["evaluate", str(folder / "runs" / "finetune"), "--videos", str(catalog)]) == 0
    for method in test_pretrain.METHODS:
        pretrain(test_pretrain.recipe(method, epochs=1), catalog_path=catalog, run=folder / "runs" / method)
    student = folder / "runs" / "distill"
    distill(small_recipe({"optim.epochs": 1}), store_dir=store, run=student)
    probe = ["--probe", "knn", "--train", str(catalog), "--videos", str(catalog), "--workers", "1"]
    assert main(["evaluate", str(student), *probe]) == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Path:
    return once(tmp_path_factory, "run-reports", lambda made: make_runs(made, store))


@pytest.fixture(scope="module")
def runs(folder: Path) -> Path:
    return folder / "runs"


def text_of(page: Path) -> str:
    return " ".join("".join(Tags(page.read_text()).text).split())


def examples_of(run: Path) -> tuple[Example, ...]:
    found = read_examples(run)
    assert found is not None
    return found.examples


def strip(run: Path, example: Example, name: str) -> np.ndarray[Any, Any]:
    """Pixels (cells, H, W, 3) of a film."""
    (film,) = (film for film in example.films if film.name == name)
    pixels = np.asarray(Image.open(run / "examples" / film.file))
    return np.stack(np.split(pixels, film.cells, axis=1))


# ---- the page ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_ends_with_a_page_that_says_what_it_was(runs: Path, kind: str) -> None:
    text = text_of(runs / kind / "report.html")

    assert "finished" in text
    assert "1 of 1 epochs" in text
    assert "recipe small, on 1 × cpu" in text
    assert "optim.epochs" in text  # differs from what ships
    for value in json.loads((runs / kind / "identity.json").read_text()).values():
        assert value in text
    for section in (
        "Loss",
        "Learning rate",
        "Gradient norm",
        "Throughput",
        "Examples",
        "Where the time of a step went",
    ):
        assert section in text


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_holds_no_markup_of_the_data_and_points_at_nothing(runs: Path, kind: str) -> None:
    html = (runs / kind / "report.html").read_text()
    found = Tags(html)
    targets = [value or "" for _, attrs in found.tags for name, value in attrs.items() if name in ("src", "href")]
    (policy,) = (attrs["content"] or "" for tag, attrs in found.tags if "http-equiv" in attrs)

    assert [tag for tag, _ in found.tags].count("script") == 1
    assert not [target for target in targets if not target.startswith(("data:image/png;base64,", "#"))]
    assert not [name for _, attrs in found.tags for name in attrs if name.startswith("on") or name == "style"]
    for tag in ("script", "style"):
        (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, flags=re.S)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}';" in policy


def test_names_that_are_html_are_shown_as_text(runs: Path) -> None:
    text = "".join(Tags((runs / "finetune" / "report.html").read_text()).text)

    assert CLASS in text
    (images,) = examples_of(runs / "mae")
    assert CLASS in images.note
    assert images.note in "".join(Tags((runs / "mae" / "report.html").read_text()).text)


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_is_made_of_the_folder_alone(runs: Path, kind: str, tmp_path: Path) -> None:
    out = tmp_path / "again.html"
    assert main(["analyze", "report", str(runs / kind), "-o", str(out)]) == 0
    assert out.read_bytes() == (runs / kind / "report.html").read_bytes()


def test_a_test_puts_its_result_on_the_page(folder: Path, runs: Path) -> None:
    result = json.loads((runs / "finetune" / "evaluation.json").read_text())
    before, after = text_of(folder / "untested" / "report.html"), text_of(runs / "finetune" / "report.html")

    assert "Test of the weights at the end" not in before
    assert f"mvd-offline evaluate {runs / 'finetune'} --videos TEST" in before
    assert f"top-1{100 * result['top1']:.2f} %" in after
    assert "12 videos, 2 × 3 views of each" in after
    assert "These are the very videos that it was trained on." in after


def test_a_probe_puts_its_result_on_the_page_and_into_the_table(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads((runs / "distill" / "probe" / "probe.json").read_text())["probes"]["knn"]

    assert "Probes of what it left" in text_of(runs / "distill" / "report.html")
    assert f"knn{100 * found['top1']:.2f} %" in text_of(runs / "distill" / "report.html")
    assert main(["analyze", "compare", str(runs / "distill"), str(runs / "mae"), "--markdown"]) == 0
    assert f"| knn top-1 | {100 * found['top1']:.2f} % | - |" in capsys.readouterr().out


def test_a_run_that_was_cut_off_has_a_page_of_what_there_is(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(runs / "distill", tmp_path / "a run")
    shutil.rmtree(run / "examples")
    report = json.loads((run / "report.json").read_text())
    (run / "report.json").write_text(json.dumps({"launches": report["launches"]}))
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join([*lines[:2], lines[2][:20]]))

    assert main(["analyze", "report", str(run), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["finished"], said["step"]) == (False, 2)
    text = text_of(run / "report.html")
    assert "not finished" in text
    assert "its last line is of step 2" in text
    assert f"mvd-offline distill '{run}/recipe.yaml' --store STORE --run '{run}'" in text

    (run / "metrics.jsonl").unlink()
    assert main(["analyze", "report", str(run)]) == 0
    assert "No step was written down yet." in text_of(run / "report.html")
    assert main(["analyze", "report", str(tmp_path)]) == 2
    assert main(["analyze", "report", str(run), "-o", str(tmp_path / "no" / "page.html")]) == 2


def test_a_finished_run_that_is_called_again_keeps_its_page(folder: Path, runs: Path, tmp_path: Path) -> None:
    run = shutil.copytree(runs / "mae", tmp_path / "mae")
    before = {path: path.stat().st_mtime_ns for path in [run / "report.html", *(run / "examples").iterdir()]}
    pretrain(test_pretrain.recipe("mae", epochs=1), catalog_path=folder / "html.parquet", run=run)
    assert {path: path.stat().st_mtime_ns for path in before} == before

    (run / "report.html").unlink()
    pretrain(test_pretrain.recipe("mae", epochs=1), catalog_path=folder / "html.parquet", run=run)
    assert (run / "report.html").is_file()


def test_a_drawing_that_fails_is_said_and_fails_nothing(
    folder: Path, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(runs / "mae", tmp_path / "a run")
    shutil.rmtree(run / "examples")
    (run / "examples").touch()
    (run / "report.html").unlink()
    (run / "report.html").mkdir()
    pretrain(test_pretrain.recipe("mae", epochs=1), catalog_path=folder / "html.parquet", run=run)

    examples, page = capsys.readouterr().err.strip().splitlines()[-2:]
    assert examples.startswith(f"the example predictions of {run} are missing (")
    assert examples.endswith("To try again: run the same command again")
    assert page.startswith(f"{run / 'report.html'} could not be written (")
    assert page.endswith(f"To try again: `mvd-offline analyze report '{run}'`")


def test_examples_with_a_picture_that_is_gone_are_left_out_and_made_again(
    folder: Path, runs: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(runs / "mae", tmp_path / "mae")
    (picture, *_) = sorted((run / "examples").glob("*.png"))
    picture.unlink()

    assert main(["analyze", "report", str(run)]) == 0
    assert 'id="examples"' not in (run / "report.html").read_text()

    pretrain(test_pretrain.recipe("mae", epochs=1), catalog_path=folder / "html.parquet", run=run)
    assert picture.read_bytes() == (runs / "mae" / "examples" / picture.name).read_bytes()
    assert 'id="examples"' in (run / "report.html").read_text()


def test_a_kill_while_examples_are_replaced_leaves_no_index_without_its_pictures(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(runs / "mae", tmp_path / "mae")

    def killed(folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        write_examples(run, "", [])
    assert not (run / "examples" / "examples.json").exists()


# ---- examples ----------------------------------------------------------------------------------------------------


def test_a_classifiers_examples_are_four_clips_with_the_most_probable_classes(runs: Path) -> None:
    found = examples_of(runs / "finetune")

    assert len(found) == 4
    for example in found:
        assert strip(runs / "finetune", example, "as seen").shape == (4, 32, 32, 3)
        chances = [answer.probability for answer in example.answers]
        assert chances == sorted(chances, reverse=True)
        assert sum(chances) == pytest.approx(1.0, abs=1e-5)  # four classes in all
        (true,) = (answer.name for answer in example.answers if answer.true)
        assert example.note == f"true class: {true}"


@pytest.mark.parametrize("method", ["mae", "videomae"])
def test_what_an_autoencoder_saw_is_kept_and_the_rest_is_its_own(runs: Path, method: str) -> None:
    for example in examples_of(runs / method):
        whole, seen, completed = (
            strip(runs / method, example, name) for name in ("as it is", "what it saw", "completed")
        )
        hidden = (seen == 127).all(axis=-1) & (whole != 127).any(axis=-1)
        assert hidden.mean() == pytest.approx(0.75, abs=0.05)
        assert np.array_equal(seen[~hidden], whole[~hidden])
        assert np.abs(completed[~hidden].astype(int) - whole[~hidden]).max() <= 1
        assert np.abs(completed[hidden].astype(int) - whole[hidden]).mean() > 3


def test_a_perfect_prediction_gives_the_true_pixels_back() -> None:
    true = torch.rand(2, 5, 8, 3, generator=torch.Generator().manual_seed(0))
    masked = torch.tensor([[0, 3], [1, 2]])
    own = torch.stack([true[row, tokens] for row, tokens in enumerate(masked)])
    normalized = (own - own.mean(dim=2, keepdim=True)) / own.var(dim=2, keepdim=True).sqrt()

    assert torch.allclose(filled(true, normalized, masked, normalized=True), true, atol=1e-4)
    assert torch.equal(filled(true, own, masked, normalized=False), true)


def test_a_students_examples_show_its_error_before_and_after(runs: Path) -> None:
    for example in examples_of(runs / "distill"):
        assert [film.name for film in example.films] == [
            "clip",
            "what is seen",
            *(f"{target} {when} training" for target in ("image", "video") for when in ("before", "after")),
        ]
        assert {film.cells for film in example.films} == {2}


# ---- in a browser ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("width", "dark"), [(1280, True), (390, False)])
def test_the_page_opens_without_a_word_and_fits_the_screen(
    tab: Page, runs: Path, kind: str, width: int, dark: bool
) -> None:
    assert tab.open(runs / kind / "report.html", width=width, dark=dark) == []
    assert tab.evaluate(WIDTHS) == [width] * 3
    assert tab.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")


def test_a_clip_plays_and_the_recipe_unfolds_on_a_phone(tab: Page, runs: Path) -> None:
    tab.open(runs / "videomae" / "report.html", width=390)
    tab.evaluate("document.querySelector('.exhibit button').click()")
    shown = """[...document.querySelector('.exhibit').querySelectorAll('.strip img')]
        .filter(image => image.offsetParent !== null).length"""
    assert tab.evaluate(shown) == 3
    tab.evaluate("document.querySelector('summary').click()")
    assert tab.evaluate("document.querySelector('details pre').offsetHeight") > 100
    assert tab.evaluate(WIDTHS) == [390] * 3


# ---- several runs ------------------------------------------------------------------------------------------------


def test_curves_of_several_runs_are_one_figure_and_one_table(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figure, table = tmp_path / "c.png", tmp_path / "c.csv"
    words = ["analyze", "curves", str(runs / "mae"), f"mine={runs / 'distill'}", "-o", str(figure), "--csv", str(table)]
    assert main([*words, "--x", "hours", "--smooth", "0.5", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)

    assert [panel["title"] for panel in said["panels"]][:2] == ["mae: loss", "distill: loss"]
    assert next(panel["runs"] for panel in said["panels"] if panel["name"] == "lr") == ["mae", "mine"]
    assert Image.open(figure).width > 1000
    rows = list(csv.DictReader(table.open()))
    assert [(row["run"], row["step"]) for row in rows] == [(run, str(n)) for run in ("mae", "mine") for n in (1, 2, 3)]
    last = json.loads((runs / "distill" / "metrics.jsonl").read_text().splitlines()[-1])
    assert float(rows[-1]["loss_video"]) == last["loss_video"] == said["last"]["mine"]["loss_video"]
    assert rows[0]["loss_video"] == ""
    assert float(rows[-1]["epoch"]) == 1.0


def test_a_name_with_dollar_signs_is_no_formula(runs: Path, tmp_path: Path) -> None:
    run = shutil.copytree(runs / "mae", tmp_path / "x$1_$", ignore=shutil.ignore_patterns("checkpoints"))

    assert main(["analyze", "curves", str(run), "-o", str(tmp_path / "c.png")]) == 0
    assert (tmp_path / "c.png").is_file()


def test_runs_of_one_name_need_names_of_their_own(
    folder: Path, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(runs / "mae", tmp_path / "other" / "mae", ignore=shutil.ignore_patterns("checkpoints"))
    two = [str(runs / "mae"), str(tmp_path / "other" / "mae"), str(runs / "videomae")]
    assert main(["analyze", "compare", *two, "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["runs"]) == ["runs/mae", "other/mae", "videomae"]
    assert main(["analyze", "compare", two[0], two[0]]) == 2
    assert "NAME=RUN" in capsys.readouterr().err
    assert main(["analyze", "curves", str(folder), "-o", str(tmp_path / "c.png")]) == 2


def test_runs_are_compared_in_what_differs_and_what_came_of_them(
    folder: Path, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    recipe = load_finetune(test_finetune.RECIPE, ["optim.epochs=1", "training.seed=5", "ema=null"])
    finetune(recipe, catalog_path=folder / "html.parquet", run=other)
    words = ["analyze", "compare", str(runs / "finetune"), str(other)]

    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    values = {(row["section"], row["name"]): row["values"] for row in found["rows"]}
    assert {name: value for (section, name), value in values.items() if section == "recipe"} == {
        "ema.decay": {"finetune": 0.9},
        "training.seed": {"finetune": 0, "other": 5},
    }
    tested = json.loads((runs / "finetune" / "evaluation.json").read_text())
    assert values["test", "top-1"] == {"finetune": tested["top1"], "other": None}
    assert values["run", "steps"] == {"finetune": 3, "other": 3}
    assert not [name for section, name in values if section == "identity"]
    assert any("trained on: finetune" in note for note in found["notes"])

    assert main([*words, "--markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["|  | finetune | other |", "| --- | --- | --- |"]
    assert "| `training.seed` | 0 | 5 |" in lines
    assert main(words) == 0
    assert re.search(r"^  training\.seed +0 +5$", capsys.readouterr().out, flags=re.M)


def test_results_of_weights_that_were_trained_on_are_left_out_and_named(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(runs / "finetune", tmp_path / "finetune", ignore=shutil.ignore_patterns("checkpoints"))
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    found = json.loads((run / "evaluation.json").read_text())
    assert found["step"] == last
    (run / "evaluation.json").write_text(json.dumps(found | {"step": last - 1}))

    write_run_report(run)
    page = text_of(run / "report.html")
    assert f"The test in this folder is of the weights after step {last - 1}; the run went on since." in page
    assert "Test of the weights at the end" not in page
    assert main(["analyze", "compare", str(run), str(runs / "finetune"), "--json"]) == 0
    compared = json.loads(capsys.readouterr().out)
    assert [row["values"] for row in compared["rows"] if (row["section"], row["name"]) == ("test", "top-1")] == [
        {name: None if name.startswith(tmp_path.name) else found["top1"] for name in compared["runs"]}
    ]
    assert [note for note in compared["notes"] if f"after step {last - 1}, since it was trained on" in note]


def test_counts_of_unread_clips_are_no_accuracy(runs: Path, tmp_path: Path) -> None:
    run = shutil.copytree(runs / "distill", tmp_path / "probed", ignore=shutil.ignore_patterns("checkpoints"))
    probe = {"step": 3, "epoch": 1.0, "probe/knn_top1": 0.5, "probe/unreadable": 3, "time": {"probe/seconds": 1.0}}
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(probe) + "\n")

    write_run_report(run)
    assert "300.00" not in (run / "report.html").read_text()
    rows = [row for row in compare({"a": run, "b": run}).rows if row.section == "last probe"]
    assert [row.name for row in rows] == ["after step", "knn top1"]


def test_runs_of_several_kinds_are_compared_as_far_as_they_go_together(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["analyze", "compare", str(runs / "distill"), str(runs / "mae"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)

    assert found["notes"][0].startswith("runs of several kinds (distill, pretrain)")
    rows = [(row["section"], row["name"], row["values"]) for row in found["rows"]]
    assert ("run", "kind", {"distill": "distill", "mae": "mae"}) in rows
    assert {name for section, name, _ in rows if section == "last line"} >= {"distill: loss", "mae: loss"}
    assert not [name for section, name, _ in rows if section == "recipe" and name.startswith("teachers")]


def test_a_page_of_tens_of_thousands_of_lines_stays_small_and_quick(runs: Path, tmp_path: Path) -> None:
    run = shutil.copytree(runs / "distill", tmp_path / "long", ignore=shutil.ignore_patterns("checkpoints", "examples"))
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    with (run / "metrics.jsonl").open("w") as file:
        for step in range(1, 20_001):
            file.write(json.dumps(line | {"step": step, "epoch": step / 3, "loss": 1 + step % 11}) + "\n")

    assert write_run_report(run).page_bytes < 250_000
    assert "each point is the mean of several lines" in text_of(run / "report.html")
