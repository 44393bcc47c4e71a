"""What a codec costs a student: ViT-Ti distilled from stores that differ in nothing but how targets are coded.

Teachers, videos, and the store and students of float16 are those of `vit_tiny.py`, which must have run. A student of
another codec has the same views, masks, order and start. A distillation takes about six minutes of one core; run it
again to go on, or with more codecs.

At the recipe's learning rate students leave a plateau early or late by chance, whatever the codec: losses of the same
seed come to differ by several percent even under int8, which changes nearly nothing. `--small` takes smaller students,
so that there may be more of them, and an eighth of the learning rate keeps those of one seed together.

    python tests/benchmarks/vit_tiny.py --out DIR
    python tests/benchmarks/codec_effect.py --of DIR --out A
    python tests/benchmarks/codec_effect.py --of DIR --out B --small --seeds 6
    python tests/benchmarks/codec_effect.py --of DIR --out C --small --set optim.base_lr=0.008
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from vit_tiny import GROUPS, line, scale_of

from mvd_offline.bench.science.jobs import Scale
from mvd_offline.bench.science.learnt import learnt_by_student
from mvd_offline.bench.science.probe import probe, read_probe_clips
from mvd_offline.bench.science.rows import BOTH, student_rows
from mvd_offline.bench.science.run import QUICK
from mvd_offline.bench.science.videos import catalog_path
from mvd_offline.bench.science.work import Job, Workers, part, read_parts
from mvd_offline.distill import distill
from mvd_offline.distillation.data import open_store_data
from mvd_offline.distillation.mixing import StoreShare
from mvd_offline.distillation.task import STUDENT_FILE, DistillTask
from mvd_offline.extract import extract
from mvd_offline.models.loading import load_student, start_finetuning
from mvd_offline.planner import plan_store
from mvd_offline.recipe import DistillRecipe, load_distill
from mvd_offline.shards.store import open_store
from mvd_offline.training.order import BatchRequest

EXACT = "float16"
LAST_LINES = 4
"""Of metrics.jsonl, 20 steps each: the last 5 of 40 epochs."""


@dataclass(frozen=True)
class Places:
    """Where everything is. `of` is only read.

    Attributes:
        own: students of float16 are trained into `out` like the others, instead of those in `of`.
    """

    of: Path
    out: Path
    scale: Scale
    own: bool

    def recipe(self, codec: str, seed: int = 0) -> DistillRecipe:
        family, _, error = codec.partition("-")
        overrides = (f"store.codec={family}", *([f"store.klt.relative_error={error}"] if error else []))
        both = next(row for row in student_rows(GROUPS) if row.name == BOTH)
        return self.scale.distill(self.of, replace(both, overrides=overrides), seed)

    def store(self, codec: str) -> Path:
        return self.of / "stores" / str(GROUPS[-1]) if codec == EXACT else self.out / "stores" / codec

    def run(self, codec: str, seed: int) -> Path:
        if self.trains(codec):
            return self.out / "students" / f"{codec}-{seed}"
        return self.of / "students" / f"{BOTH}-{seed}"

    def trains(self, codec: str) -> bool:
        return self.own or codec != EXACT


def fill(places: Places, codec: str) -> None:
    """The codec's store, and what its rows take and have lost."""

    def job() -> dict[str, Any]:
        folder = places.store(codec)
        if codec != EXACT:
            plan_store(places.recipe(codec), catalog_path=catalog_path(places.of, "train"), store_dir=folder)
            extract(folder, workers=1, timeout_seconds=60.0, quiet=True)
        store, found = open_store(folder), {}
        for column in store.target_columns:
            ledger, spec = store.status(column), store.header.columns[column]
            found[column] = {
                "bytes": float(ledger.length[ledger.ok].mean()),
                "float16": 2 * spec.tokens * spec.width,
                "error": float(ledger.coding["relative_error"][ledger.ok].mean()),
            }
        return {"columns": found}

    part(places.out, f"store-{codec}", job)


def measure(places: Places, codec: str, seed: int) -> None:
    """Distil a student, and look at its losses and features."""
    run = places.run(codec, seed)
    if places.trains(codec):
        work = partial(distill, places.recipe(codec, seed), store_dir=places.store(codec), run=run)
        part(places.out, f"{codec}-{seed}-distilled", lambda: {"seconds_of_steps": work().seconds})
    part(places.out, f"{codec}-{seed}-measured", partial(measured, places, codec, seed, run))


