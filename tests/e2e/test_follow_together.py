"""Several processes that train on a store while it is being filled: what they see and do, they see and do alike."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch
from growing_stores import add_group, store_with
from safetensors.torch import load_file
from small_runs import command, metrics, side_by_side, started, wait_until, write_recipe

from mvd_offline.cli.main import main


class Pair:
    """Two processes of one run, each with the store as its machine shows it."""

    def __init__(self, processes: Sequence[subprocess.Popen[bytes]], logs: Sequence[Path]) -> None:
        self.processes, self.logs = processes, logs

    def said(self) -> list[str]:
        return [" ".join(log.read_text().split()) for log in self.logs]

    def wait_for(self, text: str) -> None:
        """Until the first process, which speaks for both, has said it."""
        assert wait_until(lambda: text in self.said()[0], seconds=100, step=0.05), self.said()

    def statuses(self) -> list[int]:
        return [process.wait(100) for process in self.processes]


@contextmanager
def following(stores: Sequence[Path], recipe: Path, run: Path, *options: str) -> Iterator[Pair]:
    words = [command("distill", recipe, "--store", store, "--run", run, *options) for store in stores]
    logs = [recipe.with_name(f"{number}.log") for number in range(2)]
    with ExitStack() as stack:
        pairs = zip(side_by_side(*words), logs, strict=True)
        yield Pair([stack.enter_context(started(arguments, log)) for arguments, log in pairs], logs)


def test_what_one_process_sees_late_is_waited_for_and_a_signal_to_one_stops_both(made: Path, tmp_path: Path) -> None:
    recipe, run, alone = write_recipe(tmp_path / "recipe.yaml"), tmp_path / "run", tmp_path / "alone"
    late = store_with(made, tmp_path / "late", lost=[2])

    with following([store_with(made, tmp_path / "store"), late], recipe, run, "--follow", "wait") as pair:
        pair.wait_for("processes of this launch do not see the same of group 0; looking again")
        assert not run.exists()
        add_group(made, late, 0, again=True)
        pair.wait_for("epoch 1 waits for group 1 of 2")
        pair.processes[1].send_signal(signal.SIGTERM)
        assert pair.statuses() == [75, 75], pair.said()
        assert "stopped, as another process of this launch was asked to after step 3 of 12" in pair.said()[0]

    assert main(["distill", str(recipe), "--store", str(made / "store"), "--run", str(run), "--follow", "wait"]) == 0
    assert main(["distill", str(recipe), "--store", str(made / "store"), "--run", str(alone)]) == 0
    assert len(metrics(alone)) == 12
    for one, other in zip(metrics(run), metrics(alone), strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    ours, theirs = (load_file(folder / "student.safetensors") for folder in (run, alone))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=2e-5)


def test_processes_that_go_on_seeing_different_rows_end_alike(made: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml")
    stores = [store_with(made, tmp_path / str(len(lost)), lost=lost) for lost in ([], [2])]

    with following(stores, recipe, tmp_path / "run", "--follow", "wait", "--follow-patience", "1") as pair:
        assert pair.statuses() == [1, 1], pair.said()
        for store, said in zip(stores, pair.said(), strict=True):
            assert f"the processes of this launch see different states of group 0 of {store}, for more than 1 s" in said
            assert "process 0: " in said
            assert "process 1: " in said
            assert "Traceback" not in said
    assert not (tmp_path / "run").exists()


def test_both_wait_for_a_first_group_and_take_the_same_one(made: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", {"optim.stop_after_epochs": 2})
    store, run = store_with(made, tmp_path / "store", ()), tmp_path / "run"

    with following([store, store], recipe, run, "--follow", "skip") as pair:
        pair.wait_for("the first epoch waits for a first group")
        add_group(made, store, 1)
        assert pair.statuses() == [0, 0], pair.said()
    assert json.loads((run / "groups.json").read_text())["epochs"] == [1, 1]
    assert len(metrics(run)) == 6
