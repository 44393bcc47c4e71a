"""Does the planner tell the truth? What `plan --measure` says, and what extraction and training then take."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from mvd_offline.bench.measure import machine
from mvd_offline.errors import MvdError
from mvd_offline.recipe import DistillRecipe, load_distill

UNCOUNTED_STEPS: Final = 2
"""At the start of a run, while everything is slower than it will be."""


@dataclass(frozen=True)
class Truth:
    """A prediction and its outcome; None where one of them is endless."""

    predicted: float | None
    outcome: float | None

    @property
    def ratio(self) -> float | None:
        """The prediction over the outcome."""
        return self.predicted / self.outcome if self.predicted and self.outcome else None


@dataclass(frozen=True)
class PlannerTruth:
    """What was predicted, and what came.

    Attributes:
        figures: bytes of the store; seconds of the extraction, from its first decode to the seal; seconds of a step on
            the store, and with online teachers; the epoch from which the store is cheaper.
        measuring_seconds: of the whole `plan` command.
        steps: that were counted of each training.
        measured: `measuring.Measured`, as JSON.
    """

    recipe: str
    rows: int
    steps: int
    figures: dict[str, Truth]
    measuring_seconds: float
    measured: dict[str, Any]
    machine: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        figures = {name: {**asdict(figure), "ratio": figure.ratio} for name, figure in self.figures.items()}
        return {**asdict(self), "figures": figures}


def check_planner(
    recipe_name: str,
    overrides: Sequence[str],
    *,
    videos: Path,
    folder: Path,
    steps: int,
    say: Callable[[str], None] = lambda line: None,
) -> PlannerTruth:
    """Plan with measured rates, extract all of the catalog, and train some steps, cached and online.

    Each is a command of its own, as a user would run it.

    Args:
        folder: for the store and the runs.
        steps: counted steps of each training, at most; fewer where the recipe's schedule is over.

    Raises:
        MvdError: a command failed; says what it said.
    """
    recipe = load_distill(recipe_name, list(overrides))
    changes = [word for change in overrides for word in ("--set", change)]
    store = folder / "store"
    say("planning")
    began = time.perf_counter()
    plan = _run("plan", recipe_name, "--videos", videos, "--store", store, "--measure", *changes)
    measuring_seconds = time.perf_counter() - began
    say(f"extracting {plan['rows']} views")
    extraction = _run("extract", store)
    rows = extraction["rows"]["ok"]
    taken = {}
    for targets in ("cached", "online"):
        say(f"training on {targets} targets")
        taken[targets] = _steps(recipe, targets, recipe_name, store, folder / targets, rows, steps, changes)
    return PlannerTruth(
        recipe=recipe.name,
        rows=rows,
        steps=len(taken["cached"]),
        figures=_figures(recipe, plan, extraction, {kind: statistics.mean(of) for kind, of in taken.items()}),
        measuring_seconds=measuring_seconds,
        measured=plan["measured"],
        machine=machine(),
    )


def _figures(
    recipe: DistillRecipe, plan: dict[str, Any], extraction: dict[str, Any], step: dict[str, float]
) -> dict[str, Truth]:
    seconds = extraction["elapsed_seconds"] - extraction["seconds"]["starting"]
    batches = extraction["rows"]["ok"] / recipe.view.groups / recipe.optim.batch_size
    saved, hours = batches * (step["online"] - step["cached"]), plan["hours"]
    trained = hours["cached"]["device_seconds"] / plan["step_seconds"]
    return {
        "bytes": Truth(plan["bytes_by_codec"][plan["codec"]] + plan["clips_bytes"], extraction["bytes_written"]),
        "extraction seconds": Truth(hours["extraction"]["device_seconds"], seconds),
        "step seconds": Truth(plan["step_seconds"], step["cached"]),
        "online step seconds": Truth(hours["online"]["device_seconds"] / trained, step["online"]),
        "break-even epoch": Truth(plan["break_even_epoch"], seconds / saved if saved > 0 else None),
    }


def _steps(
    recipe: DistillRecipe,
    targets: str,
    recipe_name: str,
    store: Path,
    run: Path,
    rows: int,
    steps: int,
    changes: Sequence[str],
) -> list[float]:
    """Seconds of the steps of a short training that count."""
    optim, training = recipe.optim, recipe.training
    # The loaders begin with their queues full: that is over when as much was trained on.
    ahead = training.workers * training.prefetch_batches * min(optim.micro_batch_size, optim.batch_size)
    uncounted = UNCOUNTED_STEPS + math.ceil(ahead / optim.batch_size)
    epochs = (steps + uncounted) / max(1, int(rows / recipe.view.groups) // optim.batch_size)
    short = {
        "targets": targets,
        "optim.stop_after_epochs": min(epochs, optim.stop_after_epochs or optim.epochs),
        "training.log_every_steps": 1,
        "training.checkpoint_every_epochs": 10_000,
        "training.tensorboard": "false",
        "training.pixel_check_fraction": 0,
        "probe": "null",
    }
    settings = [word for key, value in short.items() for word in ("--set", f"{key}={value}")]
    _run("distill", recipe_name, "--store", store, "--run", run, *changes, *settings)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    seconds = [line["time"]["step_seconds"] - line["time"]["save_seconds"] for line in lines]
    return seconds[min(uncounted, len(seconds) - 1) :]


def _run(*words: str | Path) -> dict[str, Any]:
    """What a command of ours reports as JSON."""
    command = [sys.executable, "-m", "mvd_offline", *map(str, words), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MvdError(f"`mvd-offline {words[0]}` failed: {done.stderr.strip().splitlines()[-1]}")
    report: dict[str, Any] = json.loads(done.stdout)
    return report
