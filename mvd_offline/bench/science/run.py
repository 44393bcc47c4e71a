"""`bench science` from end to end."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mvd_offline.bench.measure import machine
from mvd_offline.bench.science.jobs import (
    METHODS,
    Scale,
    fill_store,
    measure_other,
    measure_student,
    prepare_videos,
    train_teacher,
)
from mvd_offline.bench.science.pages import markdown
from mvd_offline.bench.science.results import Finding, Measured, Parts, findings, measured
from mvd_offline.bench.science.rows import (
    BOTH,
    IMAGE_TEACHER,
    SCRATCH,
    UNTRAINED,
    VIDEO_TEACHER,
    Table,
    store_rows,
    student_rows,
    views_title,
)
from mvd_offline.bench.science.videos import CLASSES, Counts
from mvd_offline.bench.science.work import Job, Workers, read_parts
from mvd_offline.errors import UsageError
from mvd_offline.recipe import dump_recipe
from mvd_offline.shards.atomic import publish_bytes

SETTINGS_FILE = "settings.json"
RESULTS_FILE = "results.json"
PAGE_FILE = "results.md"

FULL = Scale(Counts(train=16, labelled=4, test=24), (1, 2, 4, 8), {})
QUICK = Scale(
    Counts(train=1, labelled=1, test=1),
    (1, 2),
    {
        name: (f"optim.epochs={epochs}", "optim.warmup_epochs=0", "optim.batch_size=8", "optim.micro_batch_size=8")
        for name, epochs in {"mae": 1, "videomae": 1, "distill": 2, "finetune": 1}.items()
    },
)
OTHERS = (SCRATCH, UNTRAINED, IMAGE_TEACHER, VIDEO_TEACHER)


@dataclass(frozen=True)
class ScienceResult:
    """What is measured so far. `seconds` are summed over processes, by part."""

    tables: dict[Table, list[Measured]]
    findings: list[Finding]
    facts: list[str]
    seconds: dict[str, float]
    machine: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {
            "facts": self.facts,
            "tables": {name: [row.to_json() for row in rows] for name, rows in self.tables.items()},
            "findings": [finding.to_json() for finding in self.findings],
            "seconds": self.seconds,
            "machine": self.machine,
        }


def science(out: Path, *, seeds: int, quick: bool, processes: int, say: Callable[[str], None]) -> ScienceResult:
    """Run what `out` does not hold yet; `results.json` and `results.md` there are brought up to date after each row.

    Args:
        seeds: of students and classifiers; the teachers, the views and the labelled videos are the same for all.
        quick: a few steps on a few videos, to see that every part runs; the numbers mean nothing.
        processes: how many rows are worked on at a time.
        say: called with a line a stage or row.

    Raises:
        UsageError: `out` holds the results of other settings.
    """
    scale = QUICK if quick else FULL
    out = out.resolve()
    _open_folder(out, scale)
    with Workers(out, processes) as workers:
        for name, jobs in _stages(out, scale, seeds, processes).items():
            for done, _ in enumerate(workers.each_done(jobs), start=1):
                say(f"{name} {done}/{len(jobs)}")
                write_results(out, collect(out, scale, seeds, quick))
    return collect(out, scale, seeds, quick)


def _stages(out: Path, scale: Scale, seeds: int, processes: int) -> dict[str, list[Job]]:
    """The jobs of each stage; those of one stage need all stages before it and not each other."""
    rows = student_rows(scale.groups)
    return {
        "videos": [(prepare_videos, (out, scale, processes))],
        "teachers": [(train_teacher, (out, scale, method)) for method in METHODS],
        "stores": [(fill_store, (out, scale, row)) for row in store_rows(rows)],
        "encoders: pretrain, probe, fine-tune, test": [
            (job, (out, scale, row, seed))
            for seed in range(seeds)
            for job, some in ((measure_student, rows), (measure_other, OTHERS))
            for row in some
        ],
    }


def collect(out: Path, scale: Scale, seeds: int, quick: bool) -> ScienceResult:
    """What the parts that are done say."""
    parts = read_parts(out)
    rows = student_rows(scale.groups)
    objectives = [measured(row, seeds, parts) for row in (*OTHERS, *(r for r in rows if r.table == "objectives"))]
    reuse = [measured(row, seeds, parts) for row in rows if row.table == "reuse"]
    both = next(found for found in objectives if found.row.name == BOTH)
    renamed = replace(both, row=replace(both.row, title=views_title(scale.groups[-1]), paper=(None, None)))
    return ScienceResult(
        tables={"objectives": objectives, "reuse": [*reuse[:-1], renamed, reuse[-1]]},
        findings=findings(objectives),
        facts=_facts(scale, seeds, quick),
        seconds=_seconds(parts),
        machine=machine(torch.device("cuda") if torch.cuda.is_available() else None),
    )


def write_results(out: Path, result: ScienceResult) -> None:
    """Both files, each whole or not at all."""
    page = markdown(result.tables, result.findings, result.facts, result.seconds, result.machine)
    publish_bytes(out / RESULTS_FILE, json.dumps(result.to_json(), indent=1).encode() + b"\n")
    publish_bytes(out / PAGE_FILE, page.encode())


def _open_folder(out: Path, scale: Scale) -> None:
    """Start the folder, or check that what it holds was measured with the same settings."""
    settings = json.dumps(
        {
            "counts": asdict(scale.counts),
            "groups": scale.groups,
            "recipes": {
                **{method: dump_recipe(scale.pretrain(method)) for method in METHODS},
                "finetune": dump_recipe(scale.finetune(0)),
                "students": {row.name: dump_recipe(scale.distill(Path(), row)) for row in student_rows(scale.groups)},
            },
        },
        indent=1,
    )
    path = out / SETTINGS_FILE
    if path.is_file():
        if path.read_text(encoding="utf-8") != settings:
            raise UsageError(
                f"{out} holds measurements of other settings (see {SETTINGS_FILE} there; --quick is one of them, and "
                "the recipes of another version are others): give another folder as --out, or remove it."
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is not empty and holds no measurements of this command: give a new folder as --out.")
    out.mkdir(parents=True, exist_ok=True)
    publish_bytes(path, settings.encode())


def _facts(scale: Scale, seeds: int, quick: bool) -> list[str]:
    both = next(row for row in student_rows(scale.groups) if row.name == BOTH)
    student, tuning = scale.distill(Path(), both), scale.finetune(0)
    teachers = {method: scale.pretrain(method).optim.epochs for method in METHODS}
    train, labelled, test = (CLASSES * n for n in (scale.counts.train, scale.counts.labelled, scale.counts.test))
    steps = round(student.optim.epochs * (train // student.optim.batch_size))
    return [
        *(["`--quick`: these numbers mean nothing"] if quick else []),
        f"{train} videos without labels, {labelled} of them with labels for fine-tuning, {test} for the test; "
        "4 classes for each task, so that chance is 25.0",
        f"spatial: which texture; temporal: which direction; top-1 in percent, mean ± standard deviation of up to "
        f"{seeds} seeds of student and classifier, on the same teachers, views and labels; one test video is "
        f"{100 / test:.1f} points, and the test set's own standard error at 75 % is {100 * (0.1875 / test) ** 0.5:.1f}",
        f"encoders of width {student.student.width}, depth {student.student.depth}; clips of {student.view.frames} "
        f"frames of {student.view.image_size} px, patches of {student.view.patch_size} px; mask "
        f"{student.mask.kind} {student.mask.ratio}",
        f"teachers: MAE {teachers['mae']:g} epochs, VideoMAE {teachers['videomae']:g}; every student {steps} steps of "
        f"{student.optim.batch_size} clips, but pixels alone as many as give it the operations of the row of "
        f"{both.title}; fine-tuning {tuning.optim.epochs:g} epochs",
        "TFLOP: of all steps, and of the teachers' passes, over every clip online and over every view once where their "
        "targets are cached; the teachers' own training is a row of its own",
        "what is hidden: the share of its variance, about the mean of each token's place, that is predicted on the "
        "test videos; 0 is a model that learnt nothing about the clip",
        "paper: ViT-B, 400 epochs, unless it says otherwise; the linear probe has the mean token of the frozen encoder "
        f"and the labels of all {train} training videos",
    ]


def _seconds(parts: Parts) -> dict[str, float]:
    """By kind of part: `teacher_mae`, `store_8`, and of all rows together `pretraining`, `probe` and each task."""
    sums: dict[str, float] = {}
    for name, done in parts.items():
        kind = name.rpartition("-")[2] if "-" in name else name
        sums[kind] = sums.get(kind, 0.0) + float(done["seconds"])
    return sums
