"""The page of a run: what it was, what it did and what came of it, from its folder alone."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mvd_offline.errors import UsageError
from mvd_offline.examples.files import Film, cells_of, read_examples
from mvd_offline.recipe import dump_recipe
from mvd_offline.recipe.comparing import base_of, value_in_words
from mvd_offline.report import frame
from mvd_offline.report.next_steps import next_steps
from mvd_offline.report.plots import Curve, Plot, plot
from mvd_offline.runs.folder import RunFolder
from mvd_offline.runs.metrics import PHASES, PROBE, Metrics
from mvd_offline.shards.atomic import publish_bytes
from mvd_offline.training.run import PAGE_FILE, identity_in_words
from mvd_offline.units import device_hours, human_duration

_PICTURE_BYTES: Final = 1_000_000
"""A larger picture of confusions is named on the page, not shown."""
_PIXELATED: Final = 100
"""Cells of fewer pixels across are enlarged without smoothing."""
_CLASSES_SHOWN = 6


@dataclass(frozen=True)
class RunPage:
    """The page that was written."""

    page: Path
    page_bytes: int
    finished: bool
    step: int


def write_run_report(run: Path, out: Path | None = None) -> RunPage:
    """Write the page of a run, whether or not it is at its end; the same folder gives the same page.

    Args:
        out: HTML file to write; by default `report.html` in the run.

    Raises:
        UsageError: no run, or `out` cannot be a file there.
    """
    out = run / PAGE_FILE if out is None else out
    found = RunFolder.read(run)
    if out.is_dir() or not out.parent.is_dir():
        raise UsageError(f"{out} cannot be written: give a file in a folder that exists as --out.")
    page = render_run(found).encode()
    publish_bytes(out, page)
    return RunPage(out, len(page), found.finished, found.metrics.last_step)


def render_run(run: RunFolder) -> str:
    """The page's HTML."""
    metrics = run.metrics
    base = base_of(run.recipe)
    return frame.render_page(
        "run_page.html",
        name=run.path.resolve().name,
        run=run,
        base=base,
        recipe_text=dump_recipe(run.recipe),
        plots=_plots(metrics, _unit(run)),
        palette=list(range(1, 7)),
        phases=_phases(metrics),
        step_seconds=metrics.step_seconds(),
        launches=_launches(run),
        device_time=_device_time(run),
        hours=_hours(run.hours),
        identity=_identity(run),
        probes=_probes(metrics),
        tests=[_test(run, place) for place in run.evaluations],
        examples=_examples(run.path),
        following=next_steps(run),
        words=value_in_words,
        duration=human_duration,
        device_hours=device_hours,
        folder=shlex.quote(str(run.path)),
    )


# ---- curves and times --------------------------------------------------------------------------------------------


def _unit(run: RunFolder) -> str:
    return "videos" if run.recipe.kind == "finetune" else "clips"


def _plots(metrics: Metrics, unit: str) -> list[Plot]:
    """What a training's lines hold, over its steps."""
    losses = metrics.names("loss")
    share = "data_wait_share"
    wanted = [
        plot("Loss", [_curve(metrics, name) for name in losses]),
        plot("Accuracy on its batches", [_curve(metrics, name) for name in metrics.names("accuracy")]),
        plot("Learning rate", [_curve(metrics, "lr")], from_zero=True),
        plot("Gradient norm", [_curve(metrics, "grad_norm")]),
        plot(f"Throughput, {unit} a second", [_curve(metrics, "samples_per_second")], from_zero=True),
        plot("Waiting for data, % of the time", [_curve(metrics, share, factor=100.0)], from_zero=True),
    ]
    return [one for one in wanted if one is not None]


def _curve(metrics: Metrics, name: str, *, label: str = "", factor: float = 1.0) -> Curve:
    series = metrics.series(name)
    return Curve(label or name, series.step, [factor * value for value in series.values])


@dataclass(frozen=True)
class Phase:
    """A piece of the bar of a step: `start` and `share` of its whole, in 0 to 1."""

    name: str
    seconds: float
    start: float
    share: float


