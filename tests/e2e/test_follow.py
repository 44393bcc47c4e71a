"""Training on a store while `extract` fills it: real processes side by side."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from growing_stores import add_group, store_with
from safetensors.torch import load_file
from small_runs import (
    command,
    fill,
    metrics,
    plan_small,
    small_recipe,
    started,
    wait_until,
    write_recipe,
)

from mvd_offline.cli.main import main
from mvd_offline.distillation.following import Follow, FollowedSamples, FollowMode
from mvd_offline.distillation.group_ledger import GroupLedger
from mvd_offline.distillation.samples import StoreSamples
from mvd_offline.errors import UsageError
from mvd_offline.shards import IdentityError, open_store

STEPS = 3
"""Of an epoch of the small recipe; its store has two groups."""


def distill(recipe: Path, store: Path, run_folder: Path, *options: str) -> list[str]:
    return command("distill", recipe, "--store", store, "--run", run_folder, *options)


def same_student(one: Path, other: Path) -> bool:
    ours, theirs = (load_file(folder / "student.safetensors") for folder in (one, other))
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


# ---- wait --------------------------------------------------------------------------------------------------------


def test_a_run_beside_the_extraction_is_the_run_on_the_finished_store_also_when_stopped_while_it_waits(
    made: Path, tmp_path: Path
) -> None:
    recipe, log = write_recipe(tmp_path / "recipe.yaml"), tmp_path / "log"
    store, followed, later = store_with(made, tmp_path / "store"), tmp_path / "followed", tmp_path / "later"
    following = distill(recipe, store, followed, "--follow", "wait", "--set", "training.workers=4")

    with started(following, log) as stopped:
        assert wait_until(lambda: "epoch 1 waits for group 1 of 2" in log.read_text(), seconds=60), log.read_text()
        assert [line["step"] for line in metrics(followed)] == [1, 2, 3], "all that is there is trained on first"
        stopped.send_signal(signal.SIGTERM)
        assert stopped.wait(60) == 75, log.read_text()
    assert f"0 of {STEPS} shards are committed" in log.read_text()
    assert list((followed / "checkpoints").glob("step-*3")), "and saved"

    with started(command("extract", store, "--workers", "1"), tmp_path / "extract.log") as extract:
        assert main(following[1:]) == 0
        assert extract.wait(60) == 0, (tmp_path / "extract.log").read_text()
    assert open_store(store).sealed

    assert main(distill(recipe, made / "store", later)[1:]) == 0
    assert metrics(followed) == metrics(later)
    assert len(metrics(later)) == 4 * STEPS
    assert same_student(followed, later)


# ---- skip --------------------------------------------------------------------------------------------------------


def test_a_run_that_skips_repeats_its_choice_of_groups_after_it_was_killed(made: Path, tmp_path: Path) -> None:
    recipe, log = write_recipe(tmp_path / "recipe.yaml"), tmp_path / "log"
    store, killed = store_with(made, tmp_path / "store"), tmp_path / "killed"
    skipping = distill(recipe, store, killed, "--follow", "skip")

    # While there is one group; killed in the second epoch.
    with started([*skipping, "--set", "optim.stop_after_epochs=2"], log) as process:
        assert wait_until((killed / "checkpoints" / "step-0000005").is_dir, seconds=60), log.read_text()
        process.kill()
    assert chosen(killed) == [0, 0]
    fill(store)
    shutil.copytree(killed, tmp_path / "restarted")

    assert main(skipping[1:]) == 0
    assert chosen(killed) == [0, 0, 1, 0]

    # A run that has lost all but its choice has the same epochs again.
    restarted = tmp_path / "restarted"
    shutil.rmtree(restarted / "checkpoints")
    assert main(distill(recipe, store, restarted, "--follow", "skip")[1:]) == 0
    assert chosen(restarted) == [0, 0, 1, 0]
    assert metrics(restarted) == metrics(killed)
    assert same_student(restarted, killed)


def chosen(folder: Path) -> list[int]:
    epochs: list[int] = json.loads((folder / "groups.json").read_text())["epochs"]
    return epochs


# ---- what an epoch is --------------------------------------------------------------------------------------------


def followed(store: Path, folder: Path, mode: FollowMode = "wait") -> FollowedSamples:
    """Samples of a run that has begun in `folder`."""
    folder.mkdir(exist_ok=True)
    opened = open_store(store, sealed=False)
    samples = FollowedSamples(small_recipe(), opened, Follow(mode), GroupLedger(folder), main=True)
    samples.begin()
    samples.record()
    return samples


@pytest.mark.parametrize("mode", ["wait", "skip"])
def test_on_a_finished_store_every_epoch_is_that_of_a_plain_run(made: Path, tmp_path: Path, mode: FollowMode) -> None:
    samples = followed(made / "store", tmp_path / "run", mode)
    plain = StoreSamples(small_recipe(), open_store(made / "store"))

    assert samples.per_epoch() == plain.per_epoch() == 12
    assert [samples.order(epoch).tolist() for epoch in range(4)] == [plain.order(epoch).tolist() for epoch in range(4)]


def test_a_later_group_with_fewer_rows_begins_again_and_says_so(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = store_with(made, tmp_path / "store")
    samples = followed(store, tmp_path / "run")
    lost = [13, 16, 20]
    add_group(made, store, 1, lost)

    order = samples.order(1).tolist()

    assert samples.per_epoch() == len(order) == 12
    assert order[9:] == order[:3]
    assert set(order) == set(range(12, 24)) - set(lost)
    assert samples.order(1).tolist() == order
    assert capsys.readouterr().err.count("group 1 has 9 usable rows and the epochs of this run have 12") == 1


def test_the_first_epoch_is_measured_by_what_is_complete_at_the_start(made: Path, tmp_path: Path) -> None:
    store = store_with(made, tmp_path / "store", (0, 1), lost=[13])

    assert followed(store, tmp_path / "run").per_epoch() == 11
    assert followed(store, tmp_path / "run").per_epoch() == 11, "as the run recorded it"


def test_a_followed_run_refuses_a_store_whose_used_groups_changed(made: Path, tmp_path: Path) -> None:
    followed(store_with(made, tmp_path / "store", lost=[2]), tmp_path / "run").order(0)

    with pytest.raises(IdentityError, match="the usable rows of group 0 had the hash"):
        followed(store_with(made, tmp_path / "healed"), tmp_path / "run")


def test_a_ledger_that_is_lost_or_damaged_ends_the_run(made: Path, tmp_path: Path) -> None:
    ledger = tmp_path / "run" / "groups.json"
    samples = followed(made / "store", ledger.parent, "skip")
    samples.order(0)
    ledger.write_text(ledger.read_text()[:-20])
    with pytest.raises(UsageError, match=r"groups\.json is missing or damaged"):
        samples.order(1)

    ledger.unlink()
    (ledger.parent / "checkpoints").mkdir()
    with pytest.raises(UsageError, match=r"groups\.json is missing or damaged"):
        followed(made / "store", ledger.parent, "skip")


# ---- what is said and refused ------------------------------------------------------------------------------------


def test_a_run_that_waits_in_vain_says_so_again_and_again_and_can_be_stopped(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, store = write_recipe(tmp_path / "recipe.yaml"), plan_small(made / "catalog.parquet", tmp_path / "store")
    usual = signal.getsignal(signal.SIGTERM)

    def stop() -> None:
        if wait_until(lambda: signal.getsignal(signal.SIGTERM) != usual, seconds=60, step=0.1):
            time.sleep(3.5)
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    skipping = distill(recipe, store, tmp_path / "run", "--follow", "skip", "--follow-patience", "1")

    assert main(skipping[1:]) == 75
    said = capsys.readouterr().err
    assert "the first epoch waits for a first group" in said
    assert said.count("nothing was committed for") >= 2
    assert f"stopped by SIGTERM while {tmp_path / 'run'} waited" in " ".join(said.split())
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_only_as_it_was_started(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", {"optim.stop_after_epochs": 1})
    assert main(distill(recipe, made / "store", tmp_path / "run", "--follow", "skip")[1:]) == 0

    for options in ([], ["--follow", "wait"]):
        assert main([*distill(recipe, made / "store", tmp_path / "run")[1:], *options]) == 2
        assert f"{tmp_path / 'run'} was started with --follow skip" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"targets": "online"}, [], "--follow waits for the targets of a store, and this recipe reads none"),
        ({}, ["--mix", "2"], "--follow takes one store and no --mix"),
    ],
)
def test_what_cannot_be_followed_is_refused(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    changes: dict[str, object], options: list[str], message: str,
) -> None:  # fmt: skip
    recipe = write_recipe(tmp_path / "recipe.yaml", changes)

    assert main([*distill(recipe, made / "store", tmp_path / "run", "--follow", "wait")[1:], *options]) == 2
    assert message in capsys.readouterr().err
