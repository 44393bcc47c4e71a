"""Runs side by side: what differs between their recipes and their data, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mvd_offline.recipe.comparing import ABSENT, differences, flat_recipe, value_in_words
from mvd_offline.runs.folder import TESTS, RunFolder
from mvd_offline.runs.metrics import PROBE
from mvd_offline.units import device_hours

Words = Callable[[Any], str]
_SCORES: Final = {"top1": "top-1", "top5": "top-5", "mean_class_accuracy": "mean class"}


@dataclass(frozen=True)
class Row:
    """One fact of each run, in the order of the runs; None, or `ABSENT` of a recipe, where a run has none.

    Attributes:
        texts: the values as a reader wants them.
    """

    section: str
    name: str
    values: tuple[Any, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Runs by name, facts of them, and what to mind when one reads these."""

    runs: Mapping[str, Path]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        def values(row: Row) -> dict[str, Any]:
            return {name: value for name, value in zip(self.runs, row.values, strict=True) if value is not ABSENT}

        rows = [{"section": row.section, "name": row.name, "values": values(row)} for row in self.rows]
        return {"runs": dict(self.runs), "notes": list(self.notes), "rows": rows}


def compare(runs: Mapping[str, Path]) -> Comparison:
    """Set runs side by side, of one kind or of several.

    Args:
        runs: folders, by the names that they have in the table.

    Raises:
        UsageError: no run.
    """
    found = {name: RunFolder.read(path) for name, path in runs.items()}
    every = list(found.values())
    rows = [
        *_state(every),
        *_losses(every),
        *_probes(every),
        *_probes_at_the_end(every),
        *_tests(every),
        *_hours(every),
    ]
    rows += [*_recipes(every), *_identities(every)]
    return Comparison(dict(runs), tuple(rows), tuple(_notes(found)))


# ---- what came of them -------------------------------------------------------------------------------------------


def _row(section: str, name: str, values: list[Any], words: Words) -> Row:
    nothing = (ABSENT,) if section == "recipe" else (None,)
    texts = tuple("-" if value in nothing else words(value) for value in values)
    return Row(section, name, tuple(values), texts)


def _state(runs: list[RunFolder]) -> Iterator[Row]:
    if len({run.method for run in runs}) > 1:
        yield _row("run", "kind", [run.method for run in runs], str)
    yield _row("run", "recipe", [run.recipe.name for run in runs], str)
    yield _row("run", "state", ["finished" if run.finished else "not finished" for run in runs], str)
    yield _row("run", "steps", [run.metrics.last_step for run in runs], _grouped)
    yield _row("run", "epochs", [run.metrics.training[-1].epoch if run.metrics.training else 0 for run in runs], _short)
    batches = [run.metrics.last_step * run.recipe.optim.batch_size for run in runs]
    yield _row("run", "samples seen", batches, _grouped)


def _losses(runs: list[RunFolder]) -> Iterator[Row]:
    """The last line's, of each kind of training in rows of its own."""
    methods = list(dict.fromkeys(run.method for run in runs))
    for method in methods:
        names = dict.fromkeys(
            name for run in runs if run.method == method for name in run.metrics.names("loss", "accuracy")
        )
        for name in names:
            values = [run.metrics.series(name).last if run.method == method else None for run in runs]
            words = _percent if name == "accuracy" else _short
            title = f"{name} of its batches" if name == "accuracy" else name
            yield _row("last line", title if len(methods) == 1 else f"{method}: {title}", values, words)


def _probes(runs: list[RunFolder]) -> Iterator[Row]:
    names = dict.fromkeys(name for run in runs for name in run.metrics.names(PROBE) if "_top" in name)
    if not names:
        return
    series = [[run.metrics.series(name) for run in runs] for name in names]
    steps = [max((one.step[-1] for one in of_run if one.step), default=None) for of_run in zip(*series, strict=True)]
    yield _row("last probe", "after step", steps, _grouped)
    for name, of_name in zip(names, series, strict=True):
        title = name.removeprefix(PROBE).replace("_", " ")
        yield _row("last probe", title, [one.last for one in of_name], _percent)


def _probes_at_the_end(runs: list[RunFolder]) -> Iterator[Row]:
    for kind in dict.fromkeys(kind for run in runs for kind in run.probes):
        for key, title in _SCORES.items():
            values = [run.probes.get(kind, {}).get(key) for run in runs]
            yield _row("probes by evaluate", f"{kind} {title}", values, _percent)


