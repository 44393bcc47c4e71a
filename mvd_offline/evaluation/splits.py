"""The mean over the splits of a data set, as UCF101 and HMDB51 are reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from mvd_offline.evaluation.results import Evaluation

SPLITS_FILE = "splits.json"


@dataclass(frozen=True)
class Split:
    """A run and its result on its own test videos. `read`: it was there already, of the same settings."""

    run: str
    result: Evaluation
    read: bool


@dataclass(frozen=True)
class SplitsResult:
    """Mean and standard deviation (of the sample, n - 1) of each measure over the splits."""

    splits: tuple[Split, ...]
    mean: dict[str, float]
    deviation: dict[str, float]

    @classmethod
    def of(cls, splits: Sequence[Split]) -> SplitsResult:
        """At least two splits; each counts alike, however many videos it has (recipes of the paper's tables)."""
        found = [_measures(split.result) for split in splits]
        values = {name: [measures[name] for measures in found] for name in found[0]}
        return cls(
            tuple(splits),
            {name: mean(of_splits) for name, of_splits in values.items()},
            {name: stdev(of_splits) for name, of_splits in values.items()},
        )

    def to_json(self) -> dict[str, Any]:
        """The measures alone: all else of a split is in its own folder."""
        splits = [{"run": split.run, **_measures(split.result), "videos": split.result.videos} for split in self.splits]
        return {"mean": self.mean, "deviation": self.deviation, "splits": splits}


def _measures(result: Evaluation) -> dict[str, float]:
    return {"top1": result.top1, "top5": result.top5, "mean_class_accuracy": result.mean_class_accuracy}
