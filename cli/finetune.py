"""`mvd-offline finetune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mvd_offline.cli.common import JsonOption, RecipeArgument, SetOption


def finetune(
    recipe: RecipeArgument,
    videos: Annotated[Path, typer.Option("--videos", help="Catalog of the training videos.", show_default=False)],
    run: Annotated[Path, typer.Option("--run", help="Folder of the run; run it again to go on.", show_default=False)],
    init: Annotated[
        Path | None,
        typer.Option(
            "--init", help="Checkpoint whose encoder to start from; without it, from scratch.", show_default=False
        ),
    ] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a classifier on labelled videos. Works under accelerate launch."""
    from mvd_offline.cli.common import report_training
    from mvd_offline.finetune import CLASSIFIER_FILE
    from mvd_offline.finetune import finetune as job
    from mvd_offline.recipe import load_finetune

    summary = job(load_finetune(recipe, overrides or ()), catalog_path=videos, init=init, run=run)
    report_training(summary, run, run / CLASSIFIER_FILE, as_json, f"mvd-offline evaluate {run} --videos CATALOG")
