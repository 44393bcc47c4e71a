"""The loop: what a step adds up, how a run stops when it is asked to, and that going on repeats it exactly."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mvd_offline.cli.common import report_training
from mvd_offline.errors import CheckpointError, TrainingStopped
from mvd_offline.recipe import OptimSection, QuirkSection, TrainingSection
from mvd_offline.training.averages import Average, constant
from mvd_offline.training.interludes import Interlude
from mvd_offline.training.loop import Batch, TrainingSummary, train
from mvd_offline.training.order import BatchRequest
from mvd_offline.training.state import RunIdentity

ROWS, BATCH = 11, 4
"""Two steps an epoch; three rows follow its last full batch."""


class Reader:
    """The value of a row is its number plus a tenth of the epoch; at one of them, it signals its own process."""

    def __init__(self, signal_at: tuple[int, int] | None = None) -> None:
        self._signal_at = signal_at

    def __call__(self, request: BatchRequest) -> Batch:
        if self._signal_at == (request.epoch, request.batch):
            os.kill(os.getpid(), signal.SIGTERM)
        return {"x": torch.tensor([[row + request.epoch / 10] for row in request.rows])}


class LineTask:
    """loss = mean of weight * x, so that the gradient of a step is the mean of its rows."""

    def __init__(self, signal_at: tuple[int, int] | None = None) -> None:
        self.title, self.unit, self.identity = "line", "rows", RunIdentity("rows", 0, BATCH)
        self.line = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.line.weight)
        self.model: nn.Module = self.line
        self.averages: Mapping[str, Average] = {"slow": Average(self.line, constant(0.9))}
        self.reader, self.may_wait = Reader(signal_at), False

    def groups(self) -> list[dict[str, object]]:
        return [{"params": [self.line.weight], "names": ["weight"], "weight_decay": 0.0, "lr_scale": 1.0}]

    def order(self, epoch: int) -> NDArray[np.int64]:
        return np.roll(np.arange(ROWS), epoch)

    def samples_per_epoch(self) -> int:
        return ROWS

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return {"loss": model(batch["x"]).mean()}

    def save(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        tensors = {"weight": state["weight"], "slow": self.averages["slow"].module.get_parameter("weight").detach()}
        save_file(tensors, folder / "line.safetensors")


def run(
    folder: Path,
    *,
    micro: int = 4,
    leftover: int | None = None,
    tf32: bool = False,
    task: LineTask | None = None,
    interlude: Interlude | None = None,
    **changes: Any,
) -> TrainingSummary:
    optim = OptimSection(
        **{
            "epochs": 3, "warmup_epochs": 0, "batch_size": BATCH, "micro_batch_size": micro,
            "base_lr": 0.1, "lr_reference_batch": BATCH, **changes,
        }
    )  # fmt: skip
    training = TrainingSection(workers=0, log_every_steps=1, checkpoint_every_epochs=0.5, tensorboard=False, tf32=tf32)
    folder.mkdir(exist_ok=True)
    return train(
        task or LineTask(),
        optim,
        training,
        run=folder,
        accelerator=Accelerator(),
        quirks=QuirkSection(leftover_micro_batch=leftover),
        interlude=interlude,
    )


def lines(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "time"} for line in found]


def gradients(folder: Path) -> list[float]:
    return [line["grad_norm"] for line in lines(folder)]


def same(one: Path, other: Path) -> bool:
    ours, theirs = (load_file(folder / "line.safetensors") for folder in (one, other))
    return lines(one) == lines(other) and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def values(epoch: int, start: int, end: int) -> list[float]:
    return [row + epoch / 10 for row in LineTask().order(epoch)[start:end].tolist()]


# ---- what a step adds up -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_leftovers_of_an_epoch_add_their_gradients_to_the_next_epochs_first_step(tmp_path: Path, micro: int) -> None:
    run(tmp_path / "off", micro=micro)
    run(tmp_path / "on", micro=micro, leftover=2)

    batches = [values(epoch, start, start + 4) for epoch in range(3) for start in (0, 4)]
    extra = {2: values(0, 8, 10), 4: values(1, 8, 10)}
    assert gradients(tmp_path / "off") == pytest.approx([sum(batch) / 4 for batch in batches])
    # Two rows of a chunk weigh as much as two of the batch: all are divided by four.
    with_extra = [(sum(batch) + sum(extra.get(step, []))) / 4 for step, batch in enumerate(batches)]
    assert gradients(tmp_path / "on") == pytest.approx(with_extra)
    off, on = lines(tmp_path / "off"), lines(tmp_path / "on")
    assert [line["loss"] for line in on[:3]] == [line["loss"] for line in off[:3]], "they are no part of the losses"
    assert on[3]["loss"] != off[3]["loss"], "but of what is learnt"


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_run_that_goes_on_at_an_epochs_start_takes_the_leftovers_along(tmp_path: Path, epochs: int) -> None:
    run(tmp_path / "whole", leftover=2)
    run(tmp_path / "parts", leftover=2, stop_after_epochs=epochs)
    run(tmp_path / "parts", leftover=2)

    assert same(tmp_path / "parts", tmp_path / "whole")


def test_a_leftover_whose_loss_is_not_finite_is_found_too(tmp_path: Path) -> None:
    task = LineTask()
    task.order = lambda epoch: np.arange(ROWS)  # type: ignore[method-assign]
    loss = task.loss

    def endless(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        factor = torch.where(batch["x"].max() == 9, torch.inf, 1.0)
        return {"loss": loss(model, batch)["loss"] * factor}

    task.loss = endless  # type: ignore[method-assign]

    with pytest.raises(ArithmeticError, match=r"loss of step 2 is not finite .*rows of these micro-batches: 8, 9\)"):
        run(tmp_path, leftover=2, task=task)


@pytest.mark.parametrize(("tf32", "precision"), [(False, "highest"), (True, "high")])
def test_a_recipe_says_how_exact_float32_products_are(tmp_path: Path, tf32: bool, precision: str) -> None:
    task, seen = LineTask(), set()
    read = task.reader

    def reader(request: BatchRequest) -> Batch:
        seen.add(torch.get_float32_matmul_precision())
        return read(request)

    task.reader = reader  # type: ignore[assignment]
    run(tmp_path, task=task, tf32=tf32)
    torch.set_float32_matmul_precision("highest")

    assert seen == {precision}


# ---- stopping and going on ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [(0, 0), (1, 0), (1, 1)])
def test_a_run_that_is_asked_to_stop_saves_after_its_step_and_goes_on_exactly(
    tmp_path: Path, at: tuple[int, int]
) -> None:
    run(tmp_path / "whole", micro=2)
    step = 2 * at[0] + at[1] + 1

    with pytest.raises(TrainingStopped, match=rf"stopped by SIGTERM after step {step} of 6, which .* holds"):
        run(tmp_path / "parts", micro=2, task=LineTask(at))
    assert len(lines(tmp_path / "parts")) == step
    summary = run(tmp_path / "parts", micro=2)

    assert summary.steps == 6 - step
    assert same(tmp_path / "parts", tmp_path / "whole")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_signal_in_the_last_step_is_too_late_to_stop_anything(tmp_path: Path) -> None:
    assert run(tmp_path, task=LineTask((2, 1))).steps == 6


def test_a_run_whose_newest_checkpoint_is_torn_goes_on_from_the_one_before_exactly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "whole")
    run(tmp_path / "parts", stop_after_epochs=2)
    torn = tmp_path / "parts" / "checkpoints" / "step-0000004" / "optimizer.safetensors"
    torn.write_bytes(torn.read_bytes()[:-1])

    assert run(tmp_path / "parts").steps == 3

    assert "skipping a damaged checkpoint" in capsys.readouterr().err
    assert same(tmp_path / "parts", tmp_path / "whole")


def test_a_run_without_a_sound_checkpoint_is_refused_before_it_loses_its_lines(tmp_path: Path) -> None:
    run(tmp_path, stop_after_epochs=1)
    for path in (tmp_path / "checkpoints").glob("*/model.safetensors"):
        path.unlink()

    with pytest.raises(CheckpointError, match="no checkpoint to go on from"):
        run(tmp_path)
    assert len(lines(tmp_path)) == 2


def test_a_rate_counts_what_the_rows_of_the_task_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = run(tmp_path / "run")
    assert summary.unit == "rows"
    assert re.search(r"loss [-\d.]+  [\d.,]+ rows/s", capsys.readouterr().err)

    report_training(summary, tmp_path / "run", tmp_path / "line", False, "nothing")
    assert re.search(r"^6 steps in .*: [\d.,]+ rows/s, ", capsys.readouterr().out)


def test_each_line_says_where_the_time_of_a_step_went(tmp_path: Path) -> None:
    run(tmp_path)

    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        seconds = json.loads(line)["time"]
        phases = ("data", "transfer", "forward", "backward", "optimizer", "save")
        assert all(seconds[f"{phase}_seconds"] >= 0 for phase in phases)
        assert sum(seconds[f"{phase}_seconds"] for phase in phases) == pytest.approx(seconds["step_seconds"])
        assert 0 <= seconds["data_wait_share"] <= 1


# ---- interludes --------------------------------------------------------------------------------------------------


class Look:
    """Notes the weight at each look; at one of them, a signal keeps it from coming to an end."""

    def __init__(self, task: LineTask, every_epochs: float = 1, stopped_at: int | None = None) -> None:
        self.name, self.every_epochs = "look", every_epochs
        self._task, self._stopped_at = task, stopped_at
        self.seen: list[float] = []

    def look(self, accelerator: Accelerator) -> dict[str, float] | None:
        self.seen.append(self._task.line.weight.item())
        torch.manual_seed(99)
        return None if len(self.seen) == self._stopped_at else {"weight": self.seen[-1]}


def looks(folder: Path) -> dict[int, float]:
    return {line["step"]: line["look/weight"] for line in lines(folder) if "look/weight" in line}


def run_looking(folder: Path, look: Look, task: LineTask, **changes: Any) -> TrainingSummary:
    return run(folder, task=task, interlude=look, **changes)


def test_an_interlude_is_held_after_its_checkpoint_and_changes_nothing(tmp_path: Path) -> None:
    run(tmp_path / "without")
    for every, steps in ((1, [2, 4, 6]), (1.5, [3, 6]), (2, [4, 6])):
        folder, task = tmp_path / str(every), LineTask()
        look = Look(task, every)
        run_looking(folder, look, task)

        assert list(looks(folder)) == steps, "and at the end"
        assert list(looks(folder).values()) == look.seen
        assert [line for line in lines(folder) if "loss" in line] == lines(tmp_path / "without")
        assert (folder / "line.safetensors").read_bytes() == (tmp_path / "without" / "line.safetensors").read_bytes()


def test_an_interlude_that_was_held_is_not_held_again(tmp_path: Path) -> None:
    task, again = LineTask(), LineTask()
    run_looking(tmp_path, Look(task), task, stop_after_epochs=2)
    look = Look(again)
    run_looking(tmp_path, look, again)

    assert list(looks(tmp_path)) == [2, 4, 6]
    assert look.seen == [looks(tmp_path)[6]]


@pytest.mark.parametrize(("at", "step"), [(1, 2), (2, 4), (3, 6)])
def test_an_interlude_that_a_signal_cut_short_is_held_by_the_run_that_goes_on(
    tmp_path: Path, at: int, step: int
) -> None:
    whole, task = LineTask(), LineTask()
    run_looking(tmp_path / "whole", Look(whole), whole)

    with pytest.raises(TrainingStopped, match=f"after step {step} of 6"):
        run_looking(tmp_path / "parts", Look(task, stopped_at=at), task)
    again = LineTask()
    look = Look(again)
    run_looking(tmp_path / "parts", look, again)

    assert same(tmp_path / "parts", tmp_path / "whole")
    assert len(look.seen) == 4 - at


def test_a_signal_before_an_interlude_leaves_it_to_the_run_that_goes_on(tmp_path: Path) -> None:
    task = LineTask((2, 1))
    look = Look(task)
    with pytest.raises(TrainingStopped, match="after step 6 of 6"):
        run_looking(tmp_path, look, task)
    assert list(looks(tmp_path)) == [2, 4]

    again = LineTask()
    run_looking(tmp_path, Look(again), again)
    assert list(looks(tmp_path)) == [2, 4, 6]


def test_the_time_of_an_interlude_is_no_part_of_the_trainings(tmp_path: Path) -> None:
    class Slow(Look):
        def look(self, accelerator: Accelerator) -> dict[str, float] | None:
            time.sleep(0.2)
            return super().look(accelerator)

    task = LineTask()
    began = time.perf_counter()
    summary = run_looking(tmp_path, Slow(task), task)
    passed = time.perf_counter() - began

    records = [json.loads(line)["time"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    held = [record["look/seconds"] for record in records if "look/seconds" in record]
    assert min(held) >= 0.2
    assert summary.seconds <= passed - sum(held)
    assert sum(record.get("step_seconds", 0.0) for record in records) <= summary.seconds
