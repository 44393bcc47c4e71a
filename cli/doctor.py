"""`mvd-offline doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mvd_offline.cli.common import JsonOption, print_json, print_table


def doctor(
    store: Annotated[
        Path,
        typer.Option("--store", help="Folder where stores and runs will lie: its disk is looked at."),
    ] = Path("."),
    workers: Annotated[
        int, typer.Option("--workers", min=0, help="Loader processes to plan for, as in training.workers.")
    ] = 8,
    as_json: JsonOption = False,
) -> None:
    """Say whether this machine is ready: packages, GPUs, decoders, disk, memory; what to do where it is not.

    It decodes a small video that it makes, and locks a file in the folder. Exit status 1 when something that is needed
    is missing.
    """
    from mvd_offline.doctor import examine

    findings = examine(store, workers)
    failed = [finding for finding in findings if finding.state == "missing"]
    if as_json:
        print_json({"ok": not failed, "findings": findings})
    else:
        from rich.markup import escape
        from rich.table import Table

        colours = {"ok": "green", "warning": "yellow", "missing": "red"}
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for finding in findings:
            state = f"[{colours[finding.state]}]{finding.state}[/]"
            table.add_row(state, finding.what, escape(f"{finding.found}{'. ' if finding.do else ''}{finding.do}"))
        print_table(table)
        warned = sum(finding.state == "warning" for finding in findings)
        verdict = f"{len(failed)} missing, {warned} to look at" if failed or warned else "all is well"
        typer.echo(f"{verdict}; next: mvd-offline demo" if not failed else verdict)
    if failed:
        raise typer.Exit(1)
