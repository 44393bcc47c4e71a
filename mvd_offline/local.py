"""`local.json`: where this machine keeps the videos and the teachers' weights of a store.

A convenience beside the store's identity: never hashed, never verified, safe to delete. Paths given on the command
line win over it, and update it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from mvd_offline.errors import UsageError
from mvd_offline.shards.atomic import publish_bytes

FILE = "local.json"


@dataclass(frozen=True)
class Local:
    """Paths of one machine: the videos' root, and each teacher's weights as the recipe names them."""

    videos_root: Path | None = None
    teachers: dict[str, str] = field(default_factory=dict)


def read_local(store: Path) -> Local:
    path = store / FILE
    if not path.is_file():
        return Local()
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        root = data["videos_root"]
        return Local(Path(root) if root else None, {str(k): str(v) for k, v in data["teachers"].items()})
    except (json.JSONDecodeError, KeyError, AttributeError, UnicodeDecodeError):
        raise UsageError(
            f"{path} is not readable; it holds only conveniences: delete it and give --root and --teacher instead."
        ) from None


def write_local(store: Path, local: Local) -> None:
    """Remember these paths. Writes nothing where they are known: a finished store may lie on a read-only disk."""
    data = {"videos_root": str(local.videos_root) if local.videos_root else None, "teachers": local.teachers}
    content, path = (json.dumps(data, indent=2, sort_keys=True) + "\n").encode(), store / FILE
    if not path.is_file() or path.read_bytes() != content:
        publish_bytes(path, content)


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
