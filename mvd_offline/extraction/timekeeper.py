"""How long an extraction takes, noted beside the store as it goes, so that interruptions add up."""

from __future__ import annotations

import time
import uuid
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Final

from rich.console import Console

from mvd_offline.local import ExtractionTime, Local, TeacherTime, update_local

NOTE_EVERY_SECONDS: Final = 30.0
"""A killed extraction has this much of its time missing at most, and what it did since its last shard."""


class Timekeeper:
    """The time of one process, in the store's `local.json`; leaving it notes the last of it."""

    def __init__(self, store: Path, device: str, began: float) -> None:
        """`began`: `time.perf_counter()` when the process set out."""
        self._store, self._device, self._began, self._noted = store, device, began, began
        self._name = uuid.uuid4().hex
        self._teachers: dict[str, TeacherTime] = {}

    def __enter__(self) -> Timekeeper:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write(time.perf_counter())

    def ran(self, column: str, clips: int, seconds: float) -> None:
        """A teacher saw some more clips."""
        before = self._teachers.get(column, TeacherTime(0, 0.0))
        self._teachers[column] = TeacherTime(before.clips + clips, before.seconds + seconds)

    def note(self) -> None:
        """Note the time, if it is long since it was noted."""
        if (now := time.perf_counter()) - self._noted > NOTE_EVERY_SECONDS:
            self._write(now)

    def _write(self, now: float) -> None:
        if not self._teachers:
            return
        self._noted = now
        taken = ExtractionTime(self._device, now - self._began, dict(self._teachers))

        def with_ours(local: Local) -> Local:
            return replace(local, extractions={**local.extractions, self._name: taken})

        try:
            update_local(self._store, with_ours)
        except OSError as error:
            # The targets are what counts: a full disk must not spoil them for the sake of this note.
            Console(stderr=True, soft_wrap=True, highlight=False).print(
                f"the time of this extraction was not noted in {self._store}: {error.strerror}", markup=False
            )
