"""The multi-view test of a run: its answers, its files, its splits, and what it refuses."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor, nn

from mvd_offline.cli.main import main
from mvd_offline.errors import CheckpointError, MvdError, UsageError
from mvd_offline.evaluate import evaluate, evaluate_splits, evaluate_subject, subject_of_run
from mvd_offline.evaluation.forward import answer
from mvd_offline.evaluation.results import Evaluation
from mvd_offline.evaluation.subjects import Subject, load_subject
from mvd_offline.evaluation.views import ViewBatches
from mvd_offline.finetune import CLASSES_FILE, CLASSIFIER_FILE, EMA_FILE
from mvd_offline.models.classifier import build_classifier
from mvd_offline.models.inputs import normalize
from mvd_offline.models.loading import load_classifier
from mvd_offline.models.saving import save_model
from mvd_offline.recipe import (
    ClassifierSection,
    ClipSection,
    EvaluationSection,
    FinetuneRecipe,
    TrainingSection,
    dump_recipe,
)
from mvd_offline.training.run import IDENTITY_FILE, RECIPE_FILE
from mvd_offline.video.catalog import Video

CLIP = ClipSection(frames=4, stride=4, image_size=32)
VIEWS = EvaluationSection(segments=2, crops=3, batch_size=12)
CPU = Accelerator(cpu=True)
ALONE = TrainingSection(workers=0)


@pytest.fixture(autouse=True)
def _state() -> None:
    Accelerator(cpu=True)  # accelerate's state is one for all tests, and others clear it


class Brightness(nn.Module):
    """Two logits: the clip's mean and 0; counts the clips that it gets at once."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def forward(self, video: Tensor) -> Tensor:
        self.sizes.append(len(video))
        mean = video.flatten(1).mean(dim=1)
        return torch.stack([4 * mean, torch.zeros_like(mean)], dim=1)


# ---- answers -----------------------------------------------------------------------------------------------------


def test_every_view_has_its_logits(known_videos: Any) -> None:
    found = ViewBatches((known_videos.ramp,), known_videos.root, CLIP, VIEWS)
    answers = answer(Brightness(), found, 12, ALONE, CPU)
    expected = [4 * normalize(torch.from_numpy(view)[None]).mean().item() for view in found.views(0)]
    assert answers.logits[0][:, 0].tolist() == pytest.approx(expected, rel=1e-5)
    assert answers.logits[0].dtype == np.float32
    assert answers.failed == {}
    assert 0 < answers.waited < answers.seconds


def test_a_video_of_more_views_than_a_batch_is_split(known_videos: Any) -> None:
    whole, split = Brightness(), Brightness()
    section = VIEWS.model_copy(update={"batch_size": 4})
    found = ViewBatches((known_videos.disc, known_videos.ramp), known_videos.root, CLIP, section)
    answers = [answer(model, found, size, ALONE, CPU) for model, size in ((whole, 6), (split, 4))]
    assert (whole.sizes, split.sizes) == ([6, 6], [4, 2, 4, 2])
    assert [answers[0].logits[row].tolist() for row in (0, 1)] == [answers[1].logits[row].tolist() for row in (0, 1)]


# ---- a run -------------------------------------------------------------------------------------------------------


def make_run(folder: Path, classes: tuple[str, ...] = ("disc", "ramp")) -> Path:
    """What a finished fine-tuning leaves, with random weights."""
    section = ClassifierSection(width=48, depth=1, heads=3, classes=2, head_init_scale=1.0)
    recipe = FinetuneRecipe(
        kind="finetune", name="unit", clip=CLIP, model=section, evaluation=VIEWS, training={"workers": 0}
    )
    folder.mkdir()
    (folder / RECIPE_FILE).write_text(dump_recipe(recipe))
    (folder / CLASSES_FILE).write_text(json.dumps(classes))
    (folder / IDENTITY_FILE).write_text(json.dumps({"source": "of other videos"}))
    torch.manual_seed(0)
    save_model(folder / CLASSIFIER_FILE, build_classifier(section, CLIP))
    return folder


