"""Several stores in one run, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from small_runs import fill, metrics, once, plan_small, small_recipe, write_recipe

from mvd_offline.cli.main import main
from mvd_offline.distillation.data import open_mixed_data, open_store_data
from mvd_offline.distillation.mixing import StoreShare
from mvd_offline.distillation.task import DistillTask
from mvd_offline.shards import open_store
from mvd_offline.training.loop import batches_of

OTHER_VIEWS = {"view.seed": 7, "view.groups": 1}
"""12 views in one group, where the first store has 24 in two."""


@pytest.fixture(scope="module")
def other(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished store of other views of the same videos."""
    return once(
        tmp_path_factory, "other", lambda folder: fill(plan_small(made / "catalog.parquet", folder, OTHER_VIEWS))
    )


def distill(recipe: Path, run: Path, *options: str | Path) -> list[str]:
    return ["distill", str(recipe), "--run", str(run), *map(str, options)]


def test_a_run_on_two_stores_stopped_and_gone_on_with_is_the_run_that_never_stopped_whatever_their_order(
    made: Path, other: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path / "r.yaml")
    first, second = ("--store", made / "store", "--mix", "1"), ("--store", other, "--mix", "0.5")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"

    assert main(distill(recipe, whole, *first, *second)) == 0
    assert main(distill(recipe, stopped, *first, *second, "--set", "optim.stop_after_epochs=1.5")) == 0
    assert main(distill(recipe, stopped, *second, *first, "--set", "training.workers=1")) == 0

    lines = metrics(whole)
    assert len(lines) == 4 * 4, "an epoch has 12 + 6 rows: four batches of 4"
    assert metrics(stopped) == lines
    students = [load_file(folder / "student.safetensors") for folder in (whole, stopped)]
    assert all(torch.equal(students[0][name], tensor) for name, tensor in students[1].items())
    shares = {path: f"share_{open_store(path).store_id[:8]}" for path in (made / "store", other)}
    seen = {path: sum(4 * line[name] for line in lines) for path, name in shares.items()}
    assert sum(seen.values()) == 64
    assert seen[made / "store"] / seen[other] == pytest.approx(2, abs=0.3)


def test_each_row_has_the_pixels_and_targets_of_its_own_store_and_a_mask_of_its_own(made: Path, other: Path) -> None:
    recipe, accelerator = small_recipe(), Accelerator()
    shares = [StoreShare(made / "store"), StoreShare(other)]
    data, source = open_mixed_data(recipe, shares, accelerator.device)
    task = DistillTask(recipe, data, source)
    alone = {share.folder: open_store_data(_alone(share.folder), share, accelerator.device) for share in shares}

    stores, masks = set(), {}
    batches = batches_of(task, recipe.optim, recipe.training, accelerator)
    for _, (request, batch) in zip(range(12), batches, strict=False):
        targets = source.targets(batch["stored"], batch["clips"], batch["tokens"])
        for place, row in enumerate(request.rows):
            view, part = data.rows[row]
            own, own_source = alone[part.store.root]
            tokens = batch["tokens"][place : place + 1]
            stored = own_source.reader.read([view.view_id], tokens.numpy())
            expected = own_source.targets(stored, batch["clips"], tokens)
            assert all(torch.equal(targets[name][place], value[0]) for name, value in expected.items())
            assert part.store.pixels_of(view.view_id).pixels, "which the reader compared with what it rendered"
            assert own.rows[view.view_id][0] == view
            stores.add(part.store.root)
            masks.setdefault((request.epoch, view.view_id), set()).add(tuple(batch["mask"][place].tolist()))
    assert len(stores) == 2
    assert max(map(len, masks.values())) == 2, "equal view ids of two stores have different masks"


def _alone(folder: Path):
    return small_recipe(OTHER_VIEWS if open_store(folder).header.view["groups"] == 1 else {})


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--mix", "1"], 2, "--mix is given 1 times for 2 stores"),
        (["--mix", "1", "--mix", "0"], 2, "allowed are weights above 0"),
        (["--root", "/videos"], 2, "--root is given 1 times for 2 stores"),
        (["--follow", "wait"], 2, "--follow takes one store"),
        (["--set", "view.stride=3"], 1, "view.stride: recipe has 3, store has 2"),
        (["--set", "teachers.video.weights=random:vit_tiny:9"], 1, "teachers.video.sha256: recipe has"),
    ],
)
def test_stores_and_options_that_do_not_fit_are_refused(
    made: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    options: list[str], status: int, message: str,
) -> None:  # fmt: skip
    recipe = write_recipe(tmp_path / "r.yaml")

    assert main(distill(recipe, tmp_path / "run", "--store", made / "store", "--store", other, *options)) == status
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_a_store_given_twice_is_refused(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    twice = ("--store", made / "store", "--store", made / "store")

    assert main(distill(write_recipe(tmp_path / "r.yaml"), tmp_path / "run", *twice)) == 2
    assert "are the same store, or copies of it" in capsys.readouterr().err


def test_a_run_does_not_go_on_with_other_weights_or_fewer_stores(
    made: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", {"optim.stop_after_epochs": 1})
    both = ("--store", made / "store", "--store", other)
    assert main(distill(recipe, tmp_path / "run", *both)) == 0
    identity = json.loads((tmp_path / "run" / "identity.json").read_text())
    assert {f"{name}_of_store_{n}" for name in ("store_id", "usable_rows", "weight") for n in (0, 1)} <= identity.keys()

    for options in ((*both, "--mix", "1", "--mix", "2"), both[:2]):
        assert main(distill(recipe, tmp_path / "run", *options)) == 1
        assert "was started on other data" in capsys.readouterr().err


def test_online_teachers_give_the_losses_of_the_stored_targets(made: Path, other: Path, tmp_path: Path) -> None:
    both = ("--store", made / "store", "--store", other, "--set", "optim.stop_after_epochs=1")
    runs = [tmp_path / "cached", tmp_path / "online"]
    for run in runs:
        recipe = write_recipe(tmp_path / f"{run.name}.yaml", {"targets": run.name, "optim.batch_size": 12})
        assert main(distill(recipe, run, *both)) == 0

    cached, online = map(metrics, runs)
    assert len(cached) == 2
    for ours, theirs in zip(cached, online, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
