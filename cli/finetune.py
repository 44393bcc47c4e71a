"""`mvd-offline finetune`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from mvd_offline.cli.common import JsonOption, RecipeArgument, RunOption, SetOption, report_training
from mvd_offline.cli.dry_run import (
    DryRunOption,
    ProcessesOption,
    SamplesOption,
    TflopsOption,
    needed,
    print_dry_run,
)


def finetune(
    recipe: RecipeArgument,
    videos: Annotated[
        Path | None, typer.Option("--videos", help="Catalog of the training videos.", show_default=False)
    ] = None,
    run: RunOption = None,
    init: Annotated[
        Path | None,
        typer.Option(
            "--init", help="Checkpoint whose encoder to start from; without it, from scratch.", show_default=False
        ),
    ] = None,
    overrides: SetOption = None,
    dry_run: DryRunOption = False,
    samples: SamplesOption = None,
    processes: ProcessesOption = None,
    tflops: TflopsOption = 100.0,
    as_json: JsonOption = False,
) -> None:
    """Train a classifier on labelled videos. Works under accelerate launch."""
    from mvd_offline.recipe import load_finetune

    resolved = load_finetune(recipe, overrides or ())
    if dry_run:
        print_dry_run(resolved, catalog=videos, samples=samples, processes=processes, tflops=tflops, as_json=as_json)
        return
    videos, run = needed(videos, "--videos"), needed(run, "--run")
    from mvd_offline.finetune import CLASSIFIER_FILE
    from mvd_offline.finetune import finetune as job

    summary = job(resolved, catalog_path=videos, init=init, run=run)
    report_training(
        summary, run, run / CLASSIFIER_FILE, as_json, f"mvd-offline evaluate {shlex.quote(str(run))} --videos CATALOG"
    )
