"""The results as pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mvd_offline.lettering import literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Report = Mapping[str, Any]


def draw_plots(out: Path, reports: Mapping[str, Report]) -> dict[str, str]:
    """PNG files in a folder; their names by benchmark. Not every benchmark has one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made: dict[str, str] = {}
    for name, report in reports.items():
        if name in _PLOTS:
            figure = Figure(figsize=(7, 4), layout="constrained")
            FigureCanvasAgg(figure)
            _PLOTS[name](figure.subplots(), report)
            figure.savefig(out / f"{name}.png", dpi=120)
            made[name] = f"{name}.png"
    return made


def _official_like(axes: Axes, report: Report) -> None:
    _bars(axes, report["clips_per_second"], "clips/s")
    axes.set_title(f"{literal(report['recipe'])}, {report['batch_size']} clips a step, precision {report['precision']}")


def _codecs(axes: Axes, report: Report) -> None:
    points = report["points"]
    for column in dict.fromkeys(point["column"] for point in points):
        own = [point for point in points if point["column"] == column]
        fixed = [point for point in own if not point["codec"].startswith("klt")]
        learnt = [point for point in own if point["codec"].startswith("klt")]
        (line,) = axes.plot(*_rate_and_error(learnt), marker="o", label=f"{column}: klt")
        exact = [point for point in fixed if point["relative_error"]["median"] > 0]
        axes.plot(*_rate_and_error(exact), "s", color=line.get_color(), fillstyle="none", label=f"{column}: others")
        for point in exact:
            place = (point["smaller_than_float16"], point["relative_error"]["median"])
            axes.annotate(point["codec"], place, xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.set(xscale="log", yscale="log", xlabel="times smaller than float16", ylabel="relative error (L2)")
    axes.legend(frameon=False)


def _rate_and_error(points: list[Report]) -> tuple[list[float], list[float]]:
    return [one["smaller_than_float16"] for one in points], [one["relative_error"]["median"] for one in points]


def _read(axes: Axes, report: Report) -> None:
    readings = [one for one in report["readings"] if one["codec"] == "float16" and one["workers"] == 0]
    rates = {f"{one['cache']}: {one['reader']}": one["gigabytes_per_second"] for one in readings}
    _bars(axes, rates, "GB/s, one process")


def _growth(axes: Axes, report: Report) -> None:
    for part in dict.fromkeys(cost["part"] for cost in report["costs"]):
        costs = [cost for cost in report["costs"] if cost["part"] == part]
        axes.plot([one["rows"] for one in costs], [one["cpu_seconds"] for one in costs], marker="o", label=part)
    axes.set(xscale="log", yscale="log", xlabel="views", ylabel="processor time, s")
    axes.legend(frameon=False)


def _clips(axes: Axes, report: Report) -> None:
    _bars(axes, {"from the video": report["rendered_ms"], f"baked, {report['codec']}": report["baked_ms"]}, "ms a clip")


def _bars(axes: Axes, spreads: Mapping[str, Mapping[str, float]], label: str) -> None:
    """Medians as bars, extremes as whiskers, the first on top."""
    middle = [spread["median"] for spread in spreads.values()]
    reach = [[spread["median"] - spread["low"] for spread in spreads.values()]]
    reach += [[spread["high"] - spread["median"] for spread in spreads.values()]]
    axes.barh(list(spreads), middle, xerr=reach, color="tab:blue", ecolor="black", capsize=3)
    axes.invert_yaxis()
    axes.set_xlabel(label)


_PLOTS: Final[Mapping[str, Callable[[Axes, Report], None]]] = {
    "official-like": _official_like,
    "codecs": _codecs,
    "read": _read,
    "growth": _growth,
    "clips": _clips,
}
