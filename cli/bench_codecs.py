"""`mvd-offline bench codecs`."""

from __future__ import annotations

from typing import Annotated

import typer

from mvd_offline.cli.common import JsonOption, StoreArgument


def codecs(
    store: StoreArgument,
    column: Annotated[
        str | None, typer.Option("--column", help="One column; default: every teacher's.", show_default=False)
    ] = None,
    rows: Annotated[int, typer.Option(help="Rows of each column; half of them teach codec klt.", min=2)] = 128,
    as_json: JsonOption = False,
) -> None:
    """What each codec makes of a store's features: bytes, error, speed."""
    from mvd_offline.bench.codecs import compare_codecs
    from mvd_offline.cli.common import human_bytes, print_json, print_table

    found = compare_codecs(
        store, columns=[column] if column else None, rows=rows, say=lambda text: typer.echo(text, err=True)
    )
    if as_json:
        print_json(found.to_json())
        return
    from rich.table import Table

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
    typer.echo(", ".join(f"{key} {value}" for key, value in found.machine.items()))
