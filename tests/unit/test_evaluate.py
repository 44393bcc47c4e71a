"""The multi-view test: which views, how they are averaged, how the result is counted and written."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from mvd_offline.errors import MvdError, UsageError
from mvd_offline.evaluate import ViewBatches, _probabilities, evaluate, score
from mvd_offline.finetune import CLASSES_FILE, CLASSIFIER_FILE
from mvd_offline.models.classifier import build_classifier
from mvd_offline.models.inputs import normalize
from mvd_offline.models.loading import load_classifier
from mvd_offline.models.saving import save_model
from mvd_offline.recipe import ClassifierSection, ClipSection, EvaluationSection, FinetuneRecipe, dump_recipe
from mvd_offline.training.run import RECIPE_FILE
from mvd_offline.video.augment import multi_crop_views
from mvd_offline.video.catalog import Video
from mvd_offline.video.decode import decode

CLIP = ClipSection(frames=4, stride=4, image_size=32)
VIEWS = EvaluationSection(segments=2, crops=3, batch_size=12)


# ---- score -------------------------------------------------------------------------------------------------------


def labelled(*labels: int) -> list[Video]:
    return [
        Video(
            video_id=f"{i}/same_name.mp4", path="", label=label, label_name="", frames=1, fps=1.0, width=1, height=1,
            size=1, mtime_ns=1, sha256="", status="ok", detail="", decoder="decord",
        )
        for i, label in enumerate(labels)
    ]  # fmt: skip


def probabilities(*rows: list[float]) -> dict[int, NDArray[np.float64]]:
    return {i: np.array(row) for i, row in enumerate(rows)}


def test_top1_and_top5_by_hand() -> None:
    descending = [0.4, 0.2, 0.15, 0.1, 0.08, 0.05, 0.02]
    result = score(probabilities(*[descending] * 4), labelled(0, 4, 5, 6), list("abcdefg"), VIEWS)
    assert (result.top1, result.top5) == (1 / 4, 2 / 4)
    assert [(c.label, c.name, c.videos, c.top1, c.top5) for c in result.classes] == [
        (0, "a", 1, 1, 1),
        (4, "e", 1, 0, 1),
        (5, "f", 1, 0, 0),
        (6, "g", 1, 0, 0),
    ]


def test_a_tie_goes_to_the_lower_class() -> None:
    tied = [0.1, 0.3, 0.3, 0.3]
    assert score(probabilities(tied), labelled(1), [], VIEWS).top1 == 1.0
    assert score(probabilities(tied), labelled(2), [], VIEWS).top1 == 0.0
    six_alike = [0.15, 0.17, 0.17, 0.17, 0.17, 0.17]
    assert [score(probabilities(six_alike), labelled(k), [], VIEWS).top5 for k in (5, 0)] == [1.0, 0.0]
    seven_alike = [1 / 7] * 7
    assert [score(probabilities(seven_alike), labelled(k), [], VIEWS).top5 for k in (4, 5)] == [1.0, 0.0]


def test_fewer_than_five_classes_are_all_among_the_first_five() -> None:
    result = score(probabilities([0.9, 0.1], [0.9, 0.1]), labelled(0, 1), ["a", "b"], VIEWS)
    assert (result.top1, result.top5) == (0.5, 1.0)


def test_videos_of_the_same_file_name_are_different_videos() -> None:
    result = score(probabilities([0.9, 0.1], [0.1, 0.9], [0.9, 0.1]), labelled(0, 0, 0), [], VIEWS)
    assert result.videos == 3
    assert result.top1 == 2 / 3


# ---- views -------------------------------------------------------------------------------------------------------


def batches(known_videos: Any, *videos: Video, clip: ClipSection = CLIP, **changes: int) -> ViewBatches:
    section = VIEWS.model_copy(update=changes)
    return ViewBatches(videos or (known_videos.ramp,), known_videos.root, clip, section)


def test_dense_clips_are_spread_over_the_whole_video_at_the_exact_stride(known_videos: Any) -> None:
    views = batches(known_videos, segments=3, crops=1).views(0)
    # 54 frames: every fourth is 0, 4, ..., 52 (14 of them); clips of 4 start at entries 0, 5 and 10.
    assert [known_videos.frames_in(view) for view in views] == [[0, 4, 8, 12], [20, 24, 28, 32], [40, 44, 48, 52]]


def test_uniform_clips_take_their_half_of_every_segment(known_videos: Any) -> None:
    uniform = ClipSection(frames=4, image_size=32, sampling="uniform")
    views = batches(known_videos, clip=uniform, crops=1).views(0)
    # Segments of 13.25 frames, halves of 6.625: the middles of [0, 7], [13, 20], ... and of [7, 13], [20, 26], ...
    assert [known_videos.frames_in(view) for view in views] == [[3, 16, 29, 43], [10, 23, 36, 49]]


def test_views_come_clip_by_clip_and_crop_by_crop(known_videos: Any) -> None:
    disc = known_videos.disc
    views = batches(known_videos, disc).views(0)
    clips = [decode(known_videos.root / disc.path, frames).frames for frames in ((0, 4, 8, 12), (4, 8, 12, 16))]
    assert (views == np.concatenate([multi_crop_views(clip, 32, 3) for clip in clips])).all()


def test_batches_hold_whole_videos_and_do_not_depend_on_the_launch(known_videos: Any) -> None:
    videos = [known_videos.ramp] * 5
    found = batches(known_videos, *videos)  # 6 views a video, batches of at most 12
    assert [found[i].rows for i in range(len(found))] == [(0, 1), (2, 3), (4,)]
    assert found[0].clips is not None
    assert found[0].clips.shape == (12, 4, 32, 32, 3)
    assert [batches(known_videos, *videos, batch_size=5)[i].rows for i in range(5)] == [(i,) for i in range(5)]


def test_an_unreadable_video_is_a_reason_and_leaves_the_rest_of_its_batch(known_videos: Any) -> None:
    gone = replace(known_videos.ramp, path="gone.mp4")
    batch = batches(known_videos, gone, known_videos.disc)[0]
    assert batch.rows == (1,)
    assert batch.failed == {0: "no such file"}
    assert batches(known_videos, gone)[0].clips is None


# ---- averaging ---------------------------------------------------------------------------------------------------


class Brightness(nn.Module):
    """Two logits: the clip's mean and 0; counts the clips that it gets at once."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def forward(self, video: Tensor) -> Tensor:
        self.sizes.append(len(video))
        mean = video.flatten(1).mean(dim=1)
        return torch.stack([4 * mean, torch.zeros_like(mean)], dim=1)


