"""What follows from rates: made-up ones, whose sums can be done in the head."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_runs import make_videos, once, plan_small, small_recipe

from mvd_offline.bench.planner import PlannerTruth, Truth, _figures
from mvd_offline.measuring import Measured
from mvd_offline.planner import estimate
from mvd_offline.shards import Store, open_store

RATES = Measured(
    machine={"device": "made up"},
    cores=4,
    computing_cores=0,
    views=8,
    render_seconds=0.4,
    teacher_seconds={"image": 0.2, "video": 0.3},
    writing_seconds=0.01,
    row_bytes={"image": 1000, "video": 2000},
    loading_seconds=0.1,
    read_bytes_per_second=1e9,
    micro_batch=2,
    micro_seconds=0.4,
    update_seconds=0.8,
)
"""Of a GPU, which leaves all cores to decoding."""


@pytest.fixture
def store(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Planned and empty: 24 views of 12 videos in 2 groups."""
    catalog = once(tmp_path_factory, "videos", make_videos) / "catalog.parquet"
    return open_store(plan_small(catalog, tmp_path / "store"), sealed=False)


@pytest.mark.parametrize(
    ("changes", "computing", "loading", "processes", "seconds"),
    [
        ({}, 1.0, 0.5, 0, 1.5),
        ({}, 1.0, 0.5, 1, 1.0),
        ({}, 1.0, 3.0, 2, 1.5),
        ({}, 0.1, 4.0, 99, 1.0),
        ({"computing_cores": 4}, 1.0, 2.0, 4, 1.5),
        ({"computing_cores": 1}, 1.0, 2.0, 2, 1.0),
    ],
    ids=["in turn", "hidden", "loaders", "no more loaders than cores", "shared cores", "a core of its own"],
)
def test_a_clip_takes_what_all_wait_for(
    changes: dict[str, Any], computing: float, loading: float, processes: int, seconds: float
) -> None:
    assert replace(RATES, **changes).overlapped(computing, loading, processes) == pytest.approx(seconds)


def test_an_extraction_waits_for_teachers_decoding_or_the_disk() -> None:
    assert RATES.extraction_seconds() == pytest.approx(0.2 + 0.3)
    assert replace(RATES, render_seconds=3.99).extraction_seconds() == pytest.approx(4.0 / 4)
    assert replace(RATES, writing_seconds=2.0).extraction_seconds() == pytest.approx(2.0), "one thread writes"
    on_cpu = replace(RATES, computing_cores=4)
    assert on_cpu.extraction_seconds() == pytest.approx(0.5 + 0.41 / 4)


def test_a_step_is_its_micro_batches_and_one_update() -> None:
    # 4 clips are 2 micro-batches.
    assert 4 * RATES.student_seconds(batch_size=4) == pytest.approx(2 * 0.4 + 0.8)


def test_the_hours_of_a_store_follow_from_measured_rates(store: Store) -> None:
    recipe = small_recipe({"training.workers": 1})
    found = estimate(recipe, store, measured=RATES)

    # 12 clips an epoch, 4 epochs.
    cached, online = 0.4, 0.4 + 0.5
    hours = {name: figure["device_seconds"] for name, figure in found.to_json()["hours"].items() if name != "teachers"
             and isinstance(figure, dict)}  # fmt: skip
    assert hours == {
        "extraction": pytest.approx(24 * 0.5),
        "cached": pytest.approx(48 * cached),
        "online": pytest.approx(48 * online),
    }
    assert found.hours.cached.how == "from what was measured on this machine, made up"
    assert found.sustained_tflops is None
    assert found.step_seconds == pytest.approx(4 * cached)
    assert found.clips_per_second == pytest.approx(1 / cached)
    assert found.bytes_by_codec["float32"] == 24 * 3000
    assert found.read_megabytes_per_second == pytest.approx(3000 / cached / 1e6)
    assert found.break_even_epoch == pytest.approx(24 * 0.5 / (12 * 0.5))


def test_a_training_that_decoding_limits_is_said_to_gain_nothing(store: Store) -> None:
    slow = replace(RATES, render_seconds=2.0, loading_seconds=2.0)
    found = estimate(small_recipe({"training.workers": 1}), store, measured=slow)

    assert found.step_seconds == pytest.approx(4 * 2.0)
    assert found.break_even_epoch is None
    assert estimate(small_recipe({"training.workers": 0}), store, measured=slow).step_seconds > found.step_seconds


def test_predictions_are_held_against_what_came(store: Store) -> None:
    recipe = small_recipe({"training.workers": 1})
    plan = estimate(recipe, store, measured=RATES).to_json()
    extraction = {
        "elapsed_seconds": 17.0, "seconds": {"starting": 2.0}, "rows": {"ok": 24}, "bytes_written": 90_000
    }  # fmt: skip
    figures = _figures(recipe, plan, extraction, {"cached": 2.0, "online": 4.0})

    # 3 steps an epoch, each of which saves 2 s; the extraction took 15 s.
    assert figures == {
        "bytes": Truth(72_000, 90_000),
        "extraction seconds": Truth(pytest.approx(12.0), 15.0),
        "step seconds": Truth(pytest.approx(1.6), 2.0),
        "online step seconds": Truth(pytest.approx(3.6), 4.0),
        "break-even epoch": Truth(pytest.approx(2.0), pytest.approx(2.5)),
    }
    assert figures["bytes"].ratio == pytest.approx(0.8)
    truth = PlannerTruth("small", 24, 3, figures, 1.0, RATES.to_json(), {})
    assert truth.to_json()["figures"]["bytes"] == {"predicted": 72_000, "outcome": 90_000, "ratio": pytest.approx(0.8)}
    assert Truth(None, 1.0).ratio is None
