"""`bench growth` measures the real thing, and says all of it. How fast anything is, is not tested."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mvd_offline.bench import growth_data as data
from mvd_offline.bench.growth import PARTS, Cost, Growth, measure_growth
from mvd_offline.bench.suite.lines import lines_of
from mvd_offline.cli.main import main
from mvd_offline.errors import UsageError
from mvd_offline.training.order import epoch_order
from mvd_offline.video.views import Plan

ROWS = 1000


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the command writes, of one size."""
    out = tmp_path_factory.mktemp("growth") / "out"
    assert main(["bench", "growth", "--rows", str(ROWS), "--out", str(out)]) == 0
    assert [path.name for path in out.iterdir()] == ["growth.json"]
    found: dict[str, Any] = json.loads((out / "growth.json").read_text(encoding="ascii"))
    return found


def facts(report: dict[str, Any], part: str) -> dict[str, Any]:
    (cost,) = (cost for cost in report["costs"] if cost["part"] == part)
    found: dict[str, Any] = cost["facts"]
    return found


def test_every_part_has_its_time_and_its_memory(report: dict[str, Any]) -> None:
    assert [(cost["part"], cost["rows"]) for cost in report["costs"]] == [(part, ROWS) for part in PARTS]
    for cost in report["costs"]:
        assert cost["seconds"] > 0
        assert cost["cpu_seconds"] > 0
        assert cost["peak_mb"] >= cost["start_mb"] > 1
        assert (cost["time_exponent"], cost["memory_exponent"]) == (None, None)
    assert {"device", "cpus", "python"} <= report["machine"].keys()


def test_the_largest_size_goes_into_the_table_of_all_benchmarks(report: dict[str, Any]) -> None:
    lines = lines_of("growth", report)
    assert [line.what.partition(",")[0] for line in lines[::2]] == list(PARTS)
    assert [line.unit for line in lines] == ["s", "MB"] * len(PARTS)


def test_the_plan_is_that_of_the_catalog(report: dict[str, Any]) -> None:
    recipe = data.recipe()
    plan = Plan.from_catalog(data.catalog(ROWS), recipe.view, recipe.store.rows_per_shard)
    assert facts(report, "plan") == {"plan_sha256": plan.sha256, "rows": plan.rows}
    assert plan.counts() == {"ok": 997, "unreadable": 3}


def test_the_index_that_is_opened_is_the_one_that_sealing_makes_of_records(report: dict[str, Any]) -> None:
    sealed, opened = facts(report, "seal"), facts(report, "open")
    assert sealed == {name: opened[name] for name in sealed}
    assert (opened["ok"], opened["views"]) == ([997, 997], ROWS)


def test_order_and_resumption_are_those_of_a_training(report: dict[str, Any], tmp_path: Path) -> None:
    store, training = data.sealed_store(tmp_path / "store", ROWS), data.recipe().training
    usable = np.isin(np.arange(ROWS), store.ok_rows())
    shards = [np.array([row for row in store.shard_view_ids(shard) if usable[row]]) for shard in range(16)]
    order = epoch_order(
        shards, source=store.store_id, seed=training.seed, epoch=3, window=training.shuffle_window_shards
    )

    assert facts(report, "order") == {"rows": 997, "order_sha256": hash_of(order)}
    resumed = facts(report, "resume")
    # Batches of one, 997 an epoch: half of them are done.
    assert (resumed["epoch"], resumed["batch"], resumed["first_view"]) == (3, 498, order[498])
    assert resumed["batch_rows_sha256"] == hash_of(order[498:499])


def test_a_loader_process_looks_up_what_the_store_says(report: dict[str, Any], tmp_path: Path) -> None:
    store = data.sealed_store(tmp_path / "store", ROWS)
    plan, wanted = Plan.read(store.plan_path), np.random.default_rng(0).permutation(store.ok_rows()).tolist()
    known = [(plan[row].video_id, store.pixels_of(row).pixels) for row in wanted]

    digest = hashlib.sha256(repr(known).encode()).hexdigest()
    assert facts(report, "load") == {"rows": 997, "known_sha256": digest}


def hash_of(rows: np.ndarray[Any, np.dtype[np.int64]]) -> str:
    return hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()


def test_exponents_are_those_of_the_growth_from_size_to_size() -> None:
    costs = [
        Cost("open", rows, seconds=1, cpu_seconds=rows**2 / 1e6, start_mb=100, peak_mb=100 + rows / 1000, facts={})
        for rows in (100_000, 1000, 10_000)
    ]
    found = Growth(tuple(costs), {}).exponents("open")
    assert found == [(None, None), pytest.approx((2, 1)), pytest.approx((2, 1))]
    flat = Growth((costs[1], Cost("open", 2000, 1, 1, start_mb=100, peak_mb=100.5, facts={})), {})
    assert flat.exponents("open")[1][1] is None


def test_what_cannot_be_measured_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="no part sail; choose of plan, seal"):
        measure_growth([1000], ["sail"], folder=tmp_path, say=print)
    with pytest.raises(UsageError, match="rows are 10; give numbers from 1000 on"):
        measure_growth([10], folder=tmp_path, say=print)
    assert main(["bench", "growth", "--rows", "many"]) == 2
    assert "--rows" in capsys.readouterr().err
