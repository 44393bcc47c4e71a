"""One process and two processes under `accelerate launch` do the same work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from small_runs import (
    command,
    contents,
    hanging,
    launched,
    make_store,
    metrics,
    once,
    plan_small,
    run,
    started,
    wait_until,
    write_recipe,
)

from mvd_offline.cli.main import main
from mvd_offline.video.views import Plan


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once(tmp_path_factory, "store", make_store)


def test_two_processes_extract_the_same_bytes_as_one(made: Path, tmp_path: Path) -> None:
    store = plan_small(made / "catalog.parquet", tmp_path / "store")

    printed = run(launched(2, "extract", store, "--workers", "1"), tmp_path / "log", timeout=200, ranks=2)

    assert "24 ok" in printed, "the summary counts the rows of all processes"
    assert printed.count("Extraction into") == 1
    assert contents(store) == contents(made / "store")


def test_two_runs_at_once_on_one_store_share_the_work_and_both_end_well(made: Path, tmp_path: Path) -> None:
    store = plan_small(made / "catalog.parquet", tmp_path / "store")
    extracting = command("extract", store, "--workers", "1", "--json")
    logs = [tmp_path / "one.log", tmp_path / "two.log"]

    with started(extracting, logs[0]) as one, started(extracting, logs[1]) as two:
        statuses = [process.wait(120) for process in (one, two)]

    printed = [log.read_text() for log in logs]
    assert statuses == [0, 0], printed
    summaries = [json.loads(text[text.index("{") :]) for text in printed]
    assert [summary["sealed"] for summary in summaries] == [True, True]
    assert sum(summary["shards"] for summary in summaries) == 12, "every shard of both columns, none of them twice"
    assert sum(summary["rows"].get("ok", 0) for summary in summaries) == 24
    assert contents(store) == contents(made / "store")


def test_a_run_takes_over_what_a_killed_one_had_claimed(made: Path, tmp_path: Path) -> None:
    store, videos = plan_small(made / "catalog.parquet", tmp_path / "store"), tmp_path / "videos"
    shutil.copytree(made / "videos", videos)
    extracting = [*command("extract", store, "--workers", "1", "--json"), "--root", str(videos)]
    first = next(iter(Plan.read(store / "plan.parquet")))

    with hanging(videos / first.path) as somebody_hangs, started(extracting, tmp_path / "one.log") as one:
        assert wait_until(somebody_hangs, seconds=60), (tmp_path / "one.log").read_text()
        with started([*extracting, "--root", str(made / "videos")], tmp_path / "two.log") as two:
            # All but what the first has claimed: the shard it hangs in, and what it decodes ahead.
            assert wait_until(lambda: committed(store) >= 8, seconds=60, step=0.05)
            assert two.poll() is None, "it waits for the other"
            one.kill()
            assert two.wait(60) == 0, (tmp_path / "two.log").read_text()

    assert contents(store) == contents(made / "store")


def committed(store: Path) -> int:
    return len(list(store.glob("commits/*/*.json")))


def test_two_processes_have_the_losses_of_one_and_one_goes_on_from_their_checkpoint(made: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml")
    alone, together = tmp_path / "alone", tmp_path / "together"

    def distill(folder: Path) -> list[str]:
        return ["distill", str(recipe), "--store", str(made / "store"), "--run", str(folder)]

    # Two processes accumulate gradients over micro-batches of 1; one process alone takes each batch whole.
    halves = ("--set", "optim.micro_batch_size=1", "--set", "optim.stop_after_epochs=3")
    run(launched(2, *distill(together), *halves), tmp_path / "log", timeout=200, ranks=2)
    assert len(metrics(together)) == 9
    assert main(distill(together)) == 0
    assert main([*distill(alone), "--set", "optim.micro_batch_size=4"]) == 0

    assert len(metrics(together)) == len(metrics(alone)) == 12
    for ours, theirs in zip(metrics(together), metrics(alone), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
