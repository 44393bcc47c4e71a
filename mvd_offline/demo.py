"""The whole pipeline in miniature, on generated videos whose classes need both appearance and motion.

An image and a video teacher are pretrained on all videos without labels, their targets are extracted, a student is
distilled from both, and classifiers are fine-tuned on the few labelled videos: from the student, from the student as
it was before distillation, and from scratch.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from mvd_offline.bench.step import StepTimes, time_steps
from mvd_offline.curves import draw_curves
from mvd_offline.distill import distill
from mvd_offline.distillation.task import STUDENT_FILE
from mvd_offline.errors import UsageError
from mvd_offline.evaluate import evaluate
from mvd_offline.evaluation.results import Evaluation
from mvd_offline.extract import extract
from mvd_offline.finetune import finetune
from mvd_offline.inspection import contact_sheet
from mvd_offline.models.starting import save_untrained_student
from mvd_offline.planner import plan_store
from mvd_offline.pretrain import TEACHER_FILE, pretrain
from mvd_offline.recipe import load_distill, load_finetune, load_pretrain
from mvd_offline.shards.store import open_store
from mvd_offline.video.catalog import Catalog, scan
from mvd_offline.video.synthetic import synthesize

CLASSES = 16
UNLABELLED_PER_CLASS = 24
LABELLED_PER_CLASS = 4
TEST_PER_CLASS = 10
_CLASSIFIERS = ("distilled", "untrained", "scratch")


@dataclass
class DemoResult:
    """Accuracies are top-1 shares of the test videos; seconds are wall-clock.

    `untrained_top1` is of a classifier that starts from the student as it was before distillation; `scratch_top1` of
    one that starts as the released fine-tuning does without a checkpoint.
    """

    distilled_top1: float = 0.0
    untrained_top1: float = 0.0
    scratch_top1: float = 0.0
    test_videos: int = 0
    labelled_videos: int = 0
    unlabelled_videos: int = 0
    store_bytes: int = 0
    step: StepTimes | None = None
    stages: dict[str, float] = field(default_factory=dict)
    curves: str = ""
    contact_sheet: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def demo(out: Path, *, workers: int, say: Callable[[str], None]) -> DemoResult:
    """Run all stages into `out`; stages that a previous run finished are not done again.

    Args:
        workers: processes for synthesis, probing and decoding.
        say: called with one line a stage.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file: give a folder as --out.")
    # Loader processes need cores too; threads that wait for each other on busy cores cost more than they bring.
    torch.set_num_threads(max(1, (os.cpu_count() or 1) - 1))
    result = DemoResult()

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        say(name)
        began = time.perf_counter()
        yield
        result.stages[name] = time.perf_counter() - began

    with stage("synthesise videos"):
        catalogs = _videos(out, workers)
    with stage("pretrain image teacher (MAE)"):
        pretrain(load_pretrain("demo/mae"), catalog_path=catalogs["unlabelled"], run=out / "mae")
    with stage("pretrain video teacher (VideoMAE)"):
        pretrain(load_pretrain("demo/videomae"), catalog_path=catalogs["unlabelled"], run=out / "videomae")
    weights = [f"teachers.image.weights={out / 'mae' / TEACHER_FILE}"]
    weights += [f"teachers.video.weights={out / 'videomae' / TEACHER_FILE}"]
    recipe = load_distill("demo/distill", weights)
    store_dir = out / "store"
    with stage("plan and extract targets"):
        plan_store(recipe, catalog_path=catalogs["unlabelled"], store_dir=store_dir)
        extract(store_dir, workers=workers, timeout_seconds=60.0, quiet=True)
    with stage("distil the student"):
        distill(recipe, store_dir=store_dir, run=out / "distill")
    with stage("fine-tune three classifiers"):
        tuning = load_finetune("demo/finetune")
        save_untrained_student(out / "untrained.safetensors", recipe)
        finetune(tuning, catalog_path=catalogs["labelled"], init=out / "distill" / STUDENT_FILE, run=out / "distilled")
        finetune(tuning, catalog_path=catalogs["labelled"], init=out / "untrained.safetensors", run=out / "untrained")
        finetune(tuning, catalog_path=catalogs["labelled"], run=out / "scratch")
    with stage("evaluate them"):
        distilled, untrained, scratch = (_tested(out / name, catalogs["test"]) for name in _CLASSIFIERS)
    with stage("time online against cached steps, draw"):
        result.step = time_steps(recipe, store_dir=store_dir, steps=4, batch_size=32)
        result.curves = str(_curves(out))
        result.contact_sheet = str(_sheet(out, store_dir))
    result.distilled_top1, result.untrained_top1, result.scratch_top1 = distilled.top1, untrained.top1, scratch.top1
    result.test_videos = distilled.videos
    result.unlabelled_videos, result.labelled_videos = CLASSES * UNLABELLED_PER_CLASS, CLASSES * LABELLED_PER_CLASS
    result.store_bytes = sum(path.stat().st_size for path in store_dir.rglob("*") if path.is_file())
    return result


def _videos(out: Path, workers: int) -> dict[str, Path]:
    """Catalogs of all training videos, of the labelled few among them, and of the test videos."""
    found = {}
    for split, count in (("train", UNLABELLED_PER_CLASS), ("test", TEST_PER_CLASS)):
        folder = out / "videos" / split
        if not folder.exists():
            synthesize(
                folder,
                videos_per_class=count,
                split=split,
                classes=CLASSES,
                short_side=(48, 72),
                frames=(32, 56),
                workers=workers,
            )
        found[split] = scan(folder, workers=workers)
    labelled = [video for video in found["train"].videos if int(Path(video.path).stem) < LABELLED_PER_CLASS]
    few = Catalog(tuple(labelled), found["train"].root, found["train"].classes)
    catalogs = {"unlabelled": found["train"], "labelled": few, "test": found["test"]}
    paths = {name: out / f"{name}.parquet" for name in catalogs}
    for name, catalog in catalogs.items():
        catalog.write(paths[name])
    return paths


def _tested(run: Path, videos: Path) -> Evaluation:
    found = evaluate(run, catalog_path=videos)
    assert found is not None  # this is the only process
    return found


def _curves(out: Path) -> Path:
    runs = {name: out / name for name in ("mae", "videomae", "distill", *_CLASSIFIERS)}
    return draw_curves(runs, out / "curves.png")


def _sheet(out: Path, store_dir: Path) -> Path:
    path = out / "contact_sheet.png"
    store = open_store(store_dir)
    contact_sheet(store_dir, int(store.ok_rows()[0]), out / "videos" / "train").save(path)
    return path
