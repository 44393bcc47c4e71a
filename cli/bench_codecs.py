"""`mvd-offline bench codecs`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mvd_offline.cli.common import JsonOption, RootOption, SetOption, StoreArgument

if TYPE_CHECKING:
    from mvd_offline.bench.codecs import CodecTimes


def codecs(
    store: StoreArgument,
    column: Annotated[
        str | None,
        typer.Option("--column", help="One column; default: every teacher's, or the recipe's.", show_default=False),
    ] = None,
    rows: Annotated[int, typer.Option(help="Rows of each column; half of them teach codec klt.", min=2)] = 128,
    recipe: Annotated[
        str | None,
        typer.Option(help="Measure the loss of this distillation recipe, too, and its gradient.", show_default=False),
    ] = None,
    student: Annotated[
        Path | None,
        typer.Option(help="Of a run of the recipe: whose loss; default: the untrained one.", show_default=False),
    ] = None,
    clips: Annotated[int, typer.Option(help="Of the rows: those whose loss is measured.", min=1)] = 16,
    root: RootOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """What each codec makes of a store's features: bytes, error, speed; with a recipe, loss and gradient."""
    from mvd_offline.bench.codecs import compare_codecs
    from mvd_offline.cli.common import print_json, refuse_ignored

    losses = None
    if recipe is None:
        refuse_ignored("codecs without a --recipe", student=student, root=root, set=overrides)
    else:
        from mvd_offline.analysis.target_effects import StoreLosses
        from mvd_offline.recipe import load_distill

        losses = StoreLosses(load_distill(recipe, overrides or ()), store, student=student, clips=clips, root=root)
    found = compare_codecs(
        store,
        columns=[column] if column else None,
        rows=rows,
        losses=losses,
        say=lambda text: typer.echo(text, err=True),
    )
    if as_json:
        print_json(found.to_json())
        return
    _print_codings(found)
    if losses is not None:
        _print_losses(found)
    typer.echo(", ".join(f"{key} {value}" for key, value in found.machine.items()))


def _print_codings(found: CodecTimes) -> None:
    from rich.table import Table

    from mvd_offline.cli.common import human_bytes, print_table

    heads = (
        "column",
        "codec",
        "a row",
        "float16 is",
        "relative error: median, max",
        "cosine",
        "encode",
        "unpack",
        "decode",
    )
    title = f"{found.rows} rows; klt learnt from {found.learnt_from} others"
    table = Table(*heads, title=title, title_justify="left")
    for point in found.points:
        table.add_row(
            point.column,
            point.codec,
            human_bytes(round(point.row_bytes)),
            f"{point.smaller_than_float16:.3g} x",
            f"{point.relative_error.median:.3g}, {point.relative_error.high:.3g}",
            f"{point.cosine_mean:.6g}",
            *(f"{value:.3g} ms" for value in (point.encode_ms, point.unpack_ms, point.decode_ms)),
        )
    print_table(table)


def _print_losses(found: CodecTimes) -> None:
    from rich.table import Table

    from mvd_offline.cli.common import print_table

    heads = ("column", "codec", "loss as stored", "coded", "gradient's cosine", "difference")
    table = Table(*heads, title=f"The loss that they lead to, on {found.loss_clips} rows", title_justify="left")
    for point in found.points:
        if point.effect is not None:
            effect = point.effect
            table.add_row(
                point.column,
                point.codec,
                f"{effect.loss:.4g}",
                f"{100 * effect.change:+.3g} %",
                f"{effect.gradient_cosine:.6g}",
                f"{100 * effect.gradient_difference:.3g} %",
            )
    print_table(table)
    typer.echo(f"student: {found.student}")
