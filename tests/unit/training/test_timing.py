"""Where the time of a run goes."""

from __future__ import annotations

import time

import pytest
import torch

from mvd_offline.training.timing import PHASES, Timing


def busy(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def test_a_line_gives_the_seconds_of_a_step_by_phase_and_its_rates() -> None:
    timing = Timing(torch.device("cpu"), step=10, batch_size=8)
    for _ in range(2):
        for phase in PHASES:
            busy(0.02 if phase == "data" else 0.005)
            timing.lap(phase)

    line = timing.line(12)

    phases = {phase: line[f"{phase}_seconds"] for phase in PHASES}
    assert sum(phases.values()) == pytest.approx(line["step_seconds"])
    assert phases["data"] > 0.02 > phases["forward"] > 0.005
    assert line["data_wait_share"] == pytest.approx(phases["data"] / line["step_seconds"])
    assert line["samples_per_second"] == pytest.approx(8 / line["step_seconds"])


def test_each_line_begins_anew_and_the_summary_has_all_but_the_saving() -> None:
    timing = Timing(torch.device("cpu"), step=0, batch_size=4)
    for step in (1, 2):
        for phase in ("data", "forward", "save"):
            busy(0.01)
            timing.lap(phase)
        line = timing.line(step)
        assert 0.01 <= line["save_seconds"] < 0.1

    summary = timing.summary(2, {"loss": 1.0}, "videos")

    assert (summary.steps, summary.last, summary.unit) == (2, {"loss": 1.0}, "videos")
    assert 0.02 <= summary.step_seconds < 2 * line["step_seconds"]
    assert summary.step_seconds < summary.seconds / 2
    assert 0.2 < summary.data_wait_share < 0.8
