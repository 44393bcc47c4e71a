"""`mvd-offline bench all`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mvd_offline.cli.common import JsonOption, SetOption, say_next


def run_everything(
    out: Annotated[Path, typer.Option("--out", help="Folder for everything it makes; run it again to go on.")] = Path(
        "bench-out"
    ),
    recipe: Annotated[
        str | None,
        typer.Option(help="Of a distillation; default: ViT-S under ViT-B, 16 x 224 x 224.", show_default=False),
    ] = None,
    parts: Annotated[str, typer.Option(help="Some benchmarks only: step,clips,...", show_default=False)] = "",
    threads: Annotated[int, typer.Option(help="Of torch, in every process.", min=1)] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="Tiny sizes of everything: does it run?")] = False,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run the benchmarks one after the other: one JSON, a page of Markdown, pictures.

    Videos are generated, and teachers whose weights are not on this machine are random: speeds are those of real ones,
    what codecs make of their features is not.
    """
    from mvd_offline.bench.suite.parts import PARTS
    from mvd_offline.bench.suite.run import PAGE_FILE, RESULTS_FILE, run_all
    from mvd_offline.cli.common import print_json, stderr_console

    console = stderr_console()
    result = run_all(
        out,
        recipe=recipe,
        overrides=overrides or (),
        parts=[part.strip() for part in parts.split(",")] if parts else tuple(PARTS),
        threads=threads,
        quick=quick,
        say=lambda line: console.print(f"bench all: {line}", highlight=False),
    )
    if as_json:
        print_json(result.to_json())
    else:
        typer.echo((out / PAGE_FILE).read_text(encoding="utf-8"))
        typer.echo(f"written to {out / RESULTS_FILE}, {out / PAGE_FILE} and pictures beside them")
        say_next("mvd-offline plan RECIPE --videos CATALOG --store DIR --measure")
    if result.failed:
        raise typer.Exit(1)
