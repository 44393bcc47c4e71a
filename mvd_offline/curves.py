"""Loss curves of runs, from their `metrics.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from mvd_offline.errors import UsageError


def read_metrics(run: Path) -> list[dict[str, float]]:
    """Lines of a run's `metrics.jsonl`."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        raise UsageError(f"{run} has no metrics.jsonl: give the folder of a run.")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def draw_curves(runs: Mapping[str, Path], out: Path) -> Path:
    """One panel a run: its losses over steps, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(runs), 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, run) in zip(figure.subplots(1, len(runs), squeeze=False)[0], runs.items(), strict=True):
        lines = [line for line in read_metrics(run) if "loss" in line]  # others are of probes
        for loss in sorted(key for key in lines[0] if key.startswith("loss")):
            axes.plot([line["step"] for line in lines], [line[loss] for line in lines], label=loss)
        axes.set_title(name)
        axes.set_xlabel("step")
        axes.legend(frameon=False)
    figure.savefig(out, dpi=120)
    return out
