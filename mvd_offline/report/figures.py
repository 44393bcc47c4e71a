"""Charts as SVG geometry: paths and cells in the units of a view box. Colours and text are the page's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

HEIGHT: Final = 100
"""Of every chart's view box; its width is the number of bars."""

LEAST_SHARE: Final = 0.12
"""Of a strip's height, for a status that is there at all: one failed row in a thousand must be seen."""


def bars(levels: Sequence[float], only: Sequence[bool] | None = None) -> str:
    """A path of bars, one unit wide, of heights 0 to 1; with `only`, of some of them."""
    shown = only or [True] * len(levels)
    return "".join(
        f"M{position} {HEIGHT}V{HEIGHT * (1 - level):.4g}h1V{HEIGHT}z"
        for position, level in enumerate(levels)
        if shown[position] and level > 0
    )


def linear_levels(values: Sequence[float]) -> list[float]:
    """Heights from 0 to the largest value."""
    largest = max(values, default=0) or 1
    return [value / largest for value in values]


@dataclass(frozen=True)
class LogScale:
    """Heights of positive values on a logarithmic scale, the lowest a little above 0."""

    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> LogScale:
        positive = [value for value in values if value > 0] or [1.0]
        return cls(min(positive), max(positive))

    def level(self, value: float) -> float:
        """0 for values that are not positive."""
        if value <= 0:
            return 0.0
        span = math.log(self.high / self.low) or 1.0
        return 0.04 + 0.96 * (math.log(value / self.low) / span if self.high > self.low else 1.0)


@dataclass(frozen=True)
class Cell:
    """A square of a heat map; `strength` is its colour, 0 to 1."""

    row: int
    column: int
    value: float
    strength: float


def heat_map(matrix: Sequence[Sequence[float]], low: float) -> list[Cell]:
    """The cells of a matrix; colours run from `low` to 1."""
    span = max(1.0 - low, 1e-12)
    return [
        Cell(row, column, value, min(max((value - low) / span, 0.0), 1.0))
        for row, values in enumerate(matrix)
        for column, value in enumerate(values)
    ]


def colour_floor(matrices: Sequence[Sequence[Sequence[float]]]) -> float:
    """Where the colours of several heat maps start, so that they can be compared: a round number below every value."""
    lowest = min((value for matrix in matrices for values in matrix for value in values), default=0.0)
    step = 0.1 if lowest < 0.6 else 0.05 if lowest < 0.9 else 0.02 if lowest < 0.98 else 0.002
    return max(math.floor(lowest / step + 1e-9) * step, -1.0)


def stack(rows: Mapping[str, int]) -> list[dict[str, Any]]:
    """Pieces (`status`, `y`, `height`) of a bar that is HEIGHT high, in the order given, from below.

    Statuses that are rare are drawn larger than they are, at the cost of the others.
    """
    total = sum(rows.values())
    shares = {status: max(count / total, LEAST_SHARE) for status, count in rows.items() if count}
    scale = HEIGHT / (sum(shares.values()) or 1.0)
    pieces, top = [], float(HEIGHT)
    for status, share in shares.items():
        top -= share * scale
        pieces.append({"status": status, "y": round(top, 2), "height": round(share * scale, 2)})
    return pieces
