"""`mvd-offline distill`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

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

if TYPE_CHECKING:
    from mvd_offline.distillation.mixing import StoreShare


StoresOption: TypeAlias = Annotated[
    list[Path] | None,
    typer.Option(
        "--store", metavar="PATH", help="Store that `extract` filled; repeat it for several.", show_default=False
    ),
]
RootsOption: TypeAlias = Annotated[
    list[Path] | None,
    typer.Option(
        "--root", metavar="PATH", help="Folder of the videos, if they moved; one for each store.", show_default=False
    ),
]
MixOption: TypeAlias = Annotated[
    list[float] | None,
    typer.Option(
        "--mix",
        metavar="WEIGHT",
        help="One for each store: 1 takes its own epoch in each epoch, 0.5 half of one, 2 two. Default: 1 each.",
        show_default=False,
    ),
]
FollowOption: TypeAlias = Annotated[
    Literal["wait", "skip"] | None,
    typer.Option(
        help="Train while `extract` fills the store: wait for the group of each epoch, as a run on the finished "
        "store has it (unless a later group has fewer full batches), or skip to the next group that is complete; the "
        "run keeps which epoch had which.",
        show_default=False,
    ),
]
PatienceOption: TypeAlias = Annotated[
    float,
    typer.Option(
        "--follow-patience",
        metavar="SECONDS",
        min=1.0,
        help="Say so when nothing was committed for this long; end when processes see different states for this long.",
    ),
]


def distill(
    recipe: RecipeArgument,
    stores: StoresOption = None,
    run: RunOption = None,
    overrides: SetOption = None,
    roots: RootsOption = None,
    weights: MixOption = None,
    follow: FollowOption = None,
    patience: PatienceOption = 600.0,
    dry_run: DryRunOption = False,
    samples: SamplesOption = None,
    processes: ProcessesOption = None,
    tflops: TflopsOption = 100.0,
    as_json: JsonOption = False,
) -> None:
    """Train a student on the masked features of its teachers. Works under accelerate launch.

    What it learns from is the recipe's: loss.weights (which teachers), pixels, momentum (the student's own moving
    average), mask.kind and mask.decoded, student.init (weights to start from).

    Run the same command again to go on, on any number of processes that divides the batch: the samples are those that
    an uninterrupted run has. SIGTERM and Ctrl-C save after the step under way and leave with status 75 (1 under
    accelerate launch). A damaged checkpoint is skipped for the one before it. `accelerate launch --use_fsdp
    --fsdp_version 2` shards a model that is too large for one GPU, and goes on from the checkpoints of other launches.

    Two stores of the same teachers: --store A --store B --mix 1 --mix 0.5 has all of A and half of B in each epoch.

    Hours of teachers, extraction and training are in report.json in the run's folder.
    """
    from mvd_offline.recipe import load_distill

    resolved, shares = load_distill(recipe, overrides or ()), _shares(stores or (), weights or (), roots or ())
    if dry_run:
        print_dry_run(resolved, stores=shares, samples=samples, processes=processes, tflops=tflops, as_json=as_json)
        return
    shares, run = needed(shares, "--store"), needed(run, "--run")
    from mvd_offline.distill import distill as job
    from mvd_offline.distillation.following import Follow
    from mvd_offline.distillation.task import STUDENT_FILE

    following = Follow(follow, patience) if follow else None
    summary = job(resolved, store_dir=shares, run=run, follow=following)
    student = run / STUDENT_FILE
    report_training(
        summary,
        run,
        student,
        as_json,
        f"mvd-offline finetune RECIPE --init {shlex.quote(str(student))} --videos CATALOG --run DIR",
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
