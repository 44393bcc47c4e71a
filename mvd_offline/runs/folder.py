"""A run's folder, read: its recipe, identity, metrics, hours and tests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mvd_offline.hours import REPORT_FILE
from mvd_offline.recipe import Recipe, load_recipe
from mvd_offline.runs.metrics import Metrics
from mvd_offline.training.run import (
    EVALUATION_FILE,
    IDENTITY_FILE,
    PROBE_FILE,
    PROBE_FOLDER,
    RECIPE_FILE,
    read_identity,
    require_run,
)

TESTS: Final = {"": "test", "ema": "test of averaged weights"}
"""Where in a run the results of `evaluate` lie, and what each is of."""


@dataclass(frozen=True)
class RunFolder:
    """What a run left, or has left so far.

    Attributes:
        launches: who trained it from which step on, as `accounting.Launch`.
        training: `accounting.TrainingTime`; None while the run is not at its end.
        hours: `hours.Hours` of a distillation that is at its end.
        probes: what `evaluate RUN --probe` found of the models as they are now, by kind of probe.
        evaluations: `evaluation.json` of the models as they are now, by the folder in which it lies, of `TESTS`.
        outdated: results of models that the run has since trained on, in words, with their step.
    """

    path: Path
    recipe: Recipe
    identity: Mapping[str, str]
    metrics: Metrics
    launches: tuple[Mapping[str, Any], ...]
    training: Mapping[str, Any] | None
    hours: Mapping[str, Any] | None
    probes: Mapping[str, Mapping[str, Any]]
    evaluations: Mapping[str, Mapping[str, Any]]
    outdated: Mapping[str, int]

    @classmethod
    def read(cls, path: Path) -> RunFolder:
        """Raises UsageError where no run is."""
        require_run(path)
        report = _json(path / REPORT_FILE)
        metrics = Metrics.read(path)
        probed = _json(path / PROBE_FOLDER / PROBE_FILE)
        tested = {place: _json(path / place / EVALUATION_FILE) for place in TESTS}
        named = {"probes": probed} | {TESTS[place]: result for place, result in tested.items()}
        # What does not say its step counts as of now.
        steps = {name: result.get("step") for name, result in named.items()}
        outdated = {name: step for name, step in steps.items() if isinstance(step, int) and step < metrics.last_step}
        return cls(
            path=path,
            recipe=load_recipe(path / RECIPE_FILE),
            identity=read_identity(path) if (path / IDENTITY_FILE).is_file() else {},
            metrics=metrics,
            launches=tuple(report.get("launches", ())),
            training=report.get("training"),
            hours=report.get("hours"),
            probes={} if "probes" in outdated else probed.get("probes", {}),
            evaluations={
                place: result for place, result in tested.items() if "top1" in result and TESTS[place] not in outdated
            },
            outdated=outdated,
        )

    @property
    def finished(self) -> bool:
        return self.training is not None

    @property
    def method(self) -> str:
        """What kind of training it is, as its progress says: `distill`, `finetune`, `mae`, `videomae`."""
        return self.recipe.method if self.recipe.kind == "pretrain" else self.recipe.kind


def _json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none, or where it is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}
