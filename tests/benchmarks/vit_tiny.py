"""ViT-Ti on 16 classes, fine-tuned from scratch, from a student of pixels (VideoMAE), and from one of two teachers.

The videos, recipes and stages are those of `mvd-offline bench science`, with a model of 192 channels and 12 blocks, and
with texture and direction as one label of 16. Three seeds take about two hours on two cores; run it again to go on.

    python tests/benchmarks/vit_tiny.py --out DIR
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mvd_offline.bench.science.compute import student_flops
from mvd_offline.bench.science.jobs import (
    METHODS,
    Scale,
    fill_store,
    prepare_videos,
    store_folder,
    train_teacher,
)
from mvd_offline.bench.science.learnt import learnt_by_student
from mvd_offline.bench.science.probe import read_probe_clips
from mvd_offline.bench.science.rows import BOTH, SCRATCH, UNTRAINED, Row, student_rows
from mvd_offline.bench.science.run import QUICK
from mvd_offline.bench.science.videos import CLASSES, Counts, catalog_path
from mvd_offline.bench.science.work import Job, Workers, part, read_parts
from mvd_offline.distill import distill
from mvd_offline.distillation.task import STUDENT_FILE
from mvd_offline.evaluate import evaluate
from mvd_offline.finetune import finetune
from mvd_offline.models.starting import save_untrained_student
from mvd_offline.video.catalog import Catalog, scan

# Three times as wide as the recipes' models and as deep again three times: half their learning rates in pretraining.
SIZES = {
    "mae": ("model={arch: vit_tiny, decoder: {depth: 2, width: 96, heads: 3}}", "optim.base_lr=0.008"),
    "videomae": ("model={arch: vit_tiny, decoder: {depth: 2, width: 96, heads: 3}}", "optim.base_lr=0.016"),
    "distill": (
        "student={arch: vit_tiny, drop_path: 0.0, decoder: {depth: 1, width: 96, heads: 3}}",
        "optim.base_lr=0.032",
    ),
    "finetune": (f"model={{arch: vit_tiny, classes: {CLASSES}, drop_path: 0.1, head_init_scale: 1.0}}",),
}
LABELLED = 8
GROUPS = (4,)
ROWS = ("pixels", BOTH)


def scale_of(quick: bool) -> Scale:
    counts = QUICK.counts if quick else Counts(train=16, labelled=LABELLED, test=24)
    few = QUICK.overrides if quick else {}
    return Scale(counts, GROUPS, {name: (*size, *few.get(name, ())) for name, size in SIZES.items()})


def write_catalogs(out: Path, scale: Scale) -> None:
    """`labelled` and `test`, with all 16 classes."""
    train, test = (scan(out / "videos" / split) for split in ("train", "test"))
    few = tuple(video for video in train.videos if int(Path(video.path).stem) < scale.counts.labelled)
    Catalog(few, train.root, train.classes).write(catalog_path(out, "labelled"))
    test.write(catalog_path(out, "test"))


def measure(out: Path, scale: Scale, row: Row, seed: int) -> None:
    """Pretrain, where the row does, and fine-tune."""
    weights: Path | None = None
    if row == UNTRAINED:
        weights = out / f"untrained-{seed}.safetensors"
        save_untrained_student(weights, scale.untrained(seed))
    elif row != SCRATCH:
        run = out / "students" / f"{row.name}-{seed}"
        weights = run / STUDENT_FILE
        part(out, f"{row.name}-{seed}-pretraining", partial(pretrain_student, out, scale, row, seed, run))
    part(out, f"{row.name}-{seed}-tuned", partial(tune, out, scale, row, seed, weights))


def pretrain_student(out: Path, scale: Scale, row: Row, seed: int, run: Path) -> dict[str, Any]:
    recipe, store = scale.student(out, row, seed), store_folder(out, row)
    distill(recipe, store_dir=store, run=run)
    learnt = learnt_by_student(recipe, run / STUDENT_FILE, read_probe_clips(out).test)
    return {"learnt": learnt, "flops": student_flops(recipe, store)}


def tune(out: Path, scale: Scale, row: Row, seed: int, weights: Path | None) -> dict[str, Any]:
    run = out / "classifiers" / f"{row.name}-{seed}"
    recipe = scale.finetune(seed)
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"classes": CLASSES})})
    finetune(recipe, catalog_path=catalog_path(out, "labelled"), run=run, init=weights)
    tested = evaluate(run, catalog_path=catalog_path(out, "test"))
    assert tested is not None  # this is the only process
    return {"top1": tested.top1, "top5": tested.top5}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a few steps of everything: does it run?")
    options = parser.parse_args()
    out, scale = options.out.resolve(), scale_of(options.quick)
    out.mkdir(parents=True, exist_ok=True)
    students = [row for row in student_rows(GROUPS) if row.name in ROWS]
    both = next(row for row in students if row.name == BOTH)
    rows = (SCRATCH, UNTRAINED, *students)
    stages: list[list[Job]] = [
        [(prepare_videos, (out, scale, options.processes))],
        [(train_teacher, (out, scale, method)) for method in METHODS],
        [(fill_store, (out, scale, both))],
        [(measure, (out, scale, row, seed)) for seed in range(options.seeds) for row in rows],
    ]
    with Workers(out, options.processes) as workers:
        for number, jobs in enumerate(stages, start=1):
            for done, _ in enumerate(workers.each_done(jobs), start=1):
                sys.stdout.write(f"stage {number} of {len(stages)}: {done} of {len(jobs)}\n")
                sys.stdout.flush()
            if number == 1:
                write_catalogs(out, scale)
    sys.stdout.write(table(rows, options.seeds, read_parts(out)))


def table(rows: Sequence[Row], seeds: int, parts: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: means and standard deviations over seeds."""
    heads = ("weights from", "predicts of what is hidden, %", "TFLOP", "seconds", "top-1, %", "top-5, %")
    lines = [line(heads), line(["---"] * len(heads))]
    lines += [line([method, *pretraining([parts[f"teacher_{method}"]]), "-", "-"]) for method in METHODS]
    for row in rows:
        names = [f"{row.name}-{seed}" for seed in range(seeds)]
        accuracies = (spread([100 * parts[f"{name}-tuned"][key] for name in names]) for key in ("top1", "top5"))
        trained = [parts[f"{name}-pretraining"] for name in names if f"{name}-pretraining" in parts]
        lines.append(line([row.title, *(pretraining(trained) if trained else "---"), *accuracies]))
    return "\n".join(lines) + "\n"


def line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def pretraining(seeds: Sequence[Mapping[str, Any]]) -> list[str]:
    """Means over seeds: what it learnt, operations, seconds."""
    learnt = (
        f"{name} {100 * statistics.fmean(each['learnt'][name] for each in seeds):.0f}" for name in seeds[0]["learnt"]
    )
    seconds = statistics.fmean(each["seconds"] for each in seeds)
    return [", ".join(learnt), f"{seeds[0]['flops'] / 1e12:.0f}", f"{seconds:.0f}"]


def spread(values: Sequence[float]) -> str:
    """Mean, and standard deviation where there is one."""
    return f"{statistics.fmean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
