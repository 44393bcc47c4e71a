"""`mvd-offline pretrain`."""

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


def pretrain(
    recipe: RecipeArgument,
    videos: Annotated[
        Path | None, typer.Option("--videos", help="Catalog that `videos scan` wrote.", show_default=False)
    ] = None,
    run: RunOption = None,
    overrides: SetOption = None,
    dry_run: DryRunOption = False,
    samples: SamplesOption = None,
    processes: ProcessesOption = None,
    tflops: TflopsOption = 100.0,
    as_json: JsonOption = False,
) -> None:
    """Train a teacher from scratch: MAE on images or frames, VideoMAE on clips. Works under accelerate launch."""
    from mvd_offline.recipe import load_pretrain

    resolved = load_pretrain(recipe, overrides or ())
    if dry_run:
        print_dry_run(resolved, catalog=videos, samples=samples, processes=processes, tflops=tflops, as_json=as_json)
        return
    videos, run = needed(videos, "--videos"), needed(run, "--run")
    from mvd_offline.pretrain import TEACHER_FILE
    from mvd_offline.pretrain import pretrain as job

    summary = job(resolved, catalog_path=videos, run=run)
    report_training(
        summary,
        run,
        run / TEACHER_FILE,
        as_json,
        f"mvd-offline plan RECIPE --videos {shlex.quote(str(videos))} --store DIR "
        f"--set teachers.NAME.weights={shlex.quote(str(run / TEACHER_FILE))}",
    )
