"""`mvd-offline analyze gradients`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mvd_offline.cli.common import (
    JsonOption,
    RecipeArgument,
    RootOption,
    SetOption,
    named_paths,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from mvd_offline.analysis.gradients import GradientReport


def gradients(
    recipe: RecipeArgument,
    store: Annotated[Path, typer.Option(help="Store whose targets count as exact.", show_default=False)],
    against: Annotated[
        Path | None,
        typer.Option(help="Store of the same plan and teachers, in another codec.", show_default=False),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=OTHER",
            help="Or columns of the same store: the recipe's, and the one of another codec. Repeatable.",
            show_default=False,
        ),
    ] = None,
    student: Annotated[
        Path | None,
        typer.Option(help="Of a run of the recipe: whose loss; default: the untrained one.", show_default=False),
    ] = None,
    clips: Annotated[int, typer.Option(help="How many, at most.", min=1)] = 16,
    root: RootOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """How much a codec's error moves a student's loss and its gradient.

    The same clips, masks and student, once with the targets of --store and once with the others. Which codecs there
    could be, `mvd-offline bench codecs` tells of one store.
    """
    from mvd_offline.analysis.gradients import codec_effects
    from mvd_offline.recipe import load_distill

    found = codec_effects(
        load_distill(recipe, overrides or ()),
        store,
        other_dir=against,
        columns=named_paths("--column", column),
        student=student,
        clips=clips,
        root=root,
    )
    if as_json:
        print_json(found.to_json())
    else:
        _print(found)


def _print(found: GradientReport) -> None:
    from rich.markup import escape
    from rich.table import Table

    heads = (
        "column",
        "codec",
        "smaller",
        "largest relative error",
        "loss",
        "change",
        "gradient's cosine",
        "difference",
    )
    table = Table(*heads, title=f"{found.clips} clips, student: {escape(found.student)}", title_justify="left")
    for one in found.effects:
        table.add_row(
            one.column,
            f"{one.codec} for {one.exact}",
            f"{one.smaller:.3g} x",
            f"{100 * one.relative_error:.3g} %",
            f"{one.effect.loss:.4g}",
            f"{100 * one.effect.change:+.3g} %",
            f"{one.effect.gradient_cosine:.6g}",
            f"{100 * one.effect.gradient_difference:.3g} %",
        )
    print_table(table)
