"""`mvd-offline evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mvd_offline.cli.common import JsonOption


def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder of `finetune`.", show_default=False)],
    videos: Annotated[Path, typer.Option("--videos", help="Catalog of the test videos.", show_default=False)],
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave unreadable videos out instead of stopping.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Test a fine-tuned run: softmax averaged over segments x crops. Works under accelerate launch."""
    from mvd_offline.cli.common import print_json
    from mvd_offline.evaluate import evaluate as job

    result = job(run, catalog_path=videos, skip_unreadable=skip_unreadable)
    if result is None:
        return
    if as_json:
        print_json(result.to_json())
        return
    typer.echo(
        f"top-1 {100 * result.top1:.2f} %, top-5 {100 * result.top5:.2f} % on {result.videos} videos "
        f"({result.segments} segments x {result.crops} crops)"
    )
    for video, reason in result.skipped:
        typer.echo(f"left out: {video}: {reason}")
    typer.echo(f"per class: {run / 'per_class.csv'}")
