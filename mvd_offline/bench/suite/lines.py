"""What of each benchmark's report goes into the table: a few lines of median and spread."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

Report = Mapping[str, Any]


class Line(NamedTuple):
    """One figure; `low` and `high` are the extremes of its repetitions, and equal the median where there are none."""

    what: str
    median: float
    low: float
    high: float
    unit: str

    @classmethod
    def of(cls, what: str, spread: Mapping[str, float], unit: str, scale: float = 1.0) -> Line:
        return cls(what, scale * spread["median"], scale * spread["low"], scale * spread["high"], unit)

    @classmethod
    def single(cls, what: str, value: float, unit: str) -> Line:
        return cls(what, value, value, value, unit)

    def __str__(self) -> str:
        """Median, and the extremes in brackets, to three digits."""
        spread = "" if self.low == self.high else f" ({_digits(self.low)} to {_digits(self.high)})"
        return f"{_digits(self.median)}{spread} {self.unit}".rstrip()


def lines_of(part: str, report: Report) -> list[Line]:
    """What the table says of a part's JSON report."""
    return list(_LINES[part](report))


def _step(report: Report) -> Iterator[Line]:
    yield Line.of(f"online, {report['batch_size']} clips", report["online_seconds"], "s")
    yield Line.of(f"cached, {report['batch_size']} clips", report["cached_seconds"], "s")
    yield Line.of("cached is faster", report["speedup"], "x")


def _official_like(report: Report) -> Iterator[Line]:
    for name, spread in report["over_official_like"].items():
        yield Line.of(f"{name}: clips/s of official-like", spread, "x")
    for name, spread in (report["processor_over_official_like"] or {}).items():
        yield Line.of(f"{name}: by processor time", spread, "x")
    for name, spread in report["utilization"].items():
        yield Line.of(f"{name}: of the device's peak", spread, "%", 100)


def _pipeline(report: Report) -> Iterator[Line]:
    yield Line.of("from memory", report["memory_clips_per_second"], "clips/s")
    yield Line.of(f"from disk, {report['workers']} loader processes", report["loaded_clips_per_second"], "clips/s")
    yield Line.of("the one of the other", report["of_memory"], "%", 100)
    yield Line.of("waiting for data", report["wait_share"], "%", 100)


def _extraction(report: Report) -> Iterator[Line]:
    yield Line.of("teachers alone", report["teachers_clips_per_second"], "clips/s")
    yield Line.of("extraction", report["extraction_clips_per_second"], "clips/s")
    yield Line.of("the one of the other", report["share"], "%", 100)
    if report["processor_share"] is not None:
        yield Line.of("the same by processor time", report["processor_share"], "%", 100)


def _planner(report: Report) -> Iterator[Line]:
    for name, figure in report["figures"].items():
        if figure["ratio"] is not None:
            yield Line.single(f"{name}: prediction over outcome", 100 * figure["ratio"], "%")


def _clips(report: Report) -> Iterator[Line]:
    yield Line.of("from the video", report["rendered_ms"], "ms")
    yield Line.of(f"baked, {report['codec']}", report["baked_ms"], "ms")
    yield Line.of("baked is faster", report["speedup"], "x")
    yield Line.of("PSNR", report["psnr"], "dB")


def _codecs(report: Report) -> Iterator[Line]:
    for point in report["points"]:
        cost = f"relative error {_digits(100 * point['relative_error']['median'])} %"
        if effect := point["effect"]:
            cost += f", loss {100 * effect['change']:+.2g} %, gradient's cosine {effect['gradient_cosine']:.4g}"
        name = f"{point['column']}, {point['codec']}"
        yield Line.single(name, point["smaller_than_float16"], f"x smaller than float16; {cost}")


def _read(report: Report) -> Iterator[Line]:
    for reading in report["readings"]:
        if reading["workers"] == 0 and reading["codec"] == "float16":
            yield Line.of(f"{reading['cache']}: {reading['reader']}", reading["gigabytes_per_second"], "GB/s")


def _growth(report: Report) -> Iterator[Line]:
    costs = report["costs"]
    for cost in costs:
        if cost["rows"] == max(other["rows"] for other in costs):
            name = f"{cost['part']}, {cost['rows']:,} views"
            yield Line.single(f"{name}: processor time", cost["cpu_seconds"], "s")
            yield Line.single(f"{name}: memory added", cost["peak_mb"] - cost["start_mb"], "MB")


_LINES: Final[Mapping[str, Callable[[Report], Iterator[Line]]]] = {
    "step": _step,
    "official-like": _official_like,
    "pipeline": _pipeline,
    "extraction": _extraction,
    "planner": _planner,
    "clips": _clips,
    "codecs": _codecs,
    "read": _read,
    "growth": _growth,
}


def _digits(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
