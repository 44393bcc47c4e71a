"""Files of our own: safetensors whose metadata says all that is needed to build the model again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from safetensors.torch import save
from torch import Tensor

from mvd_offline.shards.atomic import publish_bytes


class Saveable(Protocol):
    def config(self) -> dict[str, Any]: ...
    def state_dict(self) -> dict[str, Tensor]: ...


def save_model(
    path: str | Path, model: Saveable, *, recipe: str = "", state: Mapping[str, Tensor] | None = None
) -> None:
    """Write a student, a classifier or a pretraining model as safetensors, atomically; equal models, equal bytes.

    The metadata holds `format` ("mvd-offline student", ...), `heads`, `config` (JSON: all sizes) and, when given, the
    resolved `recipe` as YAML (`dump_recipe`), so that `load_student` and the others need no arguments. `state` are the
    weights, where the model does not hold them itself: one that is sharded, or an average.
    """
    config = model.config()
    metadata = {
        # FSDP names the class of a sharded model after its own: FSDPStudent.
        "format": f"mvd-offline {type(model).__name__.removeprefix('FSDP').lower()}",
        "heads": str(config["arch"]["heads"]),
        "config": json.dumps(config, sort_keys=True),
    }
    if recipe:
        metadata["recipe"] = recipe
    write_safetensors(path, model.state_dict() if state is None else state, metadata)


def write_safetensors(path: str | Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors (moved to the CPU, names sorted) to a temporary file beside `path`, then rename it."""
    tensors = {name: state[name].detach().cpu().contiguous() for name in sorted(state)}
    write_whole(path, _with_sorted_metadata(save(tensors, metadata=dict(metadata))))


def _with_sorted_metadata(payload: bytes) -> bytes:
    """Equal models give equal bytes: the safetensors library writes metadata in an order that differs by process."""
    length = int.from_bytes(payload[:8], "little")
    header = json.loads(payload[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + payload[8 + length :]


def write_whole(path: str | Path, payload: bytes) -> None:
    """Write a file and the folders above it: a reader sees the old content or the new, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    publish_bytes(path, payload)
