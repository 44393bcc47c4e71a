"""Checkpoints of a run: written whole or not at all, checked when they are read, the newest sound one goes on.

```
run/checkpoints/step-0000120/
    model.safetensors          parameters and buffers, whole, whatever launch wrote them
    optimizer.safetensors      the optimiser's tensors, `parameter/key`
    average-NAME.safetensors   a moving average of weights, if the run keeps one
    state.json                 position, identity of the data, gradient scaler; size and hash of each file; written last
```
Nothing in it is pickled.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import xxhash
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor

from mvd_offline.errors import CheckpointError, UsageError
from mvd_offline.shards.atomic import TEMPORARY_PREFIX, make_folder, sync_folder
from mvd_offline.training.order import ORDER_VERSION
from mvd_offline.training.snapshot import Snapshot

STATE_VERSION = 2
STATE_FILE, MODEL_FILE, OPTIMIZER_FILE = "state.json", "model.safetensors", "optimizer.safetensors"


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

    def exist(self) -> bool:
        """Whether there are any, sound or not."""
        return bool(self._all())

    def newest_sound(self) -> Path | None:
        """The newest checkpoint whose files are as they were written; None where there is none at all.

        Damaged ones before it are named on standard error, with what is wrong. Leftovers of a killed run are removed.

        Raises:
            CheckpointError: there are checkpoints, and all are damaged; or another version wrote them.
        """
        self._remove_leftovers()
        damaged = []
        for path in reversed(self._all()):
            try:
                _check_files(path)
            except _Damage as damage:
                damaged.append(f"{path.name}: {damage}")
                continue
            for text in damaged:
                _warn(f"skipping a damaged checkpoint of {self.folder.parent}, {text}; going on from {path.name}")
            return path
        if damaged:
            raise CheckpointError(
                f"{self.folder.parent} has no checkpoint to go on from: {'; '.join(damaged)}. Restore one of these "
                f"folders from a copy, or remove {self.folder} to begin this run anew."
            )
        return None

    def read(self, path: Path, identity: RunIdentity) -> tuple[Position, Snapshot]:
        """A sound checkpoint of this run.

        Raises:
            UsageError: it is of other data, another seed or batch size.
        """
        state = _read_state(path)
        for name, expected in asdict(identity).items():
            if state["identity"][name] != expected:
                raise UsageError(
                    f"{self.folder.parent} was started with {name} = {state['identity'][name]!r} and this launch has "
                    f"{expected!r}; a run goes on only with the same data, seed and batch size. "
                    "Use the run's own recipe, or start a new run in another folder."
                )
        snapshot = Snapshot(
            model=load_file(path / MODEL_FILE),
            optimizer=load_file(path / OPTIMIZER_FILE),
            averages={name: load_file(path / _average_file(name)) for name in state["averages"]},
            scaler=state["scaler"],
        )
        return Position(**state["position"]), snapshot

    def save(self, position: Position, identity: RunIdentity, snapshot: Snapshot) -> Path:
        """Write a checkpoint, and drop the oldest ones, and those of a future that was lost with a damaged one."""
        final = self.folder / f"step-{position.step:07d}"
        make_folder(self.folder)
        self._remove_leftovers()
        temporary = self.folder / f"{TEMPORARY_PREFIX}{final.name}"
        temporary.mkdir()
        _write(temporary / MODEL_FILE, snapshot.model)
        _write(temporary / OPTIMIZER_FILE, snapshot.optimizer)
        for name, tensors in snapshot.averages.items():
            _write(temporary / _average_file(name), tensors)
        state = {
            "version": STATE_VERSION,
            "position": asdict(position),
            "identity": asdict(identity),
            "scaler": snapshot.scaler,
            "averages": sorted(snapshot.averages),
            "files": {path.name: _facts(path) for path in sorted(temporary.iterdir())},
        }
        text = json.dumps({**state, "xxh3": _hash_of(state)}, indent=2)
        (temporary / STATE_FILE).write_text(text, encoding="utf-8")
        for path in temporary.iterdir():
            _sync(path)
        sync_folder(temporary)
        for lost in (path for path in self._all() if path.name >= final.name):
            self._remove(lost)
        os.rename(temporary, final)
        sync_folder(self.folder)
        for old in self._all()[: -self.keep_last]:
            self._remove(old)
        return final

    def _all(self) -> list[Path]:
        """Oldest first. Folders are renamed into place, so what bears the name was complete once."""
        return sorted(self.folder.glob("step-*")) if self.folder.is_dir() else []

    def _remove(self, path: Path) -> None:
        """Under another name first: a run that is killed meanwhile leaves nothing that looks like a checkpoint."""
        aside = self.folder / f"{TEMPORARY_PREFIX}old-{path.name}"
        os.rename(path, aside)
        shutil.rmtree(aside)

    def _remove_leftovers(self) -> None:
        for leftover in self.folder.glob(f"{TEMPORARY_PREFIX}*"):
            shutil.rmtree(leftover)


class _Damage(Exception):
    """A checkpoint is not as it was written; the text says what is wrong."""


def _check_files(path: Path) -> None:
    for name, written in _read_state(path)["files"].items():
        try:
            found = _facts(path / name)
        except OSError as error:
            raise _Damage(f"{name} cannot be read ({error.strerror})") from error
        if found["bytes"] != written["bytes"]:
            raise _Damage(f"{name} has {found['bytes']} bytes of {written['bytes']}")
        if found != written:
            raise _Damage(f"{name} is not as it was written (its hash differs)")


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
        version, written = state["version"], state.pop("xxh3", None)
    except OSError as error:
        raise _Damage(f"{STATE_FILE} cannot be read ({error.strerror})") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _Damage(f"{STATE_FILE} is torn") from error
    if version != STATE_VERSION:
        raise CheckpointError(
            f"{path} has state version {version!r} and this program reads {STATE_VERSION}: go on with the version "
            "that started the run, or start a new run in another folder."
        )
    if written != _hash_of(state):
        raise _Damage(f"{STATE_FILE} is not as it was written (its hash differs)")
    return dict(state)


def _average_file(name: str) -> str:
    return f"average-{name}.safetensors"


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    # Cloned: safetensors refuses tensors that share memory, as equal position tables do.
    save_file({name: value.detach().cpu().clone() for name, value in tensors.items()}, path)


def _facts(path: Path) -> dict[str, Any]:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
        return {"bytes": file.tell(), "xxh3": digest.hexdigest()}


def _hash_of(state: Mapping[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(state, sort_keys=True).encode())


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _warn(text: str) -> None:
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"warning: {text}", markup=False)
