"""`mvd-offline bench pipeline`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mvd_offline.cli.common import JsonOption, RecipeArgument, RootOption, SetOption


def pipeline(
    recipe: RecipeArgument,
    store: Annotated[Path, typer.Option("--store", help="Store that `extract` filled.", show_default=False)],
    root: RootOption = None,
    steps: Annotated[int, typer.Option(help="Steps of each kind in a round.", min=1)] = 8,
    rounds: Annotated[int, typer.Option(help="Rounds in which both kinds take turns.", min=1)] = 5,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch", help="Clips of one step; default: the recipe's micro-batch.", min=1),
    ] = None,
    threads: Annotated[int, typer.Option(help="torch threads; 0 leaves torch's choice.", min=0)] = 0,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Time distillation steps fed by the loader, and the same steps on batches in memory: what reading costs a run."""
    import torch

    from mvd_offline.bench.pipeline import time_pipeline
    from mvd_offline.cli.common import print_json, print_table
    from mvd_offline.recipe import load_distill

    if threads:
        torch.set_num_threads(threads)
    times = time_pipeline(
        load_distill(recipe, overrides or ()),
        store_dir=store,
        steps=steps,
        rounds=rounds,
        batch_size=batch_size,
        root=root,
    )
    if as_json:
        print_json(times.to_json())
        return
    from rich.markup import escape
    from rich.table import Table

    made = f"{times.rounds} rounds of {times.steps} steps of {times.batch_size} clips"
    title = f"{escape(times.recipe)}: {made}, {times.workers} loader processes"
    table = Table("", "min", "median", "max", title=title, title_justify="left")
    for name, spread, unit, scale in (
        ("fed by the loader", times.loaded_clips_per_second, "clips/s", 1),
        ("from memory", times.memory_clips_per_second, "clips/s", 1),
        ("the one of the other", times.of_memory, "%", 100),
        ("waiting for data, of a step", times.wait_share, "%", 100),
    ):
        values = (spread.low, spread.median, spread.high)
        table.add_row(name, *(f"{scale * value:.4g} {unit}" for value in values))
    print_table(table)
    typer.echo(", ".join(f"{key} {value}" for key, value in times.machine.items()))