def _phases(metrics: Metrics) -> list[Phase]:
    seconds = metrics.phase_seconds()
    total = sum(seconds.values())
    found, start = [], 0.0
    for name in PHASES if total else ():
        share = seconds[name] / total
        found.append(Phase(name, seconds[name], start, share))
        start += share
    return found


def _launches(run: RunFolder) -> list[tuple[int, str]]:
    """After which step each launch began, and on what; not those that found nothing left to do."""
    did = [one for one in run.launches if one["after_step"] < run.metrics.last_step] or run.launches[-1:]
    return [(one["after_step"], f"{one['processes']} × {one['device']}") for one in did]


def _device_time(run: RunFolder) -> str | None:
    """Of all devices together, where there were several."""
    several = any(one["processes"] > 1 for one in run.launches)
    return f"{device_hours(run.training['device_seconds'])} in all" if run.training and several else None


def _hours(hours: Mapping[str, Any] | None) -> list[tuple[str, Mapping[str, Any]]]:
    if hours is None:
        return []
    rows = [(f"pretraining of the {name} teacher", figure) for name, figure in hours["teachers"].items()]
    if hours["teachers"]:
        rows += [("extraction of its targets", hours["extraction"]), ("training on the store", hours["cached"])]
    return [*rows, ("training with teachers beside it" if hours["teachers"] else "training", hours["online"])]


def _identity(run: RunFolder) -> list[tuple[str, str]]:
    """Names and values of what the run depends on, teachers' files included."""
    found = [(identity_in_words(field), value) for field, value in run.identity.items()]
    if run.recipe.kind == "distill":
        found += [(f"file of the {name} teacher", run.recipe.teachers[name].weights) for name in run.recipe.teachers]
        if run.recipe.student.init is not None:
            found.append(("file of the starting weights", str(run.recipe.student.init)))
    return found


# ---- results -----------------------------------------------------------------------------------------------------


def _probes(metrics: Metrics) -> dict[str, Any] | None:
    """Accuracies of a student's probes: a row for each step, and curves of those that count the first answer."""
    names = [name for name in metrics.names(PROBE) if "_top" in name]  # unread clips are counted there, too
    lines = [line for line in metrics.lines if any(name in line.values for name in names)]
    if not lines:
        return None
    first = [name for name in names if name.endswith("_top1")] or names
    labels = {name: name.removeprefix(PROBE).replace("_", " ") for name in names}
    return {
        "names": [labels[name] for name in names],
        "rows": [(line.step, [line.values.get(name, math.nan) for name in names]) for line in lines],
        "plot": plot("Probes, top-1 in %", [_curve(metrics, name, label=labels[name], factor=100.0) for name in first]),
    }


def _test(run: RunFolder, place: str) -> dict[str, Any]:
    """A result of `evaluate`, with its best and worst classes and the picture of its confusions."""
    result = run.evaluations[place]
    classes = [row for row in result.get("classes", ()) if row["videos"]]
    classes.sort(key=lambda row: (-row["top1"] / row["videos"], row["label"]))
    few = len(classes) <= 2 * _CLASSES_SHOWN
    picture = run.path / place / "confusion.png"
    shown = picture.is_file() and picture.stat().st_size <= _PICTURE_BYTES
    return {
        "name": "moving average of the weights" if place == "ema" else "weights at the end",
        "result": result,
        "classes": {"": classes} if few else {"best": classes[:_CLASSES_SHOWN], "worst": classes[-_CLASSES_SHOWN:]},
        "confusion": frame.data_uri("png", picture.read_bytes()) if shown else None,
        "file": str(picture) if picture.is_file() else None,
    }


def _examples(run: Path) -> dict[str, Any] | None:
    """What is in the run's `examples/`, with its pictures."""
    found = read_examples(run)
    if found is None:
        return None
    return {
        "lead": found.lead,
        "examples": [(example, [_film(run, film) for film in example.films]) for example in found.examples],
    }


def _film(run: Path, film: Film) -> dict[str, Any]:
    cells = cells_of(run, film)
    width = int.from_bytes(cells[0][16:20], "big")  # as the head of a PNG has it
    return {
        "film": film,
        "cells": [frame.data_uri("png", cell) for cell in cells],
        "small": width < _PIXELATED,
    }
