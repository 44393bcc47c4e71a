"""What the commands share: option types, consoles, JSON and number formats. Loads neither torch nor rich by itself."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

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


def print_json(data: Any) -> None:
    """Write `data` to standard output as JSON; paths become strings and dataclasses mappings.

    Raises:
        ValueError: a number is NaN or infinite, which JSON cannot hold.
    """
    typer.echo(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False, default=_plain))


def stdout_console() -> Console:
    """A rich console on standard output: reports and tables."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=False)


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


def report_training(summary: Any, run: Path, product: Path, as_json: bool, following: str) -> None:
    """Print what a training did (a `TrainingSummary`), where it left its `product`, and the command that follows.

    Of several processes, as accelerate launches them, only the first prints.
    """
    if int(os.environ.get("RANK", "0")):
        return
    if as_json:
        print_json({"run": run, "product": product, **dataclasses.asdict(summary)})
        return
    losses = ", ".join(f"{name} {value:.4g}" for name, value in summary.last.items())
    if not summary.steps:
        typer.echo(f"{run} was finished already: {product}")
    else:
        typer.echo(
            f"{summary.steps} steps in {human_duration(summary.seconds)}: {summary.samples_per_second:.3g} clips/s, "
            f"{100 * summary.data_wait_share:.0f} % of it waiting for data; {losses}"
        )
    if (hours := _hours(run)) is not None:
        typer.echo(hours)
    typer.echo(f"wrote {product}; curves: {run / 'metrics.jsonl'}, tensorboard --logdir {run}")
    typer.echo(f"next: {following}")


def _hours(run: Path) -> str | None:
    """What a run's `report.json` says of its hours, in a line."""
    from mvd_offline.accounting import REPORT_FILE

    path = run / REPORT_FILE
    if not path.is_file():
        return None
    report = json.loads(path.read_text(encoding="utf-8"))
    parts = [f"training {human_duration(report['training']['device_seconds'])}"]
    if (extraction := report["extraction_device_seconds"]) is not None:
        parts.append(f"extraction {human_duration(extraction)}")
    for name, seconds in (report["teachers_device_seconds"] or {}).items():
        if seconds is not None:
            parts.append(f"pretraining of the {name} teacher {human_duration(seconds)}")
    text = "time of one device, measured: " + ", ".join(parts)
    if (online := report["online_device_seconds"]) is not None and not report["online_is_measured"]:
        text += f"; with online teachers the training would have taken {human_duration(online)}, estimated"
    return f"{text} ({path})"


def human_bytes(count: float) -> str:
    """A size in decimal units, three significant digits.

    >>> human_bytes(2_408_448)
    '2.41 MB'
    """
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(count) < 999.5:
            return _three_digits(count, unit, whole=unit == "B")
        count /= 1000
    return _three_digits(count, "PB", whole=False)


def human_duration(seconds: float) -> str:
    """A duration: milliseconds below a second, then seconds, minutes, hours, days.

    >>> human_duration(7384)
    '2 h 03 min'
    """
    if seconds < 0.9995:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    days, hours = divmod(round(seconds / 3600), 24)
    return f"{days} d {hours:02d} h"


def _three_digits(value: float, unit: str, *, whole: bool) -> str:
    if whole:
        return f"{value:.0f} {unit}"
    decimals = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{decimals}f} {unit}"


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
