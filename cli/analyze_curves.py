"""`mvd-offline analyze curves`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import typer

from mvd_offline.cli.common import JsonOption, print_json

RunsArgument: TypeAlias = Annotated[
    list[str],
    typer.Argument(metavar="RUN...", help="Folders of runs, or NAME=RUN for names of your own.", show_default=False),
]


def named_runs(given: Sequence[str]) -> dict[str, Path]:
    """Runs by name: of `NAME=RUN` the name, of a folder its own name, or as much of its path as tells it from others.

    Raises:
        UsageError: two of one name.
    """
    from mvd_offline.errors import UsageError

    pairs = [item.partition("=")[::2] if _has_name(item) else ("", item) for item in given]
    folders = [Path(path).resolve().parts for name, path in pairs if not name]
    named = {name or _shortest(Path(path).resolve().parts, folders): Path(path) for name, path in pairs}
    if len(named) < len(given):
        raise UsageError("two of the runs have one name, or one is given twice: give each once, as NAME=RUN.")
    return named


def _shortest(folder: tuple[str, ...], folders: Sequence[tuple[str, ...]]) -> str:
    """The end of a path that no other of the paths has."""
    alike = sum(other == folder for other in folders)
    for parts in range(1, len(folder)):
        if sum(other[-parts:] == folder[-parts:] for other in folders) == alike:
            return "/".join(folder[-parts:])
    return "/".join(folder)


def curves(
    runs: RunsArgument,
    out: Annotated[Path, typer.Option("-o", "--out", help="PNG file to write.")] = Path("curves.png"),
    x: Annotated[Literal["step", "epoch", "hours"], typer.Option("--x", help="What the curves are over.")] = "step",
    smooth: Annotated[
        float,
        typer.Option(
            min=0.0, max=0.999, help="Weight of a moving average, such as 0.9; the raw lines stay faintly behind."
        ),
    ] = 0.0,
    table: Annotated[
        Path | None, typer.Option("--csv", help="Also write the numbers as a table.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Losses, learning rate, throughput and wait share of several runs in one figure.

    Runs of different kinds have their losses in panels of their own.
    """
    from mvd_offline.curves import draw_curves, panels_of, read_runs, write_curves_csv
    from mvd_offline.errors import UsageError

    named = named_runs(runs)
    for path in (out, table):
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            raise UsageError(f"{path} cannot be written: give a file in a folder that exists.")
    found = read_runs(named)
    draw_curves(named, out, axis=x, smooth=smooth)
    if table is not None:
        write_curves_csv(named, table)
    if as_json:
        last = {
            name: {value: run.metrics.series(value).last for value in run.metrics.names()}
            for name, run in found.items()
        }
        print_json({"figure": out, "csv": table, "panels": panels_of(found), "last": last})
        return
    typer.echo(f"{out}: {len(panels_of(found))} panels of {len(named)} run{'s' if len(named) > 1 else ''}")
    if table is not None:
        typer.echo(f"{table}: the numbers")


def _has_name(item: str) -> bool:
    return "=" in item and not Path(item).exists()
