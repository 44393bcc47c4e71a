"""What is made of a run's lines: series, epochs, hours, means."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from mvd_offline.runs.metrics import Metrics, smoothed


def line(step: int, epoch: float, seconds: float, **values: Any) -> dict[str, Any]:
    return {"step": step, "epoch": epoch, **values, "time": {"step_seconds": seconds, "data_seconds": seconds / 4}}


def test_hours_add_up_over_the_steps_between_lines() -> None:
    metrics = Metrics.of([line(2, 0.4, 36.0), line(6, 1.2, 9.0), line(10, 2.0, 9.0)])

    assert [one.epoch for one in metrics.lines] == [0.4, 1.2, 2.0]
    assert [one.hours for one in metrics.lines] == pytest.approx([0.02, 0.03, 0.04])
    assert metrics.step_seconds() == pytest.approx(14.4)
    assert metrics.phase_seconds()["data"] == pytest.approx(3.6)
    assert metrics.phase_seconds()["forward"] == 0.0


def test_a_probes_line_is_no_step_of_the_training() -> None:
    probe = {"step": 5, "epoch": 0.5, "probe/knn_top1": 0.5, "time": {"probe/seconds": 3.0}}
    metrics = Metrics.of([line(5, 0.5, 1.0, loss=2.0), probe, line(10, 1.0, 1.0, loss=1.0)])

    assert [one.step for one in metrics.training] == [5, 10]
    assert metrics.names("probe/") == ["probe/knn_top1"]
    assert metrics.series("probe/knn_top1").step == (5,)
    assert metrics.series("loss").values == (2.0, 1.0)
    assert metrics.lines[1].hours == metrics.lines[0].hours


def test_a_torn_last_line_and_values_that_are_not_finite_are_no_error(tmp_path: Path) -> None:
    lines = [json.dumps(line(1, 0, 1.0, grad_norm=None)), json.dumps(line(2, 0, 1.0, grad_norm=3.0)), '{"step": 3, "ep']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    series = Metrics.read(tmp_path).series("grad_norm")

    assert series.step == (1, 2)
    assert math.isnan(series.values[0])
    assert series.last == 3.0
    assert Metrics.read(tmp_path / "nothing").last_step == 0


def test_smoothing_begins_at_the_first_value_and_passes_over_gaps() -> None:
    assert smoothed([4.0, 4.0, 4.0], 0.9) == pytest.approx([4.0] * 3)
    assert smoothed([1.0, math.nan, 3.0], 0.5) == pytest.approx([1.0, 1.0, 7 / 3])
    assert math.isnan(smoothed([math.nan, 1.0], 0.5)[0])
