"""The geometry of the report's charts."""

from __future__ import annotations

import re

import pytest

from mvd_offline.report.figures import LEAST_SHARE, LogScale, bars, colour_floor, heat_map, linear_levels, stack


def test_bars_stand_on_the_ground_and_the_highest_reaches_the_top() -> None:
    path = bars(linear_levels([0, 5, 10]))
    assert path == "M1 100V50h1V100zM2 100V0h1V100z"  # nothing is drawn for 0


def test_some_bars_alone_lie_where_they_are_among_all() -> None:
    levels = linear_levels([4, 2, 4])
    assert bars(levels, [False, True, False]) in bars(levels)
    assert bars(levels, [False, False, False]) == ""


def test_equal_ratios_are_equal_steps_of_a_logarithmic_scale() -> None:
    scale = LogScale.of([0.1, 1.0, 10.0, 0.0])
    low, middle, high = (scale.level(value) for value in (0.1, 1.0, 10.0))
    assert 0 < low < middle < high == 1
    assert high - middle == pytest.approx(middle - low)
    assert scale.level(0.0) == 0
    assert LogScale.of([2.0, 2.0]).level(2.0) == 1
    assert LogScale.of([0.0]).level(0.0) == 0


def test_colours_run_from_the_floor_to_one() -> None:
    cells = heat_map([[1.0, 0.8], [0.8, 1.0]], 0.8)
    assert [(cell.row, cell.column, cell.strength) for cell in cells[:2]] == [(0, 0, 1.0), (0, 1, 0.0)]
    assert heat_map([[1.0]], 1.0)[0].strength == 0  # nothing to tell apart


@pytest.mark.parametrize("lowest", [-0.35, 0.0, 0.43, 0.8, 0.97, 0.9999])
def test_the_floor_is_a_little_below_the_least_value(lowest: float) -> None:
    floor = colour_floor([[[1.0, lowest]], [[1.0]]])
    assert lowest - 0.1 <= floor <= lowest + 1e-9


def test_a_rare_status_is_seen_and_the_stack_stays_full() -> None:
    pieces = stack({"ok": 999, "timeout": 1, "missing": 0})
    assert [piece["status"] for piece in pieces] == ["ok", "timeout"]
    assert sum(piece["height"] for piece in pieces) == pytest.approx(100, abs=0.02)
    assert pieces[1]["height"] > 85 * LEAST_SHARE
    assert pieces[1]["y"] == pytest.approx(0, abs=0.02)
    assert stack({"ok": 0}) == []


def test_paths_hold_numbers_only() -> None:
    assert re.fullmatch(r"[MVhz0-9. e-]+", bars([1 / 3, 1e-7, 0.999999]))