def measured(places: Places, codec: str, seed: int, run: Path) -> dict[str, Any]:
    lines = [json.loads(text) for text in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    weights, clips = run / STUDENT_FILE, read_probe_clips(places.of)
    tuning = places.scale.finetune(seed)
    encoder = start_finetuning(weights, tuning.model, tuning.clip)[0].eval()
    return {
        "logged": statistics.fmean(text["loss"] for text in lines[-LAST_LINES:]),
        **losses_on(places, codec, seed, weights),
        "learnt": learnt_by_student(places.recipe(codec, seed), weights, clips.test),
        "probe": {str(task): top1 for task, top1 in probe(encoder.encode_tokens, clips, torch.device("cpu")).items()},
    }


@torch.no_grad()
def losses_on(places: Places, codec: str, seed: int, weights: Path) -> dict[str, float]:
    """Of a finished student on every view, with coded targets and with float16's, under the masks of its first epochs.

    Views and masks are the same for both, and read once.
    """
    tasks = {kind: task_of(places, name, seed) for kind, name in (("exact", EXACT), ("coded", codec))}
    recipe, student = places.recipe(codec, seed), load_student(weights)
    losses: dict[str, list[float]] = {kind: [] for kind in tasks}
    for request in requests(tasks["exact"], recipe.optim.batch_size, recipe.view.groups):
        batch = tasks["exact"].reader(request)
        for kind, task in tasks.items():
            batch["stored"] = task.reader.targets.read(request.rows, batch["tokens"].numpy())
            losses[kind].append(float(task.loss(student, batch)["loss"]))
    return {kind: statistics.fmean(values) for kind, values in losses.items()}


def task_of(places: Places, codec: str, seed: int) -> DistillTask:
    recipe = places.recipe(codec, seed)
    return DistillTask(recipe, *open_store_data(recipe, StoreShare(places.store(codec)), torch.device("cpu")))


def requests(task: DistillTask, rows: int, epochs: int) -> Iterator[BatchRequest]:
    for epoch in range(epochs):
        order = task.order(epoch)
        for batch, start in enumerate(range(0, len(order) // rows * rows, rows)):
            yield BatchRequest(epoch, batch, 0, True, tuple(order[start : start + rows].tolist()))


# ---- the table -------------------------------------------------------------------------------------------------------

HEADS = (
    "codec",
    "bytes a row",
    "float16 is",
    "relative error",
    "loss as logged",
    "change, %",
    "loss on float16's targets",
    "change, %",
    "predicts of what is hidden, %",
    "probe: spatial, %",
    "temporal, %",
)


def table(codecs: Sequence[str], seeds: int, parts: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: means and standard deviations over seeds; changes are from the float16 student of the same seed."""
    rows = {codec: [parts[f"{codec}-{seed}-measured"] for seed in range(seeds)] for codec in codecs}
    lines = [line(HEADS), line(["---"] * len(HEADS))]
    for codec, found in rows.items():
        columns = parts[f"store-{codec}"]["columns"].values()
        size = sum(column["bytes"] for column in columns)
        cells = [codec, f"{size:,.0f}", f"{sum(column['float16'] for column in columns) / size:.1f} x"]
        cells.append(" / ".join(f"{column['error']:.2g}" for column in columns))
        for key in ("logged", "exact"):
            changes = [100 * (each[key] / start[key] - 1) for each, start in zip(found, rows[EXACT], strict=True)]
            cells.append(spread([each[key] for each in found], 4))
            cells.append("" if codec == EXACT else spread(changes, 2))
        cells.append(", ".join(f"{n} {spread([100 * e['learnt'][n] for e in found], 1)}" for n in found[0]["learnt"]))
        cells += [spread([100 * each["probe"][task] for each in found], 1) for task in ("spatial", "temporal")]
        lines.append(line(cells))
    return "\n".join(lines) + "\n"


def spread(values: Sequence[float], digits: int) -> str:
    """Mean, and standard deviation where there is one."""
    deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{deviation}"


def students_of(options: argparse.Namespace) -> Scale:
    scale = scale_of(options.quick)
    if options.small:
        scale = replace(scale, overrides=QUICK.overrides if options.quick else {})
    distilled = (*scale.overrides.get("distill", ()), *options.set)
    return replace(scale, overrides={**scale.overrides, "distill": distilled})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--of", type=Path, required=True, help="what vit_tiny.py made")
    parser.add_argument("--out", type=Path, required=True, help="a folder for each set of options")
    parser.add_argument("--codecs", default="klt-0.08,klt-0.16,int8", help="klt by its relative error")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--small", action="store_true", help="students of `bench science`: a minute each")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="of the students' recipe")
    parser.add_argument("--quick", action="store_true", help="as vit_tiny.py ran")
    options = parser.parse_args()
    own = options.small or bool(options.set)
    places = Places(options.of.resolve(), options.out.resolve(), students_of(options), own)
    for seed in range(0 if own else options.seeds):
        if load_distill(str(places.run(EXACT, seed) / "recipe.yaml")) != places.recipe(EXACT, seed):
            parser.error(f"{places.run(EXACT, seed)} is a student of another recipe: run vit_tiny.py again, elsewhere")
    places.out.mkdir(parents=True, exist_ok=True)
    codecs = [EXACT, *options.codecs.split(",")]
    stages: list[list[Job]] = [
        [(fill, (places, codec)) for codec in codecs],
        [(measure, (places, codec, seed)) for seed in range(options.seeds) for codec in codecs],
    ]
    with Workers(places.out, options.processes) as workers:
        for number, jobs in enumerate(stages, start=1):
            for done, _ in enumerate(workers.each_done(jobs), start=1):
                sys.stdout.write(f"stage {number} of {len(stages)}: {done} of {len(jobs)}\n")
                sys.stdout.flush()
    sys.stdout.write(table(codecs, options.seeds, read_parts(places.out)))


if __name__ == "__main__":
    main()
