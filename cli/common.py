"""What the commands share: option types, consoles, JSON and number formats. Loads neither torch nor rich by itself."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from mvd_offline.units import device_hours as device_hours
from mvd_offline.units import human_bytes as human_bytes
from mvd_offline.units import human_duration as human_duration

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

RecipeArgument: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A YAML file, or the name of a recipe that ships (`mvd-offline recipes list`).",
        show_default=False,
    ),
]
"""The recipe of a command, for `mvd_offline.recipe.load_recipe`."""

SetOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Override one key of the recipe; repeatable.", show_default=False),
]
"""Overrides, for the second argument of `load_recipe`: `overrides or ()`."""

StoreArgument: TypeAlias = Annotated[
    Path, typer.Argument(metavar="STORE", help="Folder of a store.", show_default=False)
]

RootOption: TypeAlias = Annotated[
    Path | None, typer.Option("--root", help="Folder of the videos, if they moved.", show_default=False)
]

RunOption: TypeAlias = Annotated[
    Path | None, typer.Option("--run", help="Folder of the run; run it again to go on.", show_default=False)
]
"""The run of a training; only a dry run does without."""

JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
"""Whether a command reports as JSON on standard output."""


def named_paths(option: str, given: Sequence[str] | None) -> dict[str, str]:
    """Values of an option that is written as NAME=PATH and may be given several times."""
    from mvd_offline.errors import UsageError

    paths = {}
    for item in given or ():
        name, separator, path = item.partition("=")
        if not separator or not name or not path:
            raise UsageError(f"{option} {item}: write it as NAME=PATH, with the name of a column")
        paths[name] = path
    return paths


def refuse_ignored(beside: str, **options: Any) -> None:
    """Options that would be ignored are mistakes.

    Args:
        beside: what they cannot go with.
        options: what was given, by name; those that are empty or false were not.

    Raises:
        UsageError: names those that were given.
    """
    from mvd_offline.errors import UsageError

    if given := [f"--{name.replace('_', '-')}" for name, value in options.items() if value]:
        raise UsageError(
            f"{', '.join(given)} cannot go with {beside}: leave {'it' if len(given) == 1 else 'them'} out."
        )


def print_json(data: Any) -> None:
    """Write `data` to standard output as JSON; paths become strings and dataclasses mappings.

    Raises:
        ValueError: a number is NaN or infinite, which JSON cannot hold.
    """
    typer.echo(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False, default=_plain))


def stdout_console() -> Console:
    """A rich console on standard output: reports and tables. A name such as `a:x:` is no picture."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=False, emoji=False)


def stderr_console() -> Console:
    """A rich console on standard error: progress and messages."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def print_table(table: Table) -> None:
    """Print a table: fitted to a terminal; elsewhere as wide as it needs to be, so that no cell is cut."""
    console = stdout_console()
    if console.is_terminal:
        console.print(table)
        return
    console.width = console.measure(table, options=console.options.update(width=10_000)).maximum
    with console.capture() as captured:
        console.print(table)
    typer.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def say_next(command: str) -> None:
    """The last line of a long command: what to run next, with the paths at hand. Not for --json."""
    typer.echo(f"next: {command}")


def report_training(summary: Any, run: Path, product: Path, as_json: bool, following: str) -> None:
    """Print what a training did (a `TrainingSummary`), where it left its `product`, and the command that follows.

    Of several processes, as accelerate launches them, only the first prints.
    """
    if int(os.environ.get("RANK", "0")):
        return
    from mvd_offline.hours import REPORT_FILE
    from mvd_offline.progress import rate_in_words
    from mvd_offline.training.run import PAGE_FILE

    report = run / REPORT_FILE
    content = json.loads(report.read_text(encoding="utf-8")) if report.is_file() else {}
    hours, probe = content.get("hours"), content.get("probe")
    if as_json:
        print_json({"run": run, "product": product, **dataclasses.asdict(summary), "hours": hours, "probe": probe})
        return
    losses = ", ".join(f"{name} {value:.4g}" for name, value in summary.last.items())
    if not summary.steps:
        typer.echo(f"{run} was finished already: {product}")
    else:
        steps = f"{summary.steps} step{'s' if summary.steps > 1 else ''}"
        rate = rate_in_words(summary.samples_per_second, summary.unit)
        typer.echo(
            f"{steps} in {human_duration(summary.seconds)}: {rate}, "
            f"{100 * summary.data_wait_share:.0f} % of it waiting for data; {losses}"
        )
    if probe is not None:
        found = ", ".join(f"{name} {100 * value:.2f} %" for name, value in probe.items() if "_top" in name)
        typer.echo(f"probe after step {probe['step']}: {found}")
    if hours is not None:
        typer.echo(f"hours of one device ({report}):")
        for name, text in hours_rows(hours):
            typer.echo(f"  {name}: {text}")
    page = run / PAGE_FILE
    looks = f"{page}, tensorboard --logdir {run}" if page.is_file() else f"tensorboard --logdir {run}"
    typer.echo(f"wrote {product}; to look at: {looks}")
    say_next(following)


def hours_rows(hours: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The figures of `mvd_offline.hours.Hours`, as its JSON has them, with names and in words."""
    cached, online = _figure(hours["cached"]), _figure(hours["online"])
    if not hours["teachers"]:
        return [("training", online)]
    rows = [(f"pretraining of the {name} teacher", _figure(figure)) for name, figure in hours["teachers"].items()]
    rows += [("extraction", _figure(hours["extraction"])), ("training on the store", cached)]
    if hours["speedup"] is not None:
        online += f"; {hours['speedup']:.2f} x extraction and training"
    return [*rows, ("training with online teachers", online)]


def _figure(figure: Mapping[str, Any]) -> str:
    if figure["device_seconds"] is None:
        return f"unknown: {figure['how']}"
    return f"{device_hours(figure['device_seconds'])}, {figure['basis']} ({figure['how']})"


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