def _tests(runs: list[RunFolder]) -> Iterator[Row]:
    for place in dict.fromkeys(place for run in runs for place in run.evaluations):
        results = [run.evaluations.get(place, {}) for run in runs]
        section = TESTS[place]
        for key, title in _SCORES.items():
            yield _row(section, title, [result.get(key) for result in results], _percent)
        yield _row(section, "videos", [result.get("videos") for result in results], _grouped)
        views = [(result["segments"], result["crops"]) if result else None for result in results]
        yield _row(section, "segments × crops", views, lambda view: f"{view[0]} × {view[1]}")


def _hours(runs: list[RunFolder]) -> Iterator[Row]:
    """Of one device; those of teachers and extraction where a distillation has them."""
    seconds = [run.training["device_seconds"] if run.training else None for run in runs]
    yield _row("device time", "training", seconds, device_hours)
    hours = [run.hours if run.hours and run.hours["teachers"] else None for run in runs]
    figures = [dict(one["teachers"]) if one else {} for one in hours]
    for teacher in dict.fromkeys(name for one in figures for name in one):
        values = [one.get(teacher, {}).get("device_seconds") for one in figures]
        yield _row("device time", f"pretraining of the {teacher} teacher", values, device_hours)
    if any(hours):
        for key, title in (("extraction", "extraction"), ("online", "training with teachers beside it")):
            values = [one[key]["device_seconds"] if one else None for one in hours]
            yield _row("device time", title, values, device_hours)


# ---- what they are -----------------------------------------------------------------------------------------------


def _recipes(runs: list[RunFolder]) -> Iterator[Row]:
    """Keys whose values differ; of several kinds of runs, among the keys that all have."""
    flat = [flat_recipe(run.recipe) for run in runs]
    if _kinds(runs) > 1:
        shared = set.intersection(*map(set, flat))
        flat = [{key: value for key, value in one.items() if key in shared} for one in flat]
    for one in differences(flat):
        yield _row("recipe", one.key, list(one.values), value_in_words)


def _identities(runs: list[RunFolder]) -> Iterator[Row]:
    """Names of data and weights that differ; among those that all have, where the kinds of runs differ."""
    for key in dict.fromkeys(key for run in runs for key in run.identity):
        values = [run.identity.get(key) for run in runs]
        everywhere = None not in values
        if len(set(values)) > 1 and (everywhere or _kinds(runs) == 1):
            yield _row("identity", key, values, lambda value: value if len(value) <= 16 else f"{value[:12]}…")


def _kinds(runs: list[RunFolder]) -> int:
    return len({run.recipe.kind for run in runs})


def _notes(runs: Mapping[str, RunFolder]) -> Iterator[str]:
    every = list(runs.values())
    if _kinds(every) > 1:
        kinds = ", ".join(dict.fromkeys(run.recipe.kind for run in every))
        yield (
            f"runs of several kinds ({kinds}): of their recipes and their data, only what all of them have is "
            "compared, and the losses of one kind say nothing beside those of another"
        )
    if unfinished := [name for name, run in runs.items() if not run.finished]:
        yield f"not at their end, with the numbers so far: {', '.join(unfinished)}"
    tested = {
        name: run.evaluations[""].get("settings", {}).get("videos")
        for name, run in runs.items()
        if "" in run.evaluations
    }
    if len(set(tested.values())) > 1:
        yield f"tested on different videos, so that their accuracies do not compare: {', '.join(tested)}"
    for name, run in runs.items():
        for what, step in run.outdated.items():
            yield f"left out: the {what} of {name} after step {step:,}, since it was trained on; evaluate it again"
    seen = [name for name, run in runs.items() if run.evaluations.get("", {}).get("on_training_videos")]
    if seen:
        yield f"tested on the very videos that they were trained on: {', '.join(seen)}"


# ---- words -------------------------------------------------------------------------------------------------------


def _grouped(value: int) -> str:
    return f"{value:,}"


def _short(value: float) -> str:
    return f"{value:.4g}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def markdown(comparison: Comparison) -> str:
    """The table in Markdown, its sections as rows in bold, its notes below."""

    def line(cells: list[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    names = list(comparison.runs)
    lines, section = [line(["", *names]), line(["---"] * (len(names) + 1))], ""
    for row in comparison.rows:
        if row.section != section:
            section = row.section
            lines.append(line([f"**{section}**", *[""] * len(names)]))
        name = f"`{row.name}`" if section in ("recipe", "identity") else row.name
        lines.append(line([name, *row.texts]))
    notes = [f"\n{note[0].upper()}{note[1:]}." for note in comparison.notes]
    return "\n".join([*lines, *notes])
