"""Checkpoints of a run: written whole or not at all, found again by whoever goes on.

```
run/checkpoints/step-0000120/
    model.safetensors     parameters and buffers
    optimizer.pt          optimiser and gradient scaler (tensors and numbers only; loaded with weights_only=True)
    state.json            position, order version, identity of the data; written last
```
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mvd_offline.errors import CheckpointError, UsageError
from mvd_offline.training.order import ORDER_VERSION

STATE_VERSION = 1


@dataclass(frozen=True)
class Position:
    """Where a run stands: `step` optimiser steps are done; the next batch is number `batch` of `epoch`."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    meter_sums: dict[str, float] = field(default_factory=dict)
    meter_count: int = 0


@dataclass(frozen=True)
class RunIdentity:
    """What a resumed run must share with the run that it goes on from."""

    source: str
    """Store id, or the catalog's hash."""
    seed: int
    batch_size: int
    order_version: int = ORDER_VERSION


class Checkpoints:
    """The resume states of one run folder."""

    def __init__(self, run: Path, keep_last: int) -> None:
        self.folder, self.keep_last = run / "checkpoints", keep_last

    def latest(self) -> Path | None:
        """The newest complete checkpoint. Folders are renamed into place, so what bears the name is complete."""
        found = sorted(self.folder.glob("step-*")) if self.folder.is_dir() else []
        return found[-1] if found else None

    def save(
        self,
        position: Position,
        identity: RunIdentity,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: dict[str, Any] | None,
    ) -> Path:
        final = self.folder / f"step-{position.step:07d}"
        if final.exists():
            return final
        self.folder.mkdir(parents=True, exist_ok=True)
        for abandoned in self.folder.glob(".tmp-*"):
            shutil.rmtree(abandoned)
        temporary = self.folder / f".tmp-{final.name}"
        temporary.mkdir()
        # Cloned: safetensors refuses tensors that share memory, as equal position tables do.
        tensors = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
        save_file(tensors, temporary / "model.safetensors")
        torch.save({"optimizer": optimizer.state_dict(), "scaler": scaler}, temporary / "optimizer.pt")
        state = {"version": STATE_VERSION, "position": asdict(position), "identity": asdict(identity)}
        (temporary / "state.json").write_text(json.dumps(state, indent=2), encoding="utf-8")
        for path in temporary.iterdir():
            _fsync(path)
        _fsync(temporary)
        os.rename(temporary, final)
        _fsync(self.folder)
        for old in sorted(self.folder.glob("step-*"))[: -self.keep_last]:
            shutil.rmtree(old)
        return final

    def restore(
        self, path: Path, identity: RunIdentity, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[Position, dict[str, Any] | None]:
        """Load a checkpoint in place; returns the position and the gradient scaler's state."""
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        if state["version"] != STATE_VERSION:
            raise CheckpointError(f"{path}: state version {state['version']}; this version reads {STATE_VERSION}")
        for name, expected in asdict(identity).items():
            if state["identity"][name] != expected:
                raise UsageError(
                    f"{path.parent.parent} was started with {name} = {state['identity'][name]!r} and this launch has "
                    f"{expected!r}; a run goes on only with the same data, seed and batch size. "
                    "Use the run's own recipe, or start a new run in another folder."
                )
        model.load_state_dict(load_file(path / "model.safetensors"))
        saved = torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True)
        optimizer.load_state_dict(saved["optimizer"])
        return Position(**state["position"]), saved["scaler"]


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
