"""`local.json`: where this machine keeps the videos and the teachers' weights of a store, and what filling it took.

A convenience beside the store's identity: never hashed, never verified, safe to delete. Paths given on the command
line win over it, and update it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mvd_offline.errors import UsageError
from mvd_offline.shards.atomic import publish_bytes
from mvd_offline.shards.claims import store_lock

FILE = "local.json"


@dataclass(frozen=True)
class TeacherTime:
    """Clips that a teacher saw in an extraction, and the seconds that its device took for them."""

    clips: int
    seconds: float


@dataclass(frozen=True)
class ExtractionTime:
    """What one process of one extraction took, from its start to the last time that it was noted."""

    device: str
    seconds: float
    teachers: dict[str, TeacherTime]
    """By column."""


@dataclass(frozen=True)
class Local:
    """Paths of one machine: the videos' root, and each teacher's weights as the recipe names them."""

    videos_root: Path | None = None
    teachers: dict[str, str] = field(default_factory=dict)
    extractions: dict[str, ExtractionTime] = field(default_factory=dict)
    """By a name of the process that no other one has."""


def read_local(store: Path) -> Local:
    path = store / FILE
    if not path.is_file():
        return Local()
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        root = data["videos_root"]
        return Local(
            Path(root) if root else None,
            {str(k): str(v) for k, v in data["teachers"].items()},
            {str(k): _extraction(v) for k, v in data.get("extractions", {}).items()},
        )
    except (json.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError, UnicodeDecodeError):
        raise UsageError(
            f"{path} is not readable; it holds only conveniences: delete it and give --root and --teacher instead."
        ) from None


def write_local(store: Path, local: Local) -> None:
    """Remember these paths. Writes nothing where they are known: a finished store may lie on a read-only disk."""
    data: dict[str, Any] = {
        "videos_root": str(local.videos_root) if local.videos_root else None,
        "teachers": local.teachers,
    }
    if local.extractions:
        data["extractions"] = {name: asdict(taken) for name, taken in local.extractions.items()}
    content, path = (json.dumps(data, indent=2, sort_keys=True) + "\n").encode(), store / FILE
    if not path.is_file() or path.read_bytes() != content:
        publish_bytes(path, content)


def update_local(store: Path, change: Callable[[Local], Local]) -> None:
    """`write_local` of what `change` makes of what is there, whoever else does the same meanwhile."""
    with store_lock(store):
        write_local(store, change(read_local(store)))


def _extraction(data: dict[str, Any]) -> ExtractionTime:
    teachers = {str(name): TeacherTime(int(t["clips"]), float(t["seconds"])) for name, t in data["teachers"].items()}
    return ExtractionTime(str(data["device"]), float(data["seconds"]), teachers)


def resolve_root(store: Path, given: Path | None) -> Path:
    """The videos' root: the one given, else the one remembered."""
    root = given or read_local(store).videos_root
    if root is None:
        raise UsageError(f"{store} does not know where its videos are on this machine: give --root DIR.")
    if not root.is_dir():
        raise UsageError(f"the videos' root {root} is no folder: give --root DIR.")
    return root


def absolute_weights(weights: str) -> str:
    """A path that is good from every folder; names such as `timm:NAME` stay."""
    path = Path(weights)
    return str(path.resolve()) if path.exists() else weights
