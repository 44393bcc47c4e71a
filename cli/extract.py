"""`mvd-offline extract`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from mvd_offline.cli.common import JsonOption


def extract(
    store: Annotated[Path, typer.Argument(help="Store that `plan` made.", show_default=False)],
    root: Annotated[
        Path | None, typer.Option("--root", help="Folder of the videos, if they moved.", show_default=False)
    ] = None,
    teacher: Annotated[
        list[str] | None,
        typer.Option("--teacher", metavar="NAME=PATH", help="A teacher's weights, if they moved.", show_default=False),
    ] = None,
    workers: Annotated[
        int, typer.Option(help="Decode processes of each launch process; 0 shares out this machine's cores.", min=0)
    ] = 0,
    timeout_seconds: Annotated[float, typer.Option(help="Longest time one view may take to decode.", min=0.1)] = 60.0,
    retry: Annotated[
        str, typer.Option(metavar="STATUS[,STATUS]", help="Try rows of these statuses again, e.g. timeout,unreadable.")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Run the frozen teachers over the views of a store. Run it again to go on; works under accelerate launch."""
    from mvd_offline.cli.common import print_json
    from mvd_offline.errors import UsageError
    from mvd_offline.extract import extract as run
    from mvd_offline.recipe import TEACHER_NAMES

    weights: dict[str, str] = {}
    for item in teacher or ():
        name, separator, path = item.partition("=")
        if not separator or name not in TEACHER_NAMES:
            raise UsageError(f"--teacher {item}: write it as NAME=PATH with NAME one of {', '.join(TEACHER_NAMES)}")
        weights[name] = path
    summary = run(
        store,
        root=root,
        weights=weights,
        workers=workers or max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))),
        timeout_seconds=timeout_seconds,
        retry=[status for status in retry.split(",") if status],
        quiet=as_json,
    )
    if not summary.is_main:
        return
    if as_json:
        print_json(summary.to_json())
    else:
        _print(store, summary.to_json())
    if not summary.sealed:
        raise typer.Exit(1)


def _print(store: Path, summary: dict[str, Any]) -> None:
    from rich.table import Table

    from mvd_offline.cli.common import human_bytes, human_duration, print_table

    table = Table("", "", title=f"Extraction into {store}", show_header=False, title_justify="left")
    rows = ", ".join(f"{count} {status}" for status, count in summary["rows"].items()) or "none: nothing was left to do"
    table.add_row("rows", rows)
    table.add_row("shards committed", str(summary["shards"]))
    table.add_row("written", human_bytes(summary["bytes_written"]))
    table.add_row("time", f"{human_duration(summary['elapsed_seconds'])}, {summary['clips_per_second']:.3g} clips/s")
    total = sum(summary["seconds"].values()) or 1.0
    table.add_row("spent on", ", ".join(f"{stage} {100 * s / total:.0f} %" for stage, s in summary["seconds"].items()))
    table.add_row("store", "sealed" if summary["sealed"] else f"{summary['pending_shards']} shards still pending")
    print_table(table)
    if summary["failures"]:
        failed = Table("video", "status", "reason", title="In the ledger without targets", title_justify="left")
        for video, status, reason in summary["failures"][:20]:
            failed.add_row(video, status, reason)
        print_table(failed)
        if len(summary["failures"]) > 20:
            typer.echo(f"and {len(summary['failures']) - 20} more: mvd-offline shards ls {store} --rows")
    typer.echo(
        f"next: mvd-offline distill RECIPE --store {store} --run DIR"
        if summary["sealed"]
        else f"next: mvd-offline extract {store}"
    )
