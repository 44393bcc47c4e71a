"""Running all benchmarks: material, one process a benchmark, one file of results that a later run goes on from."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch

from mvd_offline.bench.here import on_this_machine
from mvd_offline.bench.measure import machine
from mvd_offline.bench.suite.pages import markdown
from mvd_offline.bench.suite.parts import ON_CPU, ON_GPU, PARTS, QUICK, Material, Sizes
from mvd_offline.bench.suite.plots import draw_plots
from mvd_offline.errors import MvdError, UsageError, nearest
from mvd_offline.extract import extract
from mvd_offline.planner import plan_store
from mvd_offline.recipe import BakeSection, DistillRecipe, dump_recipe, load_distill
from mvd_offline.shards.atomic import publish_bytes
from mvd_offline.video.catalog import scan
from mvd_offline.video.synthetic import synthesize

RESULTS_FILE: Final = "results.json"
PAGE_FILE: Final = "results.md"
RECIPE: Final = "distill/vit_s_from_vit_b_k400"
QUICK_RECIPE: Final = "smoke/distill_vit_s_from_vit_b_k400"
QUICK_CHANGES: Final = ("view.frames=8", "view.image_size=64")
"""To the recipe, so that a few views have enough tokens to learn codec klt from."""
VERSIONS: Final = ("torch", "numpy", "timm", "accelerate", "zarr", "decord", "av", "pillow", "simplejpeg", "pyarrow")


@dataclass(frozen=True)
class PartResult:
    """What one benchmark said."""

    command: list[str]
    """Arguments of `mvd-offline`."""
    seconds: float
    report: dict[str, Any]


@dataclass(frozen=True)
class SuiteResult:
    recipe: str
    threads: int
    notes: list[str]
    """What is measured otherwise than the recipe says."""
    parts: dict[str, PartResult]
    failed: dict[str, str]
    """What benchmarks that failed said last."""
    versions: dict[str, str]
    machine: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def run_all(
    out: Path,
    *,
    recipe: str | None,
    overrides: Sequence[str] = (),
    parts: Sequence[str] = tuple(PARTS),
    threads: int,
    quick: bool,
    say: Callable[[str], None],
) -> SuiteResult:
    """Run benchmarks, and write their results, a page and pictures into a folder.

    A benchmark whose report lies in the folder already, with the same arguments, is not run again.

    Args:
        recipe: of a distillation; one of ViT-S under ViT-B when None.
        threads: of torch, in every process.
        quick: tiny sizes: does it run?

    Raises:
        UsageError: a part that there is none.
        MvdError: the store for the measurements cannot be made.
    """
    if unknown := [part for part in parts if part not in PARTS]:
        raise UsageError(
            f"there is no benchmark {', '.join(unknown)}; choose of {', '.join(PARTS)}.{nearest(unknown[0], PARTS)}"
        )
    out.mkdir(parents=True, exist_ok=True)
    sizes = QUICK if quick else ON_GPU if torch.cuda.is_available() else ON_CPU
    base = load_distill(recipe or (QUICK_RECIPE if quick else RECIPE), [*(QUICK_CHANGES if quick else ()), *overrides])
    changed, notes = on_this_machine(_small(base, sizes.batch))
    material = _material(out, changed, sizes, threads, say)
    done: dict[str, PartResult] = {}
    failed: dict[str, str] = {}
    for part in (part for part in PARTS if part in parts):
        say(f"{part}: {PARTS[part]}")
        try:
            done[part] = _part(out, material, part)
        except MvdError as error:
            failed[part] = str(error)
    versions = {name: importlib.metadata.version(name) for name in _installed(VERSIONS)}
    result = SuiteResult(changed.name, threads, notes, done, failed, versions, machine())
    publish_bytes(out / RESULTS_FILE, json.dumps(result.to_json(), indent=1).encode("ascii") + b"\n")
    pictures = draw_plots(out, {name: one.report for name, one in done.items()})
    reports = {name: (_shown(one.command, out), one.report) for name, one in done.items()}
    page = markdown(result.recipe, notes, reports, failed, pictures, {**result.machine, **versions})
    publish_bytes(out / PAGE_FILE, page.encode())
    return result


def _small(recipe: DistillRecipe, batch: int) -> DistillRecipe:
    """The recipe with a store of few views in several shards, and of their clips; its steps are of one micro-batch."""
    view = recipe.view.model_copy(update={"groups": 1})
    store = recipe.store.model_copy(
        update={
            "rows_per_shard": min(8, recipe.store.rows_per_shard),
            "batch_rows": min(4, recipe.store.batch_rows),
            "bake": recipe.store.bake or BakeSection(),
        }
    )
    optim = recipe.optim.model_copy(update={"batch_size": batch, "micro_batch_size": batch})
    quirks = recipe.quirks.model_copy(update={"leftover_micro_batch": None})
    return recipe.model_copy(update={"view": view, "store": store, "optim": optim, "quirks": quirks})


def _material(out: Path, recipe: DistillRecipe, sizes: Sizes, threads: int, say: Callable[[str], None]) -> Material:
    """Generated videos, and a store of them with targets and baked clips; what is there already stays."""
    made = Material(
        recipe=out / "recipe.yaml",
        catalog=out / "videos.parquet",
        store=out / "store",
        sizes=sizes,
        threads=threads,
        folder=out,
    )
    text = dump_recipe(recipe).encode()
    if made.recipe.exists() and made.recipe.read_bytes() != text:
        raise UsageError(f"{out} has measurements of another recipe; give another folder.")
    publish_bytes(made.recipe, text)
    say("making videos and a store")
    torch.set_num_threads(threads)
    train, cores = out / "videos" / "train", os.cpu_count() or 1
    if not made.catalog.exists():
        side, frames = (sizes.short_side, sizes.short_side), (sizes.frames, sizes.frames)
        synthesize(train, videos_per_class=sizes.videos, split="train", short_side=side, frames=frames, workers=cores)
        scan(train, workers=cores).write(made.catalog)
    plan_store(recipe, catalog_path=made.catalog, store_dir=made.store)
    extract(made.store, workers=1, timeout_seconds=60.0, quiet=True)
    return made


def _part(out: Path, material: Material, part: str) -> PartResult:
    """Run one benchmark, or read what it said before."""
    command, path = material.command(part), out / "parts" / f"{part}.json"
    if path.exists():
        known = PartResult(**json.loads(path.read_text(encoding="ascii")))
        if known.command == command:
            return known
    began = time.perf_counter()
    report = json.loads(_run(command, material.threads))
    result = PartResult(command, time.perf_counter() - began, report)
    path.parent.mkdir(exist_ok=True)
    publish_bytes(path, json.dumps(asdict(result), indent=1).encode("ascii") + b"\n")
    return result


def _run(arguments: Sequence[str], threads: int) -> str:
    """What a command of `mvd-offline` prints.

    Raises:
        MvdError: it failed; says what it said.
    """
    done = subprocess.run(
        [sys.executable, "-m", "mvd_offline", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )
    if done.returncode:
        raise MvdError(
            f"`mvd-offline {' '.join(arguments)}` ended with status {done.returncode}: "
            f"{done.stderr.strip()[-2000:] or 'it said nothing'}"
        )
    return done.stdout


def _shown(command: Sequence[str], out: Path) -> str:
    """A command as one would type it, with DIR for the folder of the results."""
    return " ".join(["mvd-offline", *command]).replace(str(out), "DIR")


def _installed(names: Iterable[str]) -> list[str]:
    known = {str(one.metadata["Name"]).lower() for one in importlib.metadata.distributions()}
    return [name for name in names if name in known]
