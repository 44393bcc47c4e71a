"""`mvd-offline demo`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from mvd_offline.cli.common import JsonOption


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for everything the demo makes.")] = Path("demo-out"),
    workers: Annotated[int, typer.Option(help="Processes for synthesis, probing and decoding.", min=1)] = min(
        8, os.cpu_count() or 1
    ),
    as_json: JsonOption = False,
) -> None:
    """The whole pipeline in miniature: teachers, plan, extract, distill, fine-tune, evaluate. Minutes on two cores."""
    from mvd_offline.cli.common import human_bytes, human_duration, print_json, print_table, stderr_console
    from mvd_offline.demo import demo as run

    console = stderr_console()
    result = run(out, workers=workers, say=lambda line: console.print(f"demo: {line}", highlight=False))
    if as_json:
        print_json(result.to_json())
        return
    from rich.table import Table

    step = result.step
    assert step is not None
    total = sum(result.stages.values())
    table = Table("", "", title="Masked video distillation in miniature", show_header=False, title_justify="left")
    test = f"of {result.test_videos} test videos, {result.labelled_videos} labelled for training"
    table.add_row("from the distilled student", f"{100 * result.distilled_top1:.1f} % top-1 {test}")
    table.add_row("from an untrained student", f"{100 * result.untrained_top1:.1f} % top-1, same recipe, same labels")
    table.add_row("from scratch", f"{100 * result.scratch_top1:.1f} % top-1, initialised as fine-tuning does")
    table.add_row("step with online teachers", human_duration(step.online_seconds.median))
    table.add_row("step with cached targets", f"{human_duration(step.cached_seconds.median)}: {_times(step.speedup)}")
    table.add_row("store", f"{human_bytes(result.store_bytes)} for {result.unlabelled_videos} videos, two views each")
    for name, seconds in result.stages.items():
        table.add_row(name, f"{human_duration(seconds)} ({100 * seconds / total:.0f} %)")
    table.add_row("all", human_duration(total))
    print_table(table)
    typer.echo(f"loss curves: {result.curves}; a view and its targets: {result.contact_sheet}")
    typer.echo("next: mvd-offline videos scan YOUR_VIDEOS --out catalog.parquet")


def _times(speedup: object) -> str:
    from mvd_offline.bench.measure import Spread

    assert isinstance(speedup, Spread)
    return f"{speedup.median:.1f} x faster ({speedup.low:.1f} to {speedup.high:.1f})"