def test_a_test_writes_its_result_and_a_row_for_each_class(known_videos: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    catalog = known_videos.write_catalog(tmp_path / "c.parquet", classes=("disc", "ramp"))
    result = evaluate(run, catalog_path=catalog, accelerator=CPU)
    assert result is not None

    model = load_classifier(run / CLASSIFIER_FILE)
    right = {}
    for video in (known_videos.disc, known_videos.ramp):
        views = torch.from_numpy(ViewBatches((video,), known_videos.root, CLIP, VIEWS).views(0))
        with torch.inference_mode():
            mean = torch.stack([model(normalize(view[None]))[0].double().softmax(0) for view in views]).mean(0)
        right[video.label] = int(mean.argmax()) == video.label
    assert result.top1 == sum(right.values()) / 2
    assert (result.top5, result.videos, result.segments, result.crops) == (1.0, 2, 2, 3)
    assert json.loads((run / "evaluation.json").read_text()) == json.loads(json.dumps(result.to_json()))
    with (run / "per_class.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [(row["label"], row["name"], row["videos"], row["top1"] == "1") for row in table] == [
        ("0", "disc", "1", right[0]),
        ("1", "ramp", "1", right[1]),
    ]
    assert {row["top5_accuracy"] for row in table} == {"1.0000"}


def test_all_views_and_predictions_are_left_as_parquet_in_the_order_of_the_catalog(
    known_videos: Any, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run")
    catalog = known_videos.write_catalog(tmp_path / "c.parquet", classes=("disc", "ramp"))
    result = evaluate(run, catalog_path=catalog, accelerator=CPU)
    assert result is not None
    views = pq.read_table(run / "logits.parquet").to_pylist()
    assert [(row["video_id"], row["clip"], row["crop"]) for row in views] == [
        (name, clip, crop) for name in ("disc.mp4", "ramp.mp4") for clip in range(2) for crop in range(3)
    ]
    model = load_classifier(run / CLASSIFIER_FILE)
    clips = ViewBatches((known_videos.ramp,), known_videos.root, CLIP, VIEWS).views(0)
    with torch.inference_mode():
        expected = model(normalize(torch.from_numpy(clips)))
    np.testing.assert_allclose([row["logits"] for row in views[6:]], expected.numpy(), atol=1e-6)

    predicted = pq.read_table(run / "predictions.parquet").to_pylist()
    mean = torch.tensor([row["logits"] for row in views[6:]]).double().softmax(1).mean(0)
    assert predicted[1]["probabilities"] == pytest.approx(mean.tolist(), rel=1e-12)
    assert sum(row["answer"] == row["label"] for row in predicted) / 2 == result.top1
    with (run / "confusion.csv").open(newline="") as file:
        table = list(csv.reader(file))
    assert table[0] == ["label", "name", "disc", "ramp"]
    assert [int(table[1 + row["label"]][2 + row["answer"]]) for row in predicted] == [1, 1]
    assert (run / "confusion.png").read_bytes()[1:4] == b"PNG"


def test_the_result_says_what_it_depends_on_and_where_the_time_went(known_videos: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    catalog = known_videos.write_catalog(tmp_path / "c.parquet")
    first = evaluate(run, catalog_path=catalog, accelerator=CPU)
    assert first is not None
    assert first.timing is not None
    assert 0 < first.timing.decode_wait_share < 1
    assert first.timing.videos_per_second == pytest.approx(2 / first.timing.seconds)
    assert (first.settings["precision"], first.settings["positions"]) == ("no", "sincos_3d")
    assert Evaluation.read(run) == first
    other = evaluate(run, catalog_path=catalog, overrides=["clip.stride=2"], out=tmp_path / "other", accelerator=CPU)
    assert other is not None
    assert {name for name in first.settings if first.settings[name] != other.settings[name]} == {"clip"}
    assert Evaluation.read(run) == first


def test_the_moving_average_is_tested_beside_the_last_weights(known_videos: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with pytest.raises(UsageError, match=r"has no classifier_ema\.safetensors: its recipe has no ema section"):
        subject_of_run(run, ema=True)
    model = load_classifier(run / CLASSIFIER_FILE)
    with torch.no_grad():
        model.head.bias += torch.tensor([100.0, 0.0])
    save_model(run / EMA_FILE, model)
    catalog = known_videos.write_catalog(tmp_path / "c.parquet")
    evaluate_subject(subject_of_run(run, ema=True), catalog_path=catalog, accelerator=CPU)
    assert not (run / "evaluation.json").exists()
    assert [row["answer"] for row in pq.read_table(run / "ema" / "predictions.parquet").to_pylist()] == [0, 0]


# ---- videos that cannot be read ----------------------------------------------------------------------------------


@pytest.fixture
def own_videos(known_videos: Any, tmp_path: Path) -> Any:
    """The known videos in a folder that a test may spoil, with `cut.mp4`, which is cut off within its pixels."""
    shutil.copytree(known_videos.root, tmp_path / "videos")
    content = bytearray((known_videos.root / "disc.mp4").read_bytes())
    middle = content.index(b"mdat") + 8
    content[middle : middle + 2000] = bytes(2000)
    (tmp_path / "videos" / "cut.mp4").write_bytes(content)
    return replace(known_videos, root=tmp_path / "videos")


def broken(videos: Any, case: str) -> tuple[Video, str]:
    """A video that nobody can read, and the reason that a test must give."""
    if case == "known to the scan":
        return replace(videos.disc, video_id="bad.mp4", status="unreadable", detail="no moov"), "no moov"
    if case == "gone since":
        return replace(videos.disc, video_id="gone.mp4", path="gone.mp4"), "no such file"
    return replace(videos.disc, video_id="cut.mp4", path="cut.mp4"), "decord: "


@pytest.mark.parametrize("case", ["known to the scan", "gone since", "cut off"])
def test_unreadable_test_videos_stop_a_test_or_are_wrong_or_left_out(
    case: str, own_videos: Any, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run")
    lost, reason = broken(own_videos, case)
    catalog = own_videos.write_catalog(tmp_path / "c.parquet", own_videos.disc, own_videos.ramp, lost)
    with pytest.raises(MvdError, match=rf"^1 test video cannot be read \({lost.video_id}: {reason}.*\). A test"):
        evaluate(run, catalog_path=catalog, accelerator=CPU)
    assert not (run / "evaluation.json").exists()

    results = {
        how: evaluate(run, catalog_path=catalog, unreadables=how, out=tmp_path / how, accelerator=CPU)
        for how in ("wrong", "exclude")
    }
    whole = evaluate(run, catalog_path=own_videos.write_catalog(tmp_path / "two.parquet"), accelerator=CPU)
    for how, videos in (("wrong", 3), ("exclude", 2)):
        result = results[how]
        assert result is not None
        assert result.videos == videos
        assert [(v.video_id, v.label) for v in result.unreadable] == [(lost.video_id, 0)]
        assert result.unreadable[0].reason.startswith(reason)
        assert whole is not None
        assert result.top1 == pytest.approx(whole.top1 * 2 / videos)
        written = json.loads((tmp_path / how / "evaluation.json").read_text())
        assert (written["unreadables"], written["unreadable"][0]["video_id"]) == (how, lost.video_id)
    last_column = [line.split(",")[-1] for line in (tmp_path / "wrong" / "confusion.csv").read_text().splitlines()]
    assert last_column == ["unreadable", "1", "0"]


def test_a_list_is_looked_at_before_a_model_is(own_videos: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / CLASSIFIER_FILE).write_text("no weights at all")
    for video, error, message in (
        (broken(own_videos, "gone since")[0], MvdError, r"cannot be read \(gone\.mp4: no such file"),
        (replace(own_videos.ramp, label=2), UsageError, "has label 2; model.classes is 2, so labels are 0 to 1"),
        (replace(own_videos.ramp, label=7, status="missing"), UsageError, "has label 7; model.classes is 2"),
    ):
        catalog = own_videos.write_catalog(tmp_path / "c.parquet", own_videos.disc, video)
        with pytest.raises(error, match=message):
            evaluate(run, catalog_path=catalog, accelerator=CPU)


def test_a_file_that_changed_since_the_scan_is_no_test_video(own_videos: Any, tmp_path: Path) -> None:
    changed = replace(own_videos.ramp, size=own_videos.ramp.size + 1)
    catalog = own_videos.write_catalog(tmp_path / "c.parquet", own_videos.disc, changed)
    with pytest.raises(MvdError, match=r"ramp\.mp4: it has \d+ bytes now, and had \d+ when it was scanned"):
        evaluate(make_run(tmp_path / "run"), catalog_path=catalog, accelerator=CPU)


def test_a_test_of_nothing_readable_is_refused(own_videos: Any, tmp_path: Path) -> None:
    catalog = own_videos.write_catalog(tmp_path / "c.parquet", replace(own_videos.ramp, path="gone.mp4"))
    for how in ("wrong", "exclude"):
        with pytest.raises(UsageError, match="none of its videos can be read"):
            evaluate(make_run(tmp_path / how), catalog_path=catalog, unreadables=how, accelerator=CPU)


# ---- what is refused ---------------------------------------------------------------------------------------------


def test_weights_that_are_not_finite_give_no_result(known_videos: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    model = load_classifier(run / CLASSIFIER_FILE)
    with torch.no_grad():
        model.head.bias.fill_(torch.nan)
    save_model(run / CLASSIFIER_FILE, model)
    catalog = known_videos.write_catalog(tmp_path / "c.parquet")
    with pytest.raises(MvdError, match=r"not finite for 2 of 2 test videos, such as disc\.mp4"):
        evaluate(run, catalog_path=catalog)


def test_other_classes_than_the_runs_are_refused(known_videos: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", classes=("disc", "slope"))
    catalog = known_videos.write_catalog(tmp_path / "c.parquet", classes=("disc", "ramp"))
    with pytest.raises(UsageError, match="'ramp' stands where the training had 'slope'"):
        evaluate(run, catalog_path=catalog)


def test_a_catalog_that_does_not_fit_is_not_answered_with_another_classifier(known_videos: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    more = known_videos.write_catalog(tmp_path / "more.parquet", classes=("a", "b", "c"))
    with pytest.raises(UsageError, match=r"has 3 classes and model\.classes is 2; give a catalog of the data") as error:
        evaluate(run, catalog_path=more)
    assert "--set" not in str(error.value)


def test_a_student_is_no_classifier_and_may_be_probed(known_videos: Any, tmp_path: Path) -> None:
    catalog = known_videos.write_catalog(tmp_path / "c.parquet")
    student = Subject(OFFICIAL.with_name("student_mvd.pth"), tiny_recipe(), tmp_path / "out")
    with pytest.raises(
        CheckpointError, match=r"a mvd_student checkpoint without .*, not a classifier.*evaluate --probe`\.$"
    ):
        evaluate_subject(student, catalog_path=catalog, accelerator=CPU)


def test_one_view_is_one_segment_and_one_crop(
    known_videos: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, catalog = make_run(tmp_path / "run"), known_videos.write_catalog(tmp_path / "c.parquet")
    words = ["evaluate", str(run), "--videos", str(catalog)]
    assert main([*words, "--set", "evaluation.segments=1", "--set", "evaluation.crops=1"]) == 0
    assert "on 2 videos (1 segment x 1 crop); " in capsys.readouterr().out
    assert main(words) == 0
    assert "on 2 videos (2 segments x 3 crops); " in capsys.readouterr().out


def test_a_folder_without_a_classifier_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no classifier\.safetensors: give the run folder of"):
        evaluate(tmp_path, catalog_path=tmp_path / "c.parquet")


# ---- splits ------------------------------------------------------------------------------------------------------


def test_splits_have_a_mean_and_what_was_tested_already_is_read(known_videos: Any, tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name) for name in "ab"]
    catalogs = [
        known_videos.write_catalog(tmp_path / f"{label}.parquet", replace(known_videos.disc, label=label))
        for label in (0, 1)
    ]
    subjects = [subject_of_run(run) for run in runs]
    first = evaluate_splits(subjects, catalog_paths=catalogs, accelerator=CPU)
    assert first is not None
    # One video of one model under both labels: right under one of them.
    assert sorted(split.result.top1 for split in first.splits) == [0.0, 1.0]
    assert (first.mean["top1"], first.deviation["top1"]) == (0.5, pytest.approx(0.5**0.5))
    assert [split.read for split in first.splits] == [False, False]
    assert first.to_json()["splits"][1] == {
        "run": str(runs[1]), "videos": 1, "top1": first.splits[1].result.top1, "top5": 1.0,
        "mean_class_accuracy": first.splits[1].result.top1,
    }  # fmt: skip

    (runs[1] / "evaluation.json").unlink()
    again = evaluate_splits(subjects, catalog_paths=catalogs, accelerator=CPU)
    assert again is not None
    assert [split.read for split in again.splits] == [True, False]
    assert again.mean == first.mean
    for change in (
        {"subjects": [subject_of_run(run, ["evaluation.segments=1"]) for run in runs]},
        {"catalog_paths": [catalogs[1], catalogs[0]]},
    ):
        other = evaluate_splits(**{"subjects": subjects, "catalog_paths": catalogs, **change}, accelerator=CPU)
        assert other is not None
        assert [split.read for split in other.splits] == [False, False]


def test_splits_need_a_catalog_a_run(known_videos: Any, tmp_path: Path) -> None:
    subject = subject_of_run(make_run(tmp_path / "a"))
    catalog = known_videos.write_catalog(tmp_path / "c.parquet")
    for subjects, catalogs in (([subject, subject], [catalog, catalog]), ([subject], [catalog, catalog])):
        with pytest.raises(UsageError, match="give each run once, and as many --videos"):
            evaluate_splits(subjects, catalog_paths=catalogs, accelerator=CPU)


# ---- checkpoints -------------------------------------------------------------------------------------------------

OFFICIAL = Path(__file__).parents[1] / "reference" / "mvd_tiny" / "finetuned_mvd.pth"


def tiny_recipe(**model: Any) -> FinetuneRecipe:
    """Of the official code's tiny model, whose width tells no number of heads."""
    section = ClassifierSection(**{"width": 64, "depth": 3, "heads": 4, "classes": 6, **model})
    clip = ClipSection(frames=8, image_size=64)
    return FinetuneRecipe(kind="finetune", name="tiny", clip=clip, model=section, evaluation=VIEWS, training=ALONE)


def test_an_official_checkpoint_is_tested_by_a_recipe(known_videos: Any, tmp_path: Path) -> None:
    vectors = load_file(OFFICIAL.with_name("vectors.safetensors"))
    subject = Subject(OFFICIAL, tiny_recipe(), tmp_path / "out")
    model = load_subject(subject)
    with torch.inference_mode():
        torch.testing.assert_close(model(vectors["video"]), vectors["finetuned_logits"], rtol=1e-5, atol=1e-5)

    catalog = known_videos.write_catalog(tmp_path / "c.parquet")
    result = evaluate_subject(subject, catalog_path=catalog, accelerator=CPU)
    assert result is not None
    assert (result.videos, result.settings["positions"]) == (2, "sincos_3d")
    views = ViewBatches((known_videos.disc,), known_videos.root, subject.recipe.clip, VIEWS).views(0)
    with torch.inference_mode():
        expected = model(normalize(torch.from_numpy(views))).numpy()
    found = pq.read_table(tmp_path / "out" / "logits.parquet")["logits"].to_pylist()
    np.testing.assert_allclose(found[:6], expected, atol=1e-5)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "confusion.csv", "confusion.png", "evaluation.json", "logits.parquet", "per_class.csv", "predictions.parquet",
    ]  # fmt: skip


def test_the_positions_of_a_videomae_file_must_be_told(known_videos: Any, tmp_path: Path) -> None:
    catalog = known_videos.write_catalog(tmp_path / "c.parquet")
    logits = {}
    for positions in (None, "sincos_3d", "interleaved_1d"):
        subject = Subject(OFFICIAL, tiny_recipe(), tmp_path / str(positions), positions=positions)
        result = evaluate_subject(subject, catalog_path=catalog, accelerator=CPU)
        assert result is not None
        assert result.settings["positions"] == positions or positions is None
        logits[positions] = pq.read_table(tmp_path / str(positions) / "logits.parquet")["logits"].to_pylist()
    assert logits[None] == logits["sincos_3d"]
    assert logits[None] != logits["interleaved_1d"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 2}, r"model\.depth is 2 there and 3 in the weights.*--set model\.depth=3"),
        ({"width": 80, "heads": 4}, r"model\.width is 80 there and 64 in the weights"),
        (
            {"depth": 2, "width": 80},
            r"model\.width is 80 there and 64 in the weights; model\.depth is 2 there and 3 .*"
            r"or --set model\.width=64 --set model\.depth=3\.",
        ),
        ({"classes": 2}, r"model\.classes is 2 there and 6 in the weights"),
        ({"heads": 6, "width": 96}, r"heads=6 does not divide the width 64"),
    ],
)
def test_a_checkpoint_of_another_size_than_the_recipes_is_refused(
    change: dict[str, int], message: str, known_videos: Any, tmp_path: Path
) -> None:
    catalog = known_videos.write_catalog(tmp_path / "c.parquet")
    subject = Subject(OFFICIAL, tiny_recipe(**change), tmp_path / "out")
    with pytest.raises(CheckpointError, match=message):
        evaluate_subject(subject, catalog_path=catalog, accelerator=CPU)
    assert not (tmp_path / "out").exists()
