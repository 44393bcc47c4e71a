"""The multi-view test of fine-tuned runs and of single checkpoints: softmax averaged over segments x crops."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from mvd_offline.errors import MvdError, UsageError
from mvd_offline.evaluation.forward import Answers, answer, effective_precision, gather
from mvd_offline.evaluation.logits import ViewLogits
from mvd_offline.evaluation.results import Evaluation, Timing, write_result
from mvd_offline.evaluation.scoring import score
from mvd_offline.evaluation.splits import Split, SplitsResult
from mvd_offline.evaluation.subjects import Subject, load_subject
from mvd_offline.evaluation.videos import EvaluationVideos, Unreadable, Unreadables
from mvd_offline.evaluation.views import ViewBatches
from mvd_offline.finetune import CLASSES_FILE, CLASSIFIER_FILE, EMA_FILE
from mvd_offline.models.checkpoints import weights_sha256
from mvd_offline.models.classifier import Classifier
from mvd_offline.processes import join_launch
from mvd_offline.recipe import load_finetune
from mvd_offline.report.leaving import refresh_report
from mvd_offline.training.run import RECIPE_FILE, read_identity, saved_step


def subject_of_run(run: Path, overrides: Sequence[str] = (), out: Path | None = None, *, ema: bool = False) -> Subject:
    """The classifier of a run as it is, by its own recipe; results go into its folder, and say its step.

    Args:
        ema: the moving average of its weights; results go into a folder `ema` of the run.

    Raises:
        UsageError: no run that saved a classifier, or one that kept no average.
    """
    if not (run / CLASSIFIER_FILE).is_file():
        raise UsageError(
            f"{run} has no {CLASSIFIER_FILE}: give the run folder of `mvd-offline finetune`. "
            "A pretrained encoder is tested with --probe."
        )
    weights, home = (run / EMA_FILE, run / "ema") if ema else (run / CLASSIFIER_FILE, run)
    if not weights.is_file():
        raise UsageError(f"{run} has no {EMA_FILE}: its recipe has no ema section. Leave --ema out.")
    classes = json.loads((run / CLASSES_FILE).read_text(encoding="utf-8"))
    recipe = load_finetune(run / RECIPE_FILE, overrides)
    source = read_identity(run)["source"]
    return Subject(weights, recipe, home if out is None else out, tuple(classes), source, saved_step(run))


def evaluate(
    run: Path,
    *,
    catalog_path: Path,
    unreadables: Unreadables = "error",
    overrides: Sequence[str] = (),
    out: Path | None = None,
    accelerator: Accelerator | None = None,
) -> Evaluation | None:
    """Test the classifier of a run, as `evaluate_subject` does; `overrides` are of its recipe."""
    subject = subject_of_run(run, overrides, out)
    return evaluate_subject(subject, catalog_path=catalog_path, unreadables=unreadables, accelerator=accelerator)


def evaluate_subject(
    subject: Subject, *, catalog_path: Path, unreadables: Unreadables = "error", accelerator: Accelerator | None = None
) -> Evaluation | None:
    """Test a classifier; leaves `evaluation.json`, tables, a picture and all logits in its folder.

    Args:
        unreadables: what becomes of videos that cannot be read.

    Returns:
        the result on the main process, None on others.

    Raises:
        UsageError: a catalog that is none, or whose classes or labels do not fit the classifier's.
        CheckpointError: weights that do not fit the recipe.
        MvdError: unreadable test videos (the first ten are listed), or an output that is not finite.
    """
    accelerator = accelerator or _accelerator()
    videos = _videos(subject, catalog_path, unreadables, accelerator)
    return _run(_trial(subject, videos, unreadables, accelerator), accelerator)


def evaluate_splits(
    subjects: Sequence[Subject],
    *,
    catalog_paths: Sequence[Path],
    unreadables: Unreadables = "error",
    accelerator: Accelerator | None = None,
) -> SplitsResult | None:
    """Test one run a split, each on its own test videos; a result that is there already, of equal settings, is read.

    Returns:
        the results and their mean on the main process, None on others.

    Raises:
        UsageError: not as many catalogs as runs, or one folder twice; and all that `evaluate_subject` raises.
    """
    folders = [subject.out.resolve() for subject in subjects]
    if len(catalog_paths) != len(subjects) or len(set(folders)) < len(folders):
        raise UsageError(
            f"{len(subjects)} runs and {len(catalog_paths)} catalogs: give each run once, and as many --videos, in the "
            "same order: the test videos of its split."
        )
    accelerator = accelerator or _accelerator()
    # All lists are looked at before the first model is loaded.
    pairs = zip(subjects, catalog_paths, strict=True)
    found = [_videos(subject, path, unreadables, accelerator) for subject, path in pairs]
    splits = []
    for subject, videos in zip(subjects, found, strict=True):
        trial = _trial(subject, videos, unreadables, accelerator)
        known = _known_result(trial, accelerator)
        result = known or _run(trial, accelerator)
        if result is not None:
            splits.append(Split(str(subject.out), result, read=known is not None))
    return SplitsResult.of(splits) if accelerator.is_main_process else None


# ---- one test ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Trial:
    """All that a test needs, checked. `settings`: what its result depends on."""

    subject: Subject
    videos: EvaluationVideos
    unreadables: Unreadables
    model: Classifier
    settings: dict[str, Any]


def _accelerator() -> Accelerator:
    # A process that is done early waits for the others in the end.
    return join_launch(patience=timedelta(days=1))


def _videos(subject: Subject, catalog: Path, unreadables: Unreadables, accelerator: Accelerator) -> EvaluationVideos:
    """All that can be found out about the test before a model is loaded."""
    videos = EvaluationVideos(catalog, subject.recipe.model.classes, accelerator)
    for trained, listed in zip(subject.classes, videos.classes, strict=False):
        if trained != listed:
            raise UsageError(
                f"the classes of {catalog} are not those that {subject.weights} was trained on: {listed!r} stands "
                f"where the training had {trained!r}. Scan the test videos with the same list of classes."
            )
    videos.check(videos.unreadable, unreadables)
    return videos


def _trial(subject: Subject, videos: EvaluationVideos, unreadables: Unreadables, accelerator: Accelerator) -> _Trial:
    recipe, model = subject.recipe, load_subject(subject)
    settings = {
        "weights": weights_sha256(model.state_dict().items()),
        "videos": videos.source,
        "clip": recipe.clip.model_dump(mode="json"),
        "segments": recipe.evaluation.segments,
        "crops": recipe.evaluation.crops,
        "positions": model.positions,
        "precision": effective_precision(recipe.training, accelerator.device),
        "tf32": recipe.training.tf32,
    }
    return _Trial(subject, videos, unreadables, model, settings)


def _run(trial: _Trial, accelerator: Accelerator) -> Evaluation | None:
    recipe, videos = trial.subject.recipe, trial.videos
    began = time.perf_counter()
    torch.set_float32_matmul_precision("high" if recipe.training.tf32 else "highest")
    batches = ViewBatches(videos.videos, videos.root, recipe.clip, recipe.evaluation)
    model = trial.model.to(accelerator.device)
    answers = gather(answer(model, batches, recipe.evaluation.batch_size, recipe.training, accelerator), accelerator)
    if answers is None:
        return None
    seconds = time.perf_counter() - began
    failed = [(videos.videos[row], reason) for row, reason in answers.failed.items()]
    unreadable = [*videos.unreadable, *(Unreadable(video.video_id, video.label, reason) for video, reason in failed)]
    unreadable.sort(key=lambda video: video.video_id)
    videos.check(unreadable, trial.unreadables)
    logits = _logits(trial, answers, unreadable if trial.unreadables == "wrong" else [])
    predictions = logits.predictions()
    result = Evaluation(
        **vars(score(predictions)),
        segments=recipe.evaluation.segments,
        crops=recipe.evaluation.crops,
        unreadables=trial.unreadables,
        unreadable=tuple(unreadable),
        on_training_videos=videos.readable_source == trial.subject.trained_on,
        settings=trial.settings,
        step=trial.subject.step,
        timing=Timing(
            seconds=seconds,
            decode_wait_share=answers.waited / answers.seconds,
            videos_per_second=len(answers.logits) / seconds,
            processes=accelerator.num_processes,
        ),
    )
    write_result(trial.subject.out, result, logits, predictions)
    if (run := trial.subject.weights.parent) in (trial.subject.out, trial.subject.out.parent):
        refresh_report(run)
    return result


def _logits(trial: _Trial, answers: Answers, wrong: Sequence[Unreadable]) -> ViewLogits:
    """The answers in the order of the videos, whoever gave them.

    Raises:
        MvdError: one that is not finite.
    """
    subject, rows = trial.subject, sorted(answers.logits)
    section, classes = subject.recipe.evaluation, subject.recipe.model.classes
    logits = np.stack([answers.logits[row] for row in rows])
    tested = [trial.videos.videos[row] for row in rows]
    bad = np.flatnonzero(~np.isfinite(logits).all(axis=(1, 2)))
    if len(bad):
        raise MvdError(
            f"the output of {subject.weights} is not finite for {len(bad)} of {len(rows)} test videos, such as "
            f"{tested[bad[0]].video_id}: its training diverged (see the run's metrics.jsonl), or half precision "
            "overflows, which --set training.precision=no would show."
        )
    return ViewLogits(
        video_ids=tuple(video.video_id for video in tested),
        labels=np.array([video.label for video in tested], np.int64),
        logits=logits.reshape(len(rows), section.segments, section.crops, classes),
        wrong=tuple(wrong),
        names=trial.videos.classes or subject.classes,
        settings=trial.settings,
    )


def _known_result(trial: _Trial, accelerator: Accelerator) -> Evaluation | None:
    """The result that is there already, if it is of these settings: on every process, as the main one finds it."""
    found: list[Evaluation | None] = [None]
    if accelerator.is_main_process and (known := Evaluation.read(trial.subject.out)):
        same = known.settings == trial.settings and (known.unreadables == trial.unreadables or not known.unreadable)
        found = [known if same else None]
    broadcast_object_list(found)
    return found[0]
