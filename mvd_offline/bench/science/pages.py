"""The results as a page of Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mvd_offline.bench.science.results import PROTOCOLS, Finding, Measured, Protocol
from mvd_offline.bench.science.rows import Table
from mvd_offline.bench.science.videos import TASKS

TITLES: dict[Protocol, str] = {"finetuned": "fine-tuned", "probed": "linear probe"}
TABLES: dict[Table, str] = {
    "objectives": "What to learn from",
    "reuse": "How often a view may be seen again: both teachers, the same number of steps",
}


def result_cells(found: Measured) -> list[str]:
    """Title, what it learnt, operations, seconds, four accuracies in percent, the paper's two."""
    paper = ["-" if value is None else f"{value:.1f}" for value in found.row.paper]
    note = f" ({found.row.note})" if found.row.note else ""
    accuracies = [str(found.accuracy[protocol][task]) for protocol in PROTOCOLS for task in TASKS]
    learnt = ", ".join(f"{name} {100 * share:.0f}" for name, share in found.learnt.items()) or "-"
    seconds = f"{statistics.fmean(found.pretraining_seconds):.0f}" if found.pretraining_seconds else "-"
    flops = "-" if found.pretraining_flops is None else f"{found.pretraining_flops / 1e12:.1f}"
    return [found.row.title, learnt, flops, seconds, *accuracies, " / ".join(paper) + note]


RESULT_HEADS = (
    "pretrained from",
    "predicts of what is hidden, %",
    "TFLOP",
    "seconds",
    *(f"{task}, {TITLES[protocol]}" for protocol in PROTOCOLS for task in TASKS),
    "paper: K400 / SSv2",
)


def finding_cells(finding: Finding) -> list[str]:
    """Ordering, task, the two differences in points, the seeds that agree, the verdict."""
    ordering = finding.ordering
    return [
        f"{ordering.better} > {ordering.worse}, {ordering.task}",
        TITLES[finding.protocol],
        f"{ordering.paper_points:+.1f} ({ordering.source})",
        f"{finding.points:+.1f}" if finding.seeds else "-",
        f"{finding.seeds_agreeing} of {finding.seeds}",
        finding.verdict,
    ]


FINDING_HEADS = ("ordering", "protocol", "paper, points", "here, points", "seeds that agree", "verdict")


def markdown(
    rows: Mapping[Table, Sequence[Measured]],
    found: Sequence[Finding],
    facts: Iterable[str],
    seconds: Mapping[str, float],
    machine: Mapping[str, Any],
) -> str:
    """The whole page."""
    parts = ["# Masked video distillation in miniature", "", *(f"- {fact}" for fact in facts), ""]
    for table, measured in rows.items():
        parts += [f"## {TABLES[table]}", "", *_table(RESULT_HEADS, map(result_cells, measured)), ""]
    parts += ["## The paper's orderings", "", *_table(FINDING_HEADS, map(finding_cells, found)), ""]
    parts += ["## Seconds of each part, summed over processes", ""]
    parts += [*_table(("part", "seconds"), ([name, f"{value:.0f}"] for name, value in seconds.items())), ""]
    parts += [", ".join(f"{key} {value}" for key, value in machine.items()), ""]
    return "\n".join(parts)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [heads, ["---"] * len(heads), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]
