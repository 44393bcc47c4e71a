"""Samples for a run's examples: the first of its first epoch, read by the task's own reader."""

from __future__ import annotations

from collections.abc import Sequence

from mvd_offline.training.loop import Batch, Task
from mvd_offline.training.order import BatchRequest

CELLS = 8
"""Most pictures of a clip."""


def first_samples(task: Task, count: int) -> tuple[list[int], Batch]:
    """Rows, and what training got of them; fewer where an epoch has fewer."""
    rows = task.order(0)[:count].tolist()
    return rows, task.reader(BatchRequest(epoch=0, batch=0, first=0, last_of_step=True, rows=tuple(rows)))


def pictured(frames: int, tubelet_size: int) -> list[int]:
    """Frames of a clip that are shown: all of a few, or the first of each tubelet, or of some spread over the clip."""
    if frames <= CELLS:
        return list(range(frames))
    tubelets = frames // tubelet_size
    cells = min(CELLS, tubelets)
    return [cell * tubelets // cells * tubelet_size for cell in range(cells)]


def frame_ticks(shown: Sequence[int]) -> tuple[str, ...]:
    """Names of the shown frames, counted within the clip."""
    return tuple(f"frame {frame + 1}" for frame in shown) if len(shown) > 1 else ()
