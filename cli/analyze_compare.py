"""`mvd-offline analyze compare`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from mvd_offline.cli.analyze_curves import RunsArgument, named_runs
from mvd_offline.cli.common import JsonOption, print_json, print_table, refuse_ignored

if TYPE_CHECKING:
    from mvd_offline.compare import Comparison


def compare(
    runs: RunsArgument,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Set runs side by side: last losses, probes, tests, hours, and what differs between their recipes and data.

    A run's test is the one that `evaluate RUN` left in it. Runs of different kinds are compared as far as they go
    together.
    """
    from mvd_offline.compare import compare as job
    from mvd_offline.compare import markdown

    if as_json:
        refuse_ignored("--json", markdown=as_markdown)
    found = job(named_runs(runs))
    if as_json:
        print_json(found.to_json())
    elif as_markdown:
        typer.echo(markdown(found))
    else:
        _print(found)


def _print(found: Comparison) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table("", *map(escape, found.runs), box=None, pad_edge=False)
    section = ""
    for row in found.rows:
        if row.section != section:
            if section:
                table.add_row()
            section = row.section
            table.add_row(f"[bold]{section}[/bold]")
        table.add_row(f"  {escape(row.name)}", *map(escape, row.texts))
    print_table(table)
    for note in found.notes:
        typer.echo(f"note: {note}")
