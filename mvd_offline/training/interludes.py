"""What a training stops for between two steps: work that looks at the model and changes nothing, such as a probe."""

from __future__ import annotations

import time
from typing import Protocol

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from mvd_offline.training.metrics import MetricsWriter
from mvd_offline.training.schedule import Schedule


class Interlude(Protocol):
    """Work after every so many epochs, and at the end of the run.

    Attributes:
        name: its values are called `NAME/...` in the metrics.
    """

    name: str
    every_epochs: float

    def look(self, accelerator: Accelerator) -> dict[str, float] | None:
        """Look at the model as it is now; all processes call it, and get the same.

        Returns:
            values by name; None where a signal asked one of the processes to stop meanwhile.
        """


class Interludes:
    """The interludes of a run: each is held once, after the checkpoint of its step.

    A line of `metrics.jsonl` says that it was. Where a kill came between checkpoint and line, the resumed run holds it.
    """

    def __init__(self, interlude: Interlude | None, schedule: Schedule, accelerator: Accelerator) -> None:
        self._interlude, self._schedule, self._accelerator = interlude, schedule, accelerator

    def due(self, step: int) -> bool:
        """Whether there is one after this many steps."""
        if self._interlude is None or not step:
            return False
        every = max(1, round(self._interlude.every_epochs * self._schedule.steps_per_epoch))
        return step % every == 0 or step == self._schedule.stop_step

    def hold(self, step: int, writer: MetricsWriter, *, stop: bool = False) -> bool:
        """Hold the interlude that is due, if there is one and it was not held before; all processes call it.

        Args:
            stop: the run is to stop here: what is due is left to the run that goes on.

        Returns:
            whether nothing is left to do.
        """
        if self._interlude is None or not self.due(step):
            return True
        prefix = f"{self._interlude.name}/"
        (held,) = broadcast_object_list([self._accelerator.is_main_process and writer.has(step, prefix)])
        if held or stop:
            return bool(held)
        began = time.perf_counter()
        values = self._interlude.look(self._accelerator)
        if values is None:
            return False
        named = {f"{prefix}{name}": value for name, value in values.items()}
        seconds = {f"{prefix}seconds": time.perf_counter() - began}
        epoch = step / self._schedule.steps_per_epoch
        writer.write({"step": step, "epoch": epoch, **named, "time": seconds})
        return True
