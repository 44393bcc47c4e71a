"""`mvd-offline distill`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mvd_offline.cli.common import JsonOption, RecipeArgument, SetOption


def distill(
    recipe: RecipeArgument,
    store: Annotated[Path, typer.Option("--store", help="Store that `extract` filled.", show_default=False)],
    run: Annotated[Path, typer.Option("--run", help="Folder of the run; run it again to go on.", show_default=False)],
    overrides: SetOption = None,
    root: Annotated[
        Path | None, typer.Option("--root", help="Folder of the videos, if they moved.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train a student on the masked features of its teachers. Works under accelerate launch."""
    from mvd_offline.cli.common import report_training
    from mvd_offline.distill import distill as job
    from mvd_offline.distillation.task import STUDENT_FILE
    from mvd_offline.recipe import load_distill

    summary = job(load_distill(recipe, overrides or ()), store_dir=store, run=run, root=root)
    report_training(
        summary, run, run / STUDENT_FILE, as_json, f"mvd-offline finetune RECIPE --init {run / STUDENT_FILE}"
    )
