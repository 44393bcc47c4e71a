"""The work behind each row, done by the package's own jobs; every function here runs in a worker process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mvd_offline.bench.science.compute import student_flops, teacher_flops
from mvd_offline.bench.science.learnt import learnt_by_student, learnt_by_teacher
from mvd_offline.bench.science.probe import probe, read_probe_clips, render_probe_clips
from mvd_offline.bench.science.rows import FRESH, IMAGE_TEACHER, UNTRAINED, VIDEO_TEACHER, Row, student_rows
from mvd_offline.bench.science.videos import CLASSES_OF, TASKS, Counts, Task, catalog_path, make_videos
from mvd_offline.bench.science.work import part
from mvd_offline.distill import distill
from mvd_offline.distillation.task import STUDENT_FILE
from mvd_offline.evaluate import evaluate
from mvd_offline.extract import extract
from mvd_offline.finetune import finetune
from mvd_offline.models.classifier import build_classifier
from mvd_offline.models.loading import start_finetuning
from mvd_offline.models.starting import save_untrained_student
from mvd_offline.models.teachers import load_teacher
from mvd_offline.planner import plan_store
from mvd_offline.pretrain import TEACHER_FILE, pretrain
from mvd_offline.randomness import KeyedStream
from mvd_offline.recipe import (
    DistillRecipe,
    FinetuneRecipe,
    PretrainRecipe,
    load_distill,
    load_finetune,
    load_pretrain,
)

Method = Literal["mae", "videomae"]
METHODS: tuple[Method, ...] = ("mae", "videomae")


@dataclass(frozen=True)
class Scale:
    """How large the miniature is.

    Attributes:
        groups: views of each video in the stores that are compared; the last store is the first table's.
        overrides: further ones, by recipe of `configs/science`.
    """

    counts: Counts
    groups: tuple[int, ...]
    overrides: dict[str, tuple[str, ...]]

    def pretrain(self, method: Method) -> PretrainRecipe:
        return load_pretrain(f"science/{method}", self.overrides.get(method, ()))

    def finetune(self, seed: int, task: Task = "spatial") -> FinetuneRecipe:
        classes = f"model.classes={CLASSES_OF[task]}"
        overrides = (*self.overrides.get("finetune", ()), classes, f"training.seed={seed}")
        return load_finetune("science/finetune", overrides)

    def untrained(self, seed: int) -> DistillRecipe:
        """The recipe that all students share."""
        return load_distill("science/distill", (*self.overrides.get("distill", ()), f"training.seed={seed}"))

    def distill(self, out: Path, row: Row, seed: int = 0) -> DistillRecipe:
        """The recipe of a student, with the teachers that were trained into `out`; its epochs are the shared ones."""
        weights = [
            f"teachers.{name}.weights={out / method / TEACHER_FILE}"
            for name, method in zip(("image", "video"), METHODS, strict=True)
        ]
        shared = self.overrides.get("distill", ())
        groups = row.store
        if groups == FRESH:
            groups = round(load_distill("science/distill", shared).optim.epochs)
        return load_distill(
            "science/distill", (*shared, *weights, *row.overrides, f"view.groups={groups}", f"training.seed={seed}")
        )

    def student(self, out: Path, row: Row, seed: int) -> DistillRecipe:
        """The recipe by which a student is trained: `distill`'s, with the epochs that equal compute gives the row."""
        recipe = self.distill(out, row, seed)
        if row.compute_of is None:
            return recipe
        model = next(other for other in student_rows(self.groups) if other.name == row.compute_of)
        budget = student_flops(self.distill(out, model, seed), store_folder(out, model))
        epochs = recipe.optim.epochs * budget / student_flops(recipe, store_folder(out, row))
        return self.distill(out, replace(row, overrides=(*row.overrides, f"optim.epochs={round(epochs)}")), seed)


# ---- once for all rows -------------------------------------------------------------------------------------------


def prepare_videos(out: Path, scale: Scale, workers: int) -> None:
    part(out, "videos", lambda: make_videos(out, scale.counts, workers))
    part(out, "probe_clips", lambda: render_probe_clips(out, scale.pretrain("videomae").view))


def train_teacher(out: Path, scale: Scale, method: Method) -> None:
    def job() -> dict[str, Any]:
        recipe = scale.pretrain(method)
        pretrain(recipe, catalog_path=catalog_path(out, "train"), run=out / method)
        learnt = learnt_by_teacher(recipe, out / method / TEACHER_FILE, read_probe_clips(out).test)
        return {"learnt": {"pixels": learnt}, "flops": teacher_flops(recipe, catalog_path(out, "train"))}

    part(out, f"teacher_{method}", job)


