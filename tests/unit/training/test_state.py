"""Checkpoints: whole or not at all, checked before use, the last few kept, and only for the run that they belong to."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import mvd_offline.training.state as state
from mvd_offline.errors import CheckpointError, UsageError
from mvd_offline.training.averages import Average, constant
from mvd_offline.training.snapshot import put_back, take_snapshot
from mvd_offline.training.state import Checkpoints, Position, RunIdentity

IDENTITY = RunIdentity(source="store", seed=3, batch_size=8)


class Trained:
    """A model, its optimiser and its average after some steps."""

    def __init__(self, steps: int) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(3, 2)
        groups = [{"params": [p], "names": [n], "weight_decay": 0.1} for n, p in self.model.named_parameters()]
        self.optimizer = torch.optim.AdamW(groups, lr=0.1, fused=True)
        self.averages = {"ema": Average(self.model, constant(0.5))}
        self.step(steps)

    def step(self, steps: int) -> None:
        for number in range(steps):
            self.model(torch.full((1, 3), float(number + 1))).square().sum().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.averages["ema"].update(0.0)

    def save(self, checkpoints: Checkpoints, position: Position, scaler: dict[str, float] | None = None) -> Path:
        snapshot = take_snapshot(self.model, self.optimizer, self.averages, scaler)
        return checkpoints.save(position, IDENTITY, snapshot)

    def tensors(self) -> dict[str, torch.Tensor]:
        average = self.averages["ema"].module.state_dict()
        return {**self.model.state_dict(), **{f"average {name}": value for name, value in average.items()}}


def save(folder: Path, *steps: int, keep_last: int = 2) -> Checkpoints:
    checkpoints = Checkpoints(folder, keep_last)
    for number in steps:
        Trained(1).save(checkpoints, Position(number))
    return checkpoints


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def newest(folder: Path) -> Path:
    found = Checkpoints(folder, 2).newest_sound()
    assert found is not None
    return found


def test_a_restored_run_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    whole = Trained(2)
    position = Position(step=2, epoch=1, batch=1, meter_sums={"loss": 0.1 + 0.2}, meter_count=2)
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    whole.save(checkpoints, position, {"scale": 65536.0})
    whole.step(3)

    other = Trained(0)
    found, snapshot = checkpoints.read(newest(tmp_path), IDENTITY)
    put_back(snapshot, other.model, other.optimizer, other.averages)
    assert (found, snapshot.scaler) == (position, {"scale": 65536.0})
    other.step(3)

    ours, theirs = other.tensors(), whole.tensors()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_newest_checkpoint_is_found_and_older_ones_go(tmp_path: Path) -> None:
    save(tmp_path, 9, 10, 11, 1000)

    assert names(tmp_path) == ["step-0000011", "step-0001000"]
    assert newest(tmp_path) == tmp_path / "checkpoints" / "step-0001000"


def test_a_run_without_checkpoints_starts_at_the_beginning(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path, 1).newest_sound() is None


def test_a_checkpoint_that_was_not_finished_is_not_seen_and_goes_with_the_next_launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)

    def power_cut(source: object, target: object) -> None:
        raise OSError("no more power")

    with monkeypatch.context() as patch:
        patch.setattr(state.os, "rename", power_cut)
        with pytest.raises(OSError, match="no more power"):
            save(tmp_path, 2)

    assert len(names(tmp_path)) == 2
    assert newest(tmp_path) == tmp_path / "checkpoints" / "step-0000001"
    assert names(tmp_path) == ["step-0000001"]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def change_the_position(path: Path) -> None:
    path.write_text(path.read_text().replace('"step": 3', '"step": 4'))


FILES = ("model.safetensors", "optimizer.safetensors", "average-ema.safetensors")
DAMAGE: list[tuple[str, Callable[[Path], None], str]] = [
    *((name, truncate, rf"{name} has \d+ bytes of \d+") for name in FILES),
    *((name, flip_a_bit, f"{name} is not as it was written") for name in FILES),
    *((name, Path.unlink, f"{name} cannot be read .No such file") for name in (*FILES, "state.json")),
    ("state.json", truncate, "state.json is torn"),
    ("state.json", change_the_position, "state.json is not as it was written"),
]


@pytest.mark.parametrize(("name", "damage", "reason"), DAMAGE)
def test_a_damaged_checkpoint_is_skipped_for_the_one_before_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, damage: Callable[[Path], None], reason: str
) -> None:
    save(tmp_path, 2, 3)
    damage(tmp_path / "checkpoints" / "step-0000003" / name)

    assert newest(tmp_path).name == "step-0000002"

    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: skipping a damaged checkpoint of {tmp_path}, step-0000003: ")
    assert line.endswith("; going on from step-0000002")
    shutil.rmtree(tmp_path / "checkpoints" / "step-0000002")
    with pytest.raises(CheckpointError, match=f"no checkpoint to go on from: step-0000003: {reason}"):
        newest(tmp_path)


def test_the_checkpoints_of_a_future_that_was_lost_go_with_the_next(tmp_path: Path) -> None:
    checkpoints = save(tmp_path, 2, 4, 6, keep_last=3)
    truncate(tmp_path / "checkpoints" / "step-0000004" / "model.safetensors")
    truncate(tmp_path / "checkpoints" / "step-0000006" / "model.safetensors")

    Trained(1).save(checkpoints, Position(4))

    assert names(tmp_path) == ["step-0000002", "step-0000004"]
    assert newest(tmp_path).name == "step-0000004"


@pytest.mark.parametrize(
    ("field", "value"), [("source", "another store"), ("seed", 4), ("batch_size", 16), ("order_version", 0)]
)
def test_a_checkpoint_of_other_data_seed_or_batch_is_refused_by_name(
    tmp_path: Path, field: str, value: str | int
) -> None:
    checkpoints = save(tmp_path, 1)

    with pytest.raises(UsageError, match=f"was started with {field} = .* and this launch has {value!r}"):
        checkpoints.read(newest(tmp_path), replace(IDENTITY, **{field: value}))


def test_a_checkpoint_of_another_version_is_refused_even_where_an_older_one_would_do(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    path = tmp_path / "checkpoints" / "step-0000002" / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 99}))

    with pytest.raises(CheckpointError, match="state version 99"):
        newest(tmp_path)


def test_a_position_survives_its_file_to_the_last_bit(tmp_path: Path) -> None:
    sums = {"loss": math.pi, "norm": 1e-300, "sum": 0.1 + 0.2}
    checkpoints = Checkpoints(tmp_path, 1)
    path = Trained(1).save(checkpoints, Position(1, 0, 1, sums, 1))

    position, _ = checkpoints.read(path, IDENTITY)

    assert position.meter_sums == sums
