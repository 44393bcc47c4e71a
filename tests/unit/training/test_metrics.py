"""What a run writes down: means, lines that survive a crash, and nothing that is not JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from mvd_offline.training.metrics import Meter, MetricsWriter, Stopwatch


def written(folder: Path, resume_step: int, *steps: int) -> None:
    writer = MetricsWriter(folder, resume_step=resume_step, tensorboard=False)
    for step in steps:
        writer.write({"step": step, "loss": step / 3})
    writer.close()


def steps_in(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_meter_gives_means_and_starts_anew() -> None:
    meter = Meter()
    meter.add({"loss": 1.0, "norm": 4.0})
    meter.add({"loss": 2.0, "norm": 0.0})

    assert meter.take() == {"loss": 1.5, "norm": 2.0}
    meter.add({"loss": 5.0})
    assert meter.take() == {"loss": 5.0}
    assert meter.take() == {}


def test_a_meter_goes_on_from_sums_that_went_through_json() -> None:
    values = [0.1, 0.2, 0.3, 1e-17]
    whole, first = Meter(), Meter()
    for value in values:
        whole.add({"loss": value})
    for value in values[:2]:
        first.add({"loss": value})

    second = Meter(json.loads(json.dumps(first.sums)), first.count)
    for value in values[2:]:
        second.add({"loss": value})

    assert second.take() == whole.take()


def test_lines_after_the_checkpoint_are_cut_off_and_written_again(tmp_path: Path) -> None:
    written(tmp_path, 0, 2, 4, 6, 8)
    written(tmp_path, 5, 6, 8, 10)

    assert steps_in(tmp_path) == [2, 4, 6, 8, 10]


def test_a_torn_last_line_is_cut_off(tmp_path: Path) -> None:
    written(tmp_path, 0, 2, 4)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')

    written(tmp_path, 4, 6)

    assert steps_in(tmp_path) == [2, 4, 6]


def test_a_fresh_start_in_a_folder_of_lost_work_begins_with_an_empty_file(tmp_path: Path) -> None:
    written(tmp_path, 0, 2, 4)
    written(tmp_path, 0, 2)
    assert steps_in(tmp_path) == [2]


def test_each_line_is_on_disk_when_it_is_written(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, resume_step=0, tensorboard=False)
    writer.write({"step": 1, "loss": 0.5})
    assert steps_in(tmp_path) == [1]
    writer.close()


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_number_that_json_does_not_know_is_written_as_null(tmp_path: Path, value: float) -> None:
    writer = MetricsWriter(tmp_path, resume_step=0, tensorboard=True)
    writer.write({"step": 1, "grad_norm": value, "time": {"step_seconds": 1.0}})
    writer.close()

    text = (tmp_path / "metrics.jsonl").read_text()
    assert text == '{"step": 1, "grad_norm": null, "time": {"step_seconds": 1.0}}\n'


def test_a_stopwatch_attributes_all_time_to_phases() -> None:
    watch = Stopwatch()
    watch.lap("data")
    watch.lap("compute")
    watch.lap("data")

    seconds = watch.take()

    assert set(seconds) == {"data", "compute"}
    assert all(value >= 0.0 for value in seconds.values())
    assert watch.take() == {}
