"""The geometry of a run's curves."""

from __future__ import annotations

import math
import re

import pytest

from mvd_offline.report.plots import POINTS, Curve, linear_ticks, log_ticks, number, plot, thinned


def test_of_many_points_means_are_drawn_with_their_range_as_a_band() -> None:
    steps = range(1, 30_001)
    wild = [float(step % 7) for step in steps]
    thin = thinned(steps, wild, POINTS)
    drawn = plot("wild", [Curve("wild", steps, wild)])

    assert len(thin) == POINTS
    assert thin[-1][0] == 30_000
    assert {(low, high) for _, _, low, high in thin} == {(0.0, 6.0)}
    assert sum(mean for _, mean, _, _ in thin) / POINTS == pytest.approx(3.0, abs=0.01)
    assert drawn is not None
    assert drawn.lines[0].band.endswith("z")
    assert len(drawn.lines[0].path) + len(drawn.lines[0].band) < 12_000


def test_few_points_are_drawn_one_by_one_with_a_gap_where_a_value_is_none() -> None:
    drawn = plot("norm", [Curve("norm", [1, 2, 3, 4], [1.0, 2.0, math.nan, 2.0])])

    assert drawn is not None
    (line,) = drawn.lines
    assert re.findall("[ML]", line.path) == ["M", "L", "M"]
    assert len(line.points) == 3
    assert line.band == ""
    assert line.last == 2.0


def test_a_scale_is_logarithmic_where_values_lie_far_apart_and_no_zero_is_wanted() -> None:
    values = [1.0, 0.1, 0.01]
    far, near = (plot("loss", [Curve("loss", [1, 2, 3], some)]) for some in (values, [1.0, 0.9, 0.8]))
    rate = plot("rate", [Curve("rate", [1, 2, 3], values)], from_zero=True)

    assert far is not None
    assert near is not None
    assert rate is not None
    assert far.y.logarithmic
    assert not near.y.logarithmic
    assert not rate.y.logarithmic
    heights = [far.y.at(value) for value in values]
    assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1], abs=0.2)
    assert rate.y.low == 0.0


def test_what_holds_no_number_is_not_drawn_and_a_constant_is() -> None:
    assert plot("none", [Curve("none", [1, 2], [math.nan, math.nan])]) is None
    flat = plot("flat", [Curve("flat", [1, 2], [0.5, 0.5])])
    assert flat is not None
    assert "nan" not in flat.lines[0].path


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.0, 640.0, [0, 200, 400, 600]),
        (0.0, 0.002, [0, 0.0005, 0.001, 0.0015, 0.002]),
        (0.97, 1.0, [0.97, 0.98, 0.99, 1]),
    ],
)
def test_ticks_are_round(low: float, high: float, ticks: list[float]) -> None:
    assert linear_ticks(low, high) == pytest.approx(ticks)


def test_ticks_of_a_logarithmic_scale_are_few_and_inside() -> None:
    for low, high in ((0.03, 0.9), (1e-8, 1.0), (1.0, 25.0), (0.2, 70.0)):
        found = log_ticks(low, high)
        assert 2 <= len(found) <= 7, (low, high, found)
        assert low <= min(found) <= max(found) <= high * (1 + 1e-9)


def test_numbers_on_an_axis_are_short() -> None:
    values = (0.0, 0.35, 0.0015, 2e-7, 1500.0, 20_000.0, 1.5e6)
    assert [number(value) for value in values] == ["0", "0.35", "1.5e-3", "2e-7", "1500", "20k", "1.5M"]
