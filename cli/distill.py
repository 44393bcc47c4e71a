"""`mvd-offline distill`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mvd_offline.cli.common import JsonOption, RecipeArgument, SetOption
from mvd_offline.cli.dry_run import (
    DryRunOption,
    ProcessesOption,
    SamplesOption,
    TflopsOption,
    needed,
    print_dry_run,
    processes_of_launch,
)

if TYPE_CHECKING:
    from mvd_offline.distillation.mixing import StoreShare


def distill(
    recipe: RecipeArgument,
    stores: Annotated[
        list[Path] | None,
        typer.Option(
            "--store", metavar="PATH", help="Store that `extract` filled; repeat it for several.", show_default=False
        ),
    ] = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="Folder of the run; run it again to go on.", show_default=False)
    ] = None,
    overrides: SetOption = None,
    roots: Annotated[
        list[Path] | None,
        typer.Option(
            "--root",
            metavar="PATH",
            help="Folder of the videos, if they moved; one for each store.",
            show_default=False,
        ),
    ] = None,
    weights: Annotated[
        list[float] | None,
        typer.Option(
            "--mix",
            metavar="WEIGHT",
            help="One for each store: 1 takes its own epoch in each epoch, 0.5 half of one, 2 two. Default: 1 each.",
            show_default=False,
        ),
    ] = None,
    follow: Annotated[
        Literal["wait", "skip"] | None,
        typer.Option(
            help="Train while `extract` fills the store: wait for the group of each epoch, as a run on the finished "
            "store has it, or skip to the next group that is complete.",
            show_default=False,
        ),
    ] = None,
    patience: Annotated[
        float,
        typer.Option(
            "--follow-patience", metavar="SECONDS", min=1.0, help="Say so when nothing was committed for this long."
        ),
    ] = 600.0,
    dry_run: DryRunOption = False,
    samples: SamplesOption = None,
    processes: ProcessesOption = None,
    tflops: TflopsOption = 100.0,
    as_json: JsonOption = False,
) -> None:
    """Train a student on the masked features of its teachers. Works under accelerate launch."""
    from mvd_offline.recipe import load_distill

    resolved, shares = load_distill(recipe, overrides or ()), _shares(stores or (), weights or (), roots or ())
    if dry_run:
        from mvd_offline.costs.dry_run import dry_run_distill

        dry = dry_run_distill(
            resolved,
            stores=shares,
            samples=samples,
            processes=processes or processes_of_launch(),
            tflops=tflops,
        )
        print_dry_run(dry, as_json)
        return
    needed(shares, "--store")
    run = needed(run, "--run")
    from mvd_offline.cli.common import report_training
    from mvd_offline.distill import distill as job
    from mvd_offline.distillation.following import Follow
    from mvd_offline.distillation.task import STUDENT_FILE

    summary = job(
        resolved,
        store_dir=shares,
        run=run,
        follow=Follow(follow, patience) if follow else None,
    )
    report_training(
        summary, run, run / STUDENT_FILE, as_json, f"mvd-offline finetune RECIPE --init {run / STUDENT_FILE}"
    )


def _shares(stores: Sequence[Path], weights: Sequence[float], roots: Sequence[Path]) -> list[StoreShare]:
    """The stores of a run with what was said of each; options of one kind come in the order of the stores."""
    from mvd_offline.distillation.mixing import StoreShare
    from mvd_offline.errors import UsageError

    for option, given in (("--mix", weights), ("--root", roots)):
        if given and len(given) != len(stores):
            raise UsageError(
                f"{option} is given {len(given)} times for {len(stores)} stores; give it once for each --store, in "
                "the same order, or not at all."
            )
    known: list[Path | None] = [*roots] or [None] * len(stores)
    return [
        StoreShare(store, weight, root)
        for store, weight, root in zip(stores, weights or [1.0] * len(stores), known, strict=True)
    ]
