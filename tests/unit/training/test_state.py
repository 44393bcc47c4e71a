"""Checkpoints: whole or not at all, the last few kept, and only for the run that they belong to."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import mvd_offline.training.state as state
from mvd_offline.errors import CheckpointError, UsageError
from mvd_offline.training.state import Checkpoints, Position, RunIdentity

IDENTITY = RunIdentity(source="store", seed=3, batch_size=8)


def trained(steps: int) -> tuple[nn.Linear, torch.optim.AdamW]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW([{"params": list(model.parameters()), "names": ["weight", "bias"]}], lr=0.1)
    step(model, optimizer, steps)
    return model, optimizer


def step(model: nn.Linear, optimizer: torch.optim.AdamW, steps: int) -> None:
    for number in range(steps):
        model(torch.full((1, 3), float(number + 1))).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def save(folder: Path, *steps: int, keep_last: int = 2) -> Checkpoints:
    checkpoints = Checkpoints(folder, keep_last)
    for number in steps:
        checkpoints.save(Position(number), IDENTITY, *trained(1), None)
    return checkpoints


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_a_restored_run_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    whole, whole_optimizer = trained(2)
    position = Position(step=2, epoch=1, batch=1, meter_sums={"loss": 0.1 + 0.2}, meter_count=2)
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    checkpoints.save(position, IDENTITY, whole, whole_optimizer, {"scale": 65536.0})
    step(whole, whole_optimizer, 3)

    model, optimizer = trained(0)
    latest = checkpoints.latest()
    assert latest is not None
    assert checkpoints.restore(latest, IDENTITY, model, optimizer) == (position, {"scale": 65536.0})
    step(model, optimizer, 3)

    assert torch.equal(model.weight, whole.weight)
    assert torch.equal(model.bias, whole.bias)


def test_the_newest_checkpoint_is_found_and_older_ones_go(tmp_path: Path) -> None:
    checkpoints = save(tmp_path, 9, 10, 11, 1000)

    assert names(tmp_path) == ["step-0000011", "step-0001000"]
    assert checkpoints.latest() == tmp_path / "checkpoints" / "step-0001000"


def test_a_run_without_checkpoints_starts_at_the_beginning(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path, 1).latest() is None


def test_a_checkpoint_that_was_not_finished_is_not_seen_and_goes_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = save(tmp_path, 1)

    def power_cut(source: object, target: object) -> None:
        raise OSError("no more power")

    with monkeypatch.context() as patch:
        patch.setattr(state.os, "rename", power_cut)
        with pytest.raises(OSError, match="no more power"):
            save(tmp_path, 2)
    assert checkpoints.latest() == tmp_path / "checkpoints" / "step-0000001"

    save(tmp_path, 3)
    assert names(tmp_path) == ["step-0000001", "step-0000003"]


@pytest.mark.parametrize(
    ("field", "value"), [("source", "another store"), ("seed", 4), ("batch_size", 16), ("order_version", 0)]
)
def test_a_checkpoint_of_other_data_seed_or_batch_is_refused_by_name(
    tmp_path: Path, field: str, value: str | int
) -> None:
    latest = save(tmp_path, 1).latest()
    assert latest is not None

    with pytest.raises(UsageError, match=f"was started with {field} = .* and this launch has {value!r}"):
        Checkpoints(tmp_path, 1).restore(latest, replace(IDENTITY, **{field: value}), *trained(0))


def test_a_checkpoint_of_another_version_is_refused(tmp_path: Path) -> None:
    latest = save(tmp_path, 1).latest()
    assert latest is not None
    data = json.loads((latest / "state.json").read_text())
    (latest / "state.json").write_text(json.dumps({**data, "version": 99}))

    with pytest.raises(CheckpointError, match="state version 99"):
        Checkpoints(tmp_path, 1).restore(latest, IDENTITY, *trained(0))


def test_a_position_survives_its_file_to_the_last_bit(tmp_path: Path) -> None:
    sums = {"loss": math.pi, "norm": 1e-300, "sum": 0.1 + 0.2}
    checkpoints = Checkpoints(tmp_path, 1)
    path = checkpoints.save(Position(1, 0, 1, sums, 1), IDENTITY, *trained(1), None)

    position, _ = checkpoints.restore(path, IDENTITY, *trained(0))

    assert position.meter_sums == sums