def test_the_softmax_of_the_views_is_averaged_not_their_logits(known_videos: Any) -> None:
    found = batches(known_videos, segments=3, crops=1)
    model = Brightness()
    means, failed = _probabilities(model, found, 12, 0, Accelerator(cpu=True))
    logits = [4 * normalize(torch.from_numpy(view)[None]).mean().item() for view in found.views(0)]
    assert max(logits) - min(logits) > 4  # else the order of averaging would not show
    expected = sum(1 / (1 + math.exp(-logit)) for logit in logits) / 3
    assert means[0][0] == pytest.approx(expected, rel=1e-5)
    assert means[0].dtype == np.float64
    assert failed == {}


def test_a_video_of_more_views_than_a_batch_is_split(known_videos: Any) -> None:
    whole, split = Brightness(), Brightness()
    found = batches(known_videos, known_videos.disc, known_videos.ramp, batch_size=4)
    means = [
        _probabilities(model, found, size, 0, Accelerator(cpu=True))[0] for model, size in ((whole, 6), (split, 4))
    ]
    assert (whole.sizes, split.sizes) == ([6, 6], [4, 2, 4, 2])
    assert [means[0][row].tolist() for row in (0, 1)] == [means[1][row].tolist() for row in (0, 1)]


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
    torch.manual_seed(0)
    save_model(folder / CLASSIFIER_FILE, build_classifier(section, CLIP))
    return folder


def test_a_test_writes_its_result_and_a_row_for_each_class(known_videos: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    catalog = known_videos.write_catalog(tmp_path / "c.parquet", classes=("disc", "ramp"))
    result = evaluate(run, catalog_path=catalog, accelerator=Accelerator(cpu=True))
    assert result is not None

    model = load_classifier(run / CLASSIFIER_FILE)
    right = {}
    for video in (known_videos.disc, known_videos.ramp):
        views = torch.from_numpy(batches(known_videos, video).views(0))
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


def test_unreadable_test_videos_are_an_error_that_names_them(known_videos: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    known_to_the_scan = replace(
        known_videos.disc, video_id="bad.mp4", status="unreadable", detail="moov atom not found"
    )
    gone_since = replace(known_videos.ramp, video_id="gone.mp4", path="gone.mp4")
    cases = (
        ([known_videos.disc, known_videos.ramp, known_to_the_scan], ("bad.mp4", "moov atom not found")),
        ([known_videos.disc, known_videos.ramp, gone_since], ("gone.mp4", "no such file")),
    )
    for videos, (name, reason) in cases:
        catalog = known_videos.write_catalog(tmp_path / "c.parquet", *videos)
        with pytest.raises(MvdError, match=rf"^1 test video cannot be read \({name}: {reason}\).*--skip-unreadable"):
            evaluate(run, catalog_path=catalog, accelerator=Accelerator(cpu=True))
        assert not (run / "evaluation.json").exists()
        result = evaluate(run, catalog_path=catalog, skip_unreadable=True, accelerator=Accelerator(cpu=True))
        assert result is not None
        assert (result.videos, result.skipped) == (2, ((name, reason),))
        (run / "evaluation.json").unlink()


def test_a_test_of_nothing_readable_is_refused(known_videos: Any, tmp_path: Path) -> None:
    gone = replace(known_videos.ramp, path="gone.mp4")
    catalog = known_videos.write_catalog(tmp_path / "c.parquet", gone)
    with pytest.raises(UsageError, match="none of its videos can be read"):
        evaluate(make_run(tmp_path / "run"), catalog_path=catalog, skip_unreadable=True)


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
    with pytest.raises(UsageError, match="'ramp' stands where the run has 'slope'"):
        evaluate(run, catalog_path=catalog)


def test_a_folder_without_a_classifier_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no classifier\.safetensors: give the run folder of"):
        evaluate(tmp_path, catalog_path=tmp_path / "c.parquet")
