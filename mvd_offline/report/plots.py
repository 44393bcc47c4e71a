"""Curves over steps as SVG geometry: axes with round numbers, and lines thinned to what a screen can show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

WIDTH: Final = 360
HEIGHT: Final = 210
"""Of a plot's view box."""
LEFT, RIGHT, TOP, BOTTOM = 44, 14, 10, 26
"""What its axes take of it."""

POINTS: Final = 240
"""Most points of a line; of more, each is the mean of some, with a band from their least to their largest."""
LOG_RATIO: Final = 20.0
"""Positive values that lie further apart than this are shown on a logarithmic scale."""
_TICKS = 5


@dataclass(frozen=True)
class Tick:
    """A number on an axis; `at` in units of the view box."""

    at: float
    text: str


@dataclass(frozen=True)
class Axis:
    """A range of values and where they lie.

    Attributes:
        start, end: of the view box, for `low` and `high`.
    """

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        low, high = (math.log(self.low), math.log(self.high)) if self.logarithmic else (self.low, self.high)
        place = math.log(max(value, self.low)) if self.logarithmic else value
        return round(self.start + (self.end - self.start) * (place - low) / ((high - low) or 1.0), 1)

    @property
    def ticks(self) -> list[Tick]:
        values = log_ticks(self.low, self.high) if self.logarithmic else linear_ticks(self.low, self.high)
        return [Tick(self.at(value), number(value)) for value in values]


@dataclass(frozen=True)
class PlotLine:
    """A line of a plot: SVG paths; `band` is empty where nothing was thinned out.

    Attributes:
        last: what it ends at.
    """

    name: str
    path: str
    band: str
    points: tuple[tuple[float, float], ...]
    last: float


@dataclass(frozen=True)
class Plot:
    """A plot of one or several lines over the same axis."""

    title: str
    note: str
    x: Axis
    y: Axis
    lines: tuple[PlotLine, ...]


@dataclass(frozen=True)
class Curve:
    """What is drawn as a line: NaN leaves a gap."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


def plot(title: str, curves: Sequence[Curve], *, note: str = "", from_zero: bool = False) -> Plot | None:
    """Lines on common axes; None where no curve has a finite value.

    Args:
        from_zero: the axis begins at 0, and is never logarithmic.
    """
    shown = [curve for curve in curves if any(math.isfinite(value) for value in curve.y)]
    if not shown:
        return None
    values = [value for curve in shown for value in curve.y if math.isfinite(value)]
    places = [float(value) for curve in shown for value in curve.x]
    x = Axis(min(0.0, *places), max(places) or 1.0, LEFT, WIDTH - RIGHT)
    y = _y_axis(values, from_zero)
    return Plot(title, note, x, y, tuple(_line(curve, x, y) for curve in shown))


def _y_axis(values: Sequence[float], from_zero: bool) -> Axis:
    low, high = min(values), max(values)
    bottom, top = HEIGHT - BOTTOM, TOP
    if not from_zero and low > 0 and high / low > LOG_RATIO:
        return Axis(low / 1.1, high * 1.1, bottom, top, logarithmic=True)
    low = min(low, 0.0) if from_zero else low
    room = (high - low) or abs(high) or 1.0
    return Axis(low if from_zero else low - 0.04 * room, high + 0.04 * room, bottom, top)


def _line(curve: Curve, x: Axis, y: Axis) -> PlotLine:
    thin = thinned(curve.x, curve.y, POINTS)
    pieces, drawing = [], False
    for place, mean, _, _ in thin:
        if math.isnan(mean):
            drawing = False
            continue
        pieces.append(f"{'L' if drawing else 'M'}{x.at(place):g} {y.at(mean):g}")
        drawing = True
    band = ""
    if len(curve.x) > POINTS:
        whole = [(place, low, high) for place, mean, low, high in thin if not math.isnan(mean)]
        upper = "L".join(f"{x.at(place):g} {y.at(high):g}" for place, _, high in whole)
        lower = "L".join(f"{x.at(place):g} {y.at(low):g}" for place, low, _ in reversed(whole))
        band = f"M{upper}L{lower}z"
    dots = tuple((x.at(p), y.at(m)) for p, m, _, _ in thin if not math.isnan(m)) if len(thin) <= 12 else ()
    last = next(value for value in reversed(curve.y) if math.isfinite(value))
    return PlotLine(curve.name, "".join(pieces), band, dots, last)


def thinned(x: Sequence[float], y: Sequence[float], most: int) -> list[tuple[float, float, float, float]]:
    """At most `most` points (x, mean, least, largest) of a curve, each of as many neighbours; the last x stays.

    A point of values none of which is finite is NaN.
    """
    groups = min(len(x), most)
    found = []
    for group in range(groups):
        start, end = group * len(x) // groups, (group + 1) * len(x) // groups
        values = [value for value in y[start:end] if math.isfinite(value)]
        mean = sum(values) / len(values) if values else math.nan
        found.append((x[end - 1], mean, min(values, default=math.nan), max(values, default=math.nan)))
    return found


# ---- numbers on axes ---------------------------------------------------------------------------------------------


def linear_ticks(low: float, high: float) -> list[float]:
    """Round numbers within a range, up to six of them: multiples of 1, 2 or 5 times a power of ten."""
    span = (high - low) or 1.0
    rough = span / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [count * step for count in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten within a range, thinned to seven; of a short range also 2 and 5 times these."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1, 2, 5) if last - first <= 2 else (1, 3) if last - first <= 3 else (1,)
    every = math.ceil((last - first) / (_TICKS + 1)) or 1
    found = [factor * 10.0**power for power in range(first, last + 1, every) for factor in factors]
    return [value for value in found if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]


def number(value: float) -> str:
    """A number in a few letters.

    >>> [number(value) for value in (0.0, 0.35, 0.0015, 1500.0, 20000.0, 1.5e6)]
    ['0', '0.35', '1.5e-3', '1500', '20k', '1.5M']
    """
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.4g}M" if size < 1e9 else f"{value:.2g}"
    if size >= 10_000:
        return f"{value / 1000:.4g}k"
    if size and size < 0.01:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.4g}"
