"""`groups.json` of a run that follows a store: what it fixed when it began, and which groups it has used since."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from mvd_offline.errors import UsageError
from mvd_offline.shards.atomic import publish_bytes

FILE: Final = "groups.json"


class GroupLedger:
    """The file is written whole; of several processes, the main one alone uses it.

    ```
    rows_per_epoch   usable rows that every epoch of the run has
    usable_rows      by group: hash of its usable rows, when the run used it first
    epochs           by epoch, with `--follow skip`: the group that it has
    ```
    """

    def __init__(self, run: Path) -> None:
        self.run, self.path = run, run / FILE

    @property
    def begun(self) -> bool:
        return self.path.is_file()

    def begin(self, rows_per_epoch: int) -> None:
        """Fix the rows of an epoch.

        Raises:
            UsageError: the run has trained already, and its ledger is lost.
        """
        if (self.run / "checkpoints").exists():
            raise self._lost()
        self._write({"rows_per_epoch": rows_per_epoch, "usable_rows": {}, "epochs": []})

    def rows_per_epoch(self) -> int:
        return int(self._read()["rows_per_epoch"])

    def used_groups(self) -> list[int]:
        return sorted(map(int, self._read()["usable_rows"]))

    def use(self, group: int, rows_hash: str) -> str:
        """The hash of a group's usable rows when the run first used it, which is this one if it is used first now."""
        data = self._read()
        if (known := data["usable_rows"].get(str(group))) is not None:
            return str(known)
        self._write({**data, "usable_rows": {**data["usable_rows"], str(group): rows_hash}})
        return rows_hash

    def group_of(self, epoch: int) -> int | None:
        """The group that an epoch has; None before it is chosen."""
        epochs = self._read()["epochs"]
        return int(epochs[epoch]) if epoch < len(epochs) else None

    def choose(self, epoch: int, group: int) -> None:
        """Give an epoch its group, once and for all.

        Raises:
            UsageError: the epochs before it have none.
        """
        data = self._read()
        if len(data["epochs"]) != epoch:
            raise UsageError(
                f"{self.path} has the groups of {len(data['epochs'])} epochs, and the run stands at epoch {epoch}: it "
                "was changed or replaced. Put the run's own file back, or start again in another folder as --run."
            )
        self._write({**data, "epochs": [*data["epochs"], group]})

    def _read(self) -> dict[str, Any]:
        try:
            data = json.loads(self.path.read_text(encoding="utf-8"))
            if {"rows_per_epoch", "usable_rows", "epochs"} <= data.keys():
                return dict(data)
        except (OSError, ValueError, AttributeError):
            pass
        raise self._lost()

    def _lost(self) -> UsageError:
        return UsageError(
            f"{self.path} is missing or damaged, and only it knows which groups the run has used. Restore it, or start "
            "again in another folder as --run."
        )

    def _write(self, data: dict[str, Any]) -> None:
        publish_bytes(self.path, json.dumps(data, indent=2).encode() + b"\n")
