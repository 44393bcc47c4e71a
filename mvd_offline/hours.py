"""The hours of a student: of its teachers, of the extraction of their targets, of its training, cached and online.

These four figures are the accounting of the paper's table 7. The planner estimates them before anything runs, and a
run's report measures them; both get them from `hours_of`. Hours are those of one device, so that runs on any number of
devices compare.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from mvd_offline.local import read_local
from mvd_offline.recipe import DistillRecipe, TeacherName

REPORT_FILE: Final = "report.json"


@dataclass(frozen=True)
class Figure:
    """Seconds of one device."""

    device_seconds: float | None
    basis: Literal["measured", "estimated", "unknown"]
    how: str
    """What it comes from; of an unknown one, what would make it known."""


@dataclass(frozen=True)
class Hours:
    """What a student takes."""

    teachers: Mapping[TeacherName, Figure]
    """Pretraining of each frozen teacher whose targets are used."""
    extraction: Figure
    cached: Figure
    """Training on the store, its extraction not included."""
    online: Figure
    """The same training with the teachers beside the student."""

    @property
    def speedup(self) -> float | None:
        """Online over cached, the extraction included."""
        online, cached, extraction = (figure.device_seconds for figure in (self.online, self.cached, self.extraction))
        if not self.teachers or online is None or cached is None or extraction is None:
            return None
        return online / (cached + extraction)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "speedup": self.speedup}


def estimated(device_seconds: float, how: str) -> Figure:
    return Figure(device_seconds, "estimated", how)


def measured(device_seconds: float, how: str) -> Figure:
    return Figure(device_seconds, "measured", how)


def unknown(how: str) -> Figure:
    return Figure(None, "unknown", how)


def hours_of(
    recipe: DistillRecipe, stores: Sequence[Path], *, extraction: Figure, cached: Figure, online: Figure
) -> Hours:
    """The four figures of a distillation from these stores; the teachers' own come from the reports of their runs."""
    teachers = {name: _pretraining(recipe, name, stores) for name in recipe.active_teachers}
    return Hours(teachers, extraction, cached, online)


def _pretraining(recipe: DistillRecipe, name: TeacherName, stores: Sequence[Path]) -> Figure:
    """Of a teacher whose weights lie in the folder of their own run, which has a report."""
    weights = recipe.teachers[name].weights
    places = [weights]
    places += [path for store in stores if (path := read_local(store).teachers.get(recipe.column(name)))]
    for place in places:
        run = Path(place).parent
        if Path(place).is_file() and (run / REPORT_FILE).is_file():
            training = json.loads((run / REPORT_FILE).read_text(encoding="utf-8")).get("training")
            if training is None:
                return unknown(f"its run {run} is not at its end; go on with it")
            return measured(float(training["device_seconds"]), str(run))
    return unknown(f"only a run folder of `mvd-offline pretrain` tells it; {weights} is in none")
