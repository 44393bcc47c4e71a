"""The results as a page of Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mvd_offline.bench.suite.lines import lines_of
from mvd_offline.bench.suite.parts import PARTS


def markdown(
    recipe: str,
    notes: Iterable[str],
    reports: Mapping[str, tuple[str, Mapping[str, Any]]],
    failed: Mapping[str, str],
    pictures: Mapping[str, str],
    machine: Mapping[str, Any],
) -> str:
    """The whole page.

    Args:
        reports: by benchmark: the command, and what it reported.
        failed: what benchmarks that failed said.
        pictures: file names by benchmark.
    """
    parts = [f"# Measured on this machine: {recipe}", "", ", ".join(f"{key} {value}" for key, value in machine.items())]
    parts += ["", "Medians, with the extremes of all repetitions."]
    parts += ["", *listed] if (listed := [f"- {note}" for note in notes]) else []
    for name, title in PARTS.items():
        if name in reports:
            command, report = reports[name]
            parts += ["", f"## {title}", "", f"`{command}`", "", "| | |", "| --- | --- |"]
            parts += [f"| {line.what} | {line} |" for line in lines_of(name, report)]
            if name in pictures:
                parts += ["", f"![{title}]({pictures[name]})"]
        elif name in failed:
            parts += ["", f"## {title}", "", "Failed:", "", "```text", failed[name], "```"]
    return "\n".join([*parts, ""])
