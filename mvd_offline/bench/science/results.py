"""What came out: means and spreads of every row, and which of the paper's orderings the miniature shows."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from mvd_offline.bench.science.rows import IMAGE_TEACHER, VIDEO_TEACHER, Row
from mvd_offline.bench.science.videos import TASKS, Task

Parts: TypeAlias = Mapping[str, Mapping[str, Any]]
Protocol: TypeAlias = Literal["finetuned", "probed"]
PROTOCOLS: tuple[Protocol, ...] = ("finetuned", "probed")
TEACHER_PARTS = {IMAGE_TEACHER.name: "teacher_mae", VIDEO_TEACHER.name: "teacher_videomae"}
"""The part in which a row's encoder was trained, of rows that are no students."""
Verdict: TypeAlias = Literal["as in the paper", "against the paper", "undecided", "not measured"]


@dataclass(frozen=True)
class Accuracy:
    """Top-1 shares of the test videos, one a seed."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float:
        """Standard deviation over seeds; 0 for one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0

    def __str__(self) -> str:
        if not self.values:
            return "-"
        return f"{100 * self.mean:.1f}" + (f" ± {100 * self.spread:.1f}" if len(self.values) > 1 else "")


@dataclass(frozen=True)
class Measured:
    """A row with what was found: accuracies by protocol and task, loss, seconds and operations of its pretraining.

    Attributes:
        learnt: how much of what is hidden it predicts (see `learnt.py`), mean over seeds, by target.
    """

    row: Row
    accuracy: dict[Protocol, dict[Task, Accuracy]]
    pretraining_seconds: tuple[float, ...]
    pretraining_loss: tuple[float, ...]
    pretraining_flops: int | None
    learnt: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        accuracy = {p: {task: list(self.accuracy[p][task].values) for task in TASKS} for p in PROTOCOLS}
        return {
            **asdict(self.row),
            "top1": accuracy,
            "pretraining_seconds": list(self.pretraining_seconds),
            "pretraining_loss": list(self.pretraining_loss),
            "pretraining_flops": self.pretraining_flops,
            "learnt": self.learnt,
        }


def measured(row: Row, seeds: int, parts: Parts) -> Measured:
    """A row from the parts that are done; seeds that are missing are left out."""
    names = [f"{row.name}-{seed}" for seed in range(seeds)]
    tuned = {task: [parts[f"{n}-{task}"]["top1"] for n in names if f"{n}-{task}" in parts] for task in TASKS}
    probed = {task: [parts[f"{n}-probe"][task] for n in names if f"{n}-probe" in parts] for task in TASKS}
    of_training = TEACHER_PARTS.get(row.name)
    trainings = [of_training] if of_training else [f"{name}-pretraining" for name in names]
    trained = [parts[name] for name in trainings if name in parts]
    return Measured(
        row,
        {
            "finetuned": {task: Accuracy(tuple(values)) for task, values in tuned.items()},
            "probed": {task: Accuracy(tuple(values)) for task, values in probed.items()},
        },
        tuple(done["seconds"] for done in trained),
        tuple(done["last"]["loss"] for done in trained if done.get("last")),
        trained[0]["flops"] if trained else None,
        _means([done["learnt"] for done in trained]),
    )


def _means(several: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: statistics.fmean(each[name] for each in several) for name in (several[0] if several else ())}


# ---- orderings ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ordering:
    """One of the paper's findings: `better` beats `worse` on a task, and by how much there."""

    better: str
    worse: str
    task: Task
    paper_points: float
    source: str


ORDERINGS = (
    Ordering("image", "video", "spatial", 0.2, "table 1, K400, ViT-B"),
    Ordering("video", "image", "temporal", 0.4, "table 1, SSv2, ViT-B"),
    Ordering("both", "image", "spatial", 0.4, "table 1, K400, ViT-B"),
    Ordering("both", "video", "spatial", 0.6, "table 1, K400, ViT-B"),
    Ordering("both", "image", "temporal", 1.1, "table 1, SSv2, ViT-B"),
    Ordering("both", "video", "temporal", 0.7, "table 1, SSv2, ViT-B"),
    Ordering("both", "pixels", "spatial", 1.2, "K400, ViT-B; VideoMAE trains 4 times as long"),
    Ordering("both", "pixels", "temporal", 2.8, "SSv2, ViT-B; VideoMAE trains 4 times as long"),
    Ordering("both", "both_pixels", "temporal", 1.1, "table 8, SSv2, ViT-S"),
    Ordering("video", "momentum", "spatial", 1.6, "table 9, K400, ViT-B; the momentum teacher trains twice as long"),
    Ordering("video", "momentum", "temporal", 1.4, "table 9, SSv2, ViT-B; the momentum teacher trains twice as long"),
    Ordering("video", "per_token", "spatial", 1.2, "table 10, K400, ViT-B"),
    Ordering("video", "per_token", "temporal", 1.3, "table 10, SSv2, ViT-B"),
)


LEAST_SEEDS = 3
"""Below this many, the seeds' agreement says nothing."""


@dataclass(frozen=True)
class Finding:
    """An ordering beside the miniature's own: the difference in points, mean over seeds, and how many seeds agree."""

    ordering: Ordering
    protocol: Protocol
    points: float
    seeds_agreeing: int
    seeds: int
    verdict: Verdict

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compare(ordering: Ordering, protocol: Protocol, rows: Mapping[str, Measured]) -> Finding:
    """Whether every seed has the paper's ordering, every seed the opposite one, or neither.

    Fewer than three seeds decide nothing, nor does a difference that is smaller than its spread over the seeds.
    """
    better, worse = (rows[name].accuracy[protocol][ordering.task].values for name in (ordering.better, ordering.worse))
    if not better or len(better) != len(worse):
        return Finding(ordering, protocol, 0.0, 0, 0, "not measured")
    differences = [100 * (a - b) for a, b in zip(better, worse, strict=True)]
    above, below = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    mean = statistics.fmean(differences)
    clear = len(differences) >= LEAST_SEEDS and abs(mean) > statistics.stdev(differences)
    verdict: Verdict = "undecided"
    if clear and above == len(differences):
        verdict = "as in the paper"
    elif clear and below == len(differences):
        verdict = "against the paper"
    return Finding(ordering, protocol, mean, above, len(differences), verdict)


def findings(rows: Sequence[Measured]) -> list[Finding]:
    """Every ordering under both protocols."""
    by_name = {found.row.name: found for found in rows}
    return [compare(ordering, protocol, by_name) for protocol in PROTOCOLS for ordering in ORDERINGS]
