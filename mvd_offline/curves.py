"""Curves of several runs in one figure, and as a table, from their `metrics.jsonl`."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mvd_offline.errors import UsageError
from mvd_offline.lettering import literal
from mvd_offline.report.plots import LOG_RATIO, log_ticks, number
from mvd_offline.runs.folder import RunFolder
from mvd_offline.runs.metrics import PROBE, Series, XAxis, smoothed
from mvd_offline.shards.atomic import publish_bytes
from mvd_offline.training.run import METRICS_FILE

_COLUMNS, _WIDTH, _HEIGHT, _DPI = 4, 3.7, 2.7, 120
_COMMON: Final = {
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "samples_per_second": "samples a second",
    "data_wait_share": "share of the time waiting for data",
}
_FROM_ZERO: Final = frozenset({"lr", "samples_per_second", "data_wait_share"})


@dataclass(frozen=True)
class Panel:
    """One value of the runs that have it. Losses are of runs of one kind: those of others mean something else."""

    title: str
    name: str
    runs: tuple[str, ...]

    @property
    def from_zero(self) -> bool:
        return self.name in _FROM_ZERO


def read_runs(runs: Mapping[str, Path]) -> dict[str, RunFolder]:
    """Runs by name.

    Raises:
        UsageError: no run, or one that has written no step down yet.
    """
    found = {name: RunFolder.read(path) for name, path in runs.items()}
    for run in found.values():
        if not run.metrics.training:
            raise UsageError(f"{run.path} has no step in {METRICS_FILE} yet: leave it out, or wait for its first line.")
    return found


def panels_of(runs: Mapping[str, RunFolder]) -> list[Panel]:
    """Losses and accuracies of each kind of training, probes, then what all trainings have."""
    found = []
    methods = list(dict.fromkeys(run.method for run in runs.values()))
    for method in methods:
        mine = {name: run for name, run in runs.items() if run.method == method}
        names = dict.fromkeys(value for run in mine.values() for value in run.metrics.names("loss", "accuracy"))
        for value in names:
            having = tuple(name for name, run in mine.items() if value in run.metrics.names())
            found.append(Panel(value if len(methods) == 1 else f"{method}: {value}", value, having))
    probes = dict.fromkeys(value for run in runs.values() for value in run.metrics.names(PROBE))
    shared = {value: value for value in probes if not value.endswith("seconds")} | _COMMON
    for value, title in shared.items():
        having = tuple(name for name, run in runs.items() if run.metrics.series(value).values)
        if having:
            found.append(Panel(title, value, having))
    return found


def draw_curves(runs: Mapping[str, Path], out: Path, *, axis: XAxis = "step", smooth: float = 0.0) -> Path:
    """A figure as PNG: a panel for each value, a colour for each run.

    Args:
        runs: folders by the names that they have in the figure.
        smooth: weight of what was in a moving average, 0 to below 1; the lines themselves are drawn faintly behind it.

    Raises:
        UsageError: as `read_runs`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    found = read_runs(runs)
    panels, colours = panels_of(found), _colours(list(found))
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(_WIDTH * columns, _HEIGHT * rows + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    places = figure.subplots(rows, columns, squeeze=False).flat
    for panel, axes in zip(panels, places, strict=False):
        for name in panel.runs:
            _draw(axes, found[name].metrics.series(panel.name), axis, smooth, colours[name])
        _finish(axes, panel, axis, [found[name].metrics.series(panel.name) for name in panel.runs])
    for axes in list(places):
        axes.set_axis_off()
    handles = [Line2D([], [], color=colour, label=literal(name)) for name, colour in colours.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(6, len(handles)), frameon=False)
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=_DPI)
    publish_bytes(out, sink.getvalue())
    return out


def write_curves_csv(runs: Mapping[str, Path], out: Path) -> Path:
    """Every line of the runs as a row: run, step, epoch, hours, then values; empty where a line has none.

    Raises:
        UsageError: as `read_runs`.
    """
    found = read_runs(runs)
    names = list(
        dict.fromkeys(
            name for run in found.values() for line in run.metrics.lines for name in (*line.values, *line.time)
        )
    )
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["run", "step", "epoch", "hours", *names])
    for run_name, run in found.items():
        for line in run.metrics.lines:
            values = {**line.time, **line.values}
            row = [values.get(name, math.nan) for name in names]
            place = [run_name, line.step, f"{line.epoch:.6g}", f"{line.hours:.6g}"]
            table.writerow([*place, *("" if math.isnan(value) else repr(value) for value in row)])
    publish_bytes(out, text.getvalue().encode())
    return out


def _draw(axes: Any, series: Series, axis: XAxis, smooth: float, colour: Any) -> None:
    x = series.over(axis)
    dots = {"marker": "o", "markersize": 3} if len(x) <= 12 else {}
    # A learning rate is no measurement, and probes are few.
    if smooth and series.name != "lr" and not series.name.startswith(PROBE):
        axes.plot(x, series.values, color=colour, alpha=0.25, linewidth=0.8)
        axes.plot(x, smoothed(series.values, smooth), color=colour, linewidth=1.5, **dots)
    else:
        axes.plot(x, series.values, color=colour, linewidth=1.3, **dots)


def _finish(axes: Any, panel: Panel, axis: XAxis, drawn: Sequence[Series]) -> None:
    axes.set_title(panel.title, fontsize=10)
    axes.set_xlabel("hours of training" if axis == "hours" else axis, fontsize=9)
    axes.set_xlim(left=0.0)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    values = [value for series in drawn for value in series.values if math.isfinite(value)]
    if panel.from_zero:
        axes.set_ylim(bottom=0.0)
    elif panel.name.startswith(("loss", "grad_norm")) and values and min(values) > 0:
        low, high = min(values), max(values)
        if high / low > LOG_RATIO:
            axes.set_yscale("log")
            axes.set_yticks(ticks := log_ticks(low, high), map(number, ticks))
            axes.yaxis.minorticks_off()


def _colours(names: Sequence[str]) -> dict[str, Any]:
    """As far apart as so many colours can be."""
    from matplotlib import colormaps

    if len(names) <= 10:
        return {name: colormaps["tab10"](place) for place, name in enumerate(names)}
    return {name: colormaps["turbo"](0.05 + 0.9 * place / (len(names) - 1)) for place, name in enumerate(names)}
