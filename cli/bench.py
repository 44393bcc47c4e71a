"""`mvd-offline bench`: measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mvd_offline.cli.common import JsonOption, RecipeArgument, SetOption

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Measurements.")


@app.callback()
def _group() -> None:
    """Measurements."""


@app.command()
def step(
    recipe: RecipeArgument,
    store: Annotated[Path, typer.Option("--store", help="Store that `extract` filled.", show_default=False)],
    steps: Annotated[int, typer.Option(help="Measured steps of each kind.", min=1)] = 5,
    batch_size: Annotated[int, typer.Option(help="Clips of one step.", min=1)] = 8,
    threads: Annotated[int, typer.Option(help="torch threads; 0 leaves torch's choice.", min=0)] = 0,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Time a distillation step with online and with cached targets, in turn, on the same samples."""
    import torch

    from mvd_offline.bench import Spread, time_steps
    from mvd_offline.cli.common import print_json, print_table
    from mvd_offline.recipe import load_distill

    if threads:
        torch.set_num_threads(threads)
    times = time_steps(load_distill(recipe, overrides or ()), store_dir=store, steps=steps, batch_size=batch_size)
    if as_json:
        print_json(times.to_json())
        return
    from rich.table import Table

    def row(name: str, spread: Spread, unit: str, scale: float = 1.0) -> None:
        low, middle, high = (f"{scale * value:.3g}{unit}" for value in (spread.low, spread.median, spread.high))
        table.add_row(name, low, middle, high)

    table = Table("", "min", "median", "max", title=f"{steps} steps of {batch_size} clips", title_justify="left")
    row("online step", times.online_seconds, " s")
    row("cached step", times.cached_seconds, " s")
    row("online / cached", times.speedup, "")
    row("teachers' share of an online step", times.online_teacher_share, " %", 100)
    row("reading and decoding in a cached step", times.cached_wait_share, " %", 100)
    print_table(table)
    typer.echo(", ".join(f"{key} {value}" for key, value in times.machine.items()))
