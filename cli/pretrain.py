"""`mvd-offline pretrain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mvd_offline.cli.common import JsonOption, RecipeArgument, SetOption


def pretrain(
    recipe: RecipeArgument,
    videos: Annotated[Path, typer.Option("--videos", help="Catalog that `videos scan` wrote.", show_default=False)],
    run: Annotated[Path, typer.Option("--run", help="Folder of the run; run it again to go on.", show_default=False)],
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a teacher from scratch: MAE on frames or VideoMAE on clips. Works under accelerate launch."""
    from mvd_offline.cli.common import report_training
    from mvd_offline.pretrain import TEACHER_FILE
    from mvd_offline.pretrain import pretrain as job
    from mvd_offline.recipe import load_pretrain

    summary = job(load_pretrain(recipe, overrides or ()), catalog_path=videos, run=run)
    report_training(
        summary,
        run,
        run / TEACHER_FILE,
        as_json,
        f"mvd-offline plan RECIPE --set teachers.NAME.weights={run / TEACHER_FILE}",
    )
