"""One process and two processes under `accelerate launch` do the same work."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import contents, launched, make_store, metrics, once, plan_small, run, write_recipe

from mvd_offline.cli.main import main


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once(tmp_path_factory, "store", make_store)


def test_two_processes_extract_the_same_bytes_as_one(made: Path, tmp_path: Path) -> None:
    store = plan_small(made / "catalog.parquet", tmp_path / "store")

    printed = run(launched(2, "extract", store, "--workers", "1"), tmp_path / "log", timeout=200, ranks=2)

    assert "24 ok" in printed, "the summary counts the rows of all processes"
    assert printed.count("Extraction into") == 1
    assert contents(store) == contents(made / "store")


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
