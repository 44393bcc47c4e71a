"""`mvd-offline bench planner`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from mvd_offline.cli.common import JsonOption, RecipeArgument, SetOption


def planner(
    recipe: RecipeArgument,
    videos: Annotated[Path, typer.Option("--videos", help="Catalog that `videos scan` wrote; all of it is extracted.")],
    steps: Annotated[int, typer.Option(help="Counted steps of each training.", min=1)] = 10,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder on the disk to measure; what is written there is removed again."),
    ] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hold what `plan --measure` says against what extraction and some steps of training then take."""
    from mvd_offline.bench.planner import check_planner
    from mvd_offline.cli.common import print_json, print_table, stderr_console

    console = stderr_console()
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-planner-", dir=out) as folder:
        truth = check_planner(
            recipe,
            overrides or (),
            videos=videos,
            folder=Path(folder),
            steps=steps,
            say=lambda line: console.print(f"bench planner: {line}", highlight=False),
        )
    if as_json:
        print_json(truth.to_json())
        return
    from rich.markup import escape
    from rich.table import Table

    title = f"{escape(truth.recipe)}: {truth.rows} views, {truth.steps} steps"
    table = Table("", "predicted", "outcome", "ratio", title=title, title_justify="left")
    for name, figure in truth.figures.items():
        table.add_row(name, *(_number(value) for value in (figure.predicted, figure.outcome, figure.ratio)))
    print_table(table)
    typer.echo(f"planning and measuring took {truth.measuring_seconds:.0f} s")
    typer.echo(", ".join(f"{key} {value}" for key, value in truth.machine.items()))


def _number(value: float | None) -> str:
    return "never" if value is None else f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
