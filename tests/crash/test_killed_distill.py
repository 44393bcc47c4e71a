"""Distillation killed in the middle of an epoch: the run that goes on is the run that was never killed."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import command, descendants, make_store, metrics, once, run, started, wait_until, write_recipe

from mvd_offline.cli.main import main

# Three steps an epoch; checkpoints after every second step and lines after every fifth never fall together with an
# epoch's end for long, so that a resumed run must find its batch, its step and its half-full line.
CHANGES = {"optim.epochs": 10, "training.log_every_steps": 5, "training.checkpoint_every_epochs": 0.67}


def killed_at(step: int, arguments: list[str], run_folder: Path, log: Path) -> None:
    """Kill a run once the checkpoint of a step is there."""
    checkpoint = run_folder / "checkpoints" / f"step-{step:07d}"
    with started(arguments, log) as process:
        assert wait_until(checkpoint.is_dir, seconds=60), log.read_text()
        process.kill()
        assert process.wait(10) == -signal.SIGKILL
        # PyTorch's loader processes look for their parent every five seconds.
        assert wait_until(lambda: not descendants(process.mark), seconds=15, step=0.1)


def test_a_run_that_is_killed_and_resumed_with_other_workers_repeats_an_uninterrupted_one_exactly(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    store = once(tmp_path_factory, "store", make_store) / "store"
    recipe = write_recipe(tmp_path / "recipe.yaml", CHANGES)
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def distill(folder: Path, workers: int) -> list[str]:
        return command("distill", recipe, "--store", store, "--run", folder, "--set", f"training.workers={workers}")

    run(distill(whole, 0), tmp_path / "whole.log")
    killed_at(8, distill(killed, 2), killed, tmp_path / "first.log")
    killed_at(20, distill(killed, 0), killed, tmp_path / "second.log")
    assert len(metrics(killed)) < 6
    # Killed once more, right after its last checkpoint: the student that belongs to it must be there already.
    killed_at(30, distill(killed, 2), killed, tmp_path / "third.log")

    assert main(distill(killed, 0)[1:]) == 0
    assert "was finished already" in capsys.readouterr().out
    assert [line["step"] for line in metrics(whole)] == [5, 10, 15, 20, 25, 30]
    assert metrics(killed) == metrics(whole)
    students = [load_file(folder / "student.safetensors") for folder in (killed, whole)]
    assert all(torch.equal(students[0][name], tensor) for name, tensor in students[1].items())
    assert not list((killed / "checkpoints").glob(".tmp-*"))