def fill_store(out: Path, scale: Scale, row: Row) -> None:
    """The store that a row learns from: planned, and extracted unless its targets are online."""

    def job() -> None:
        folder = store_folder(out, row)
        plan_store(scale.distill(out, row), catalog_path=catalog_path(out, "train"), store_dir=folder)
        if row.store != FRESH:
            extract(folder, workers=1, timeout_seconds=60.0, quiet=True)

    part(out, f"store_{row.store}", job)


def store_folder(out: Path, row: Row) -> Path:
    return out / "stores" / str(row.store)


# ---- a row -------------------------------------------------------------------------------------------------------


def measure_student(out: Path, scale: Scale, row: Row, seed: int) -> None:
    """Pretrain a student, probe it, fine-tune it on both tasks."""
    run = out / "students" / f"{row.name}-{seed}"

    def job() -> dict[str, Any]:
        recipe, store = scale.student(out, row, seed), store_folder(out, row)
        summary = distill(recipe, store_dir=store, run=run)
        learnt = learnt_by_student(recipe, run / STUDENT_FILE, read_probe_clips(out).test)
        return {"last": summary.last, "learnt": learnt, "flops": student_flops(recipe, store)}

    part(out, f"{row.name}-{seed}-pretraining", job)
    _measure(out, scale, row, seed, run / STUDENT_FILE)


def measure_other(out: Path, scale: Scale, row: Row, seed: int) -> None:
    """The same of a teacher, or of no pretraining at all."""
    weights: dict[Row, Callable[[], Path]] = {
        UNTRAINED: lambda: _untrained_student(out, scale, seed),
        IMAGE_TEACHER: lambda: _image_teacher_for_clips(out, scale),
        VIDEO_TEACHER: lambda: out / "videomae" / TEACHER_FILE,
    }
    _measure(out, scale, row, seed, weights[row]() if row in weights else None)


def _untrained_student(out: Path, scale: Scale, seed: int) -> Path:
    """What the students of a seed begin with."""
    path = out / f"untrained-{seed}.safetensors"
    if not path.is_file():
        save_untrained_student(path, scale.untrained(seed))
    return path


def _image_teacher_for_clips(out: Path, scale: Scale) -> Path:
    """The image teacher as an encoder of clips, its patch embedding repeated over the frames of a tubelet."""
    path = out / "mae" / STUDENT_FILE
    if not path.is_file():
        save_untrained_student(path, scale.untrained(0), init=out / "mae" / TEACHER_FILE)
    return path


def _measure(out: Path, scale: Scale, row: Row, seed: int, weights: Path | None) -> None:
    part(out, f"{row.name}-{seed}-probe", lambda: _probe(out, scale.finetune(seed), row, weights))
    for task in TASKS:
        part(out, f"{row.name}-{seed}-{task}", partial(_tune, out, scale.finetune(seed, task), row, task, weights))


def _probe(out: Path, recipe: FinetuneRecipe, row: Row, weights: Path | None) -> dict[str, Any]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encode: Callable[[Tensor], Tensor]
    model: nn.Module
    if row == IMAGE_TEACHER:
        model = encode = load_teacher(out / "mae" / TEACHER_FILE, "image")  # as students see it, frame by frame
    elif weights is not None:
        model = start_finetuning(weights, recipe.model, recipe.clip)[0]
        encode = model.encode_tokens
    else:
        torch.manual_seed(KeyedStream("init", recipe.training.seed).torch_seed())
        model = build_classifier(recipe.model, recipe.clip)
        encode = model.encode_tokens
    model.to(device).eval()
    return {str(task): top1 for task, top1 in probe(encode, read_probe_clips(out), device).items()}


def _tune(out: Path, recipe: FinetuneRecipe, row: Row, task: Task, weights: Path | None) -> dict[str, Any]:
    run = out / "classifiers" / f"{row.name}-{recipe.training.seed}-{task}"
    finetune(recipe, catalog_path=catalog_path(out, "labelled", task), run=run, init=weights)
    tested = evaluate(run, catalog_path=catalog_path(out, "test", task))
    assert tested is not None  # this is the only process
    return {"top1": tested.top1, "videos": tested.videos}
