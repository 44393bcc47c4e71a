"""`mvd-offline analyze report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mvd_offline.cli.common import JsonOption, human_bytes, print_json


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, at its end or not.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="HTML file to write; by default report.html in the run.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write the page of a run again: recipe, curves, where its time went, results, examples, and what comes next.

    A training leaves it at its end, and `evaluate RUN` puts its result on it. It is made from the run's folder alone,
    and needs nothing beside itself.
    """
    from mvd_offline.report.run_page import write_run_report

    written = write_run_report(run, out)
    if as_json:
        print_json(written)
        return
    state = "at its end" if written.finished else "not at its end"
    typer.echo(f"{written.page}: {human_bytes(written.page_bytes)}, the run is {state}, step {written.step:,}")
