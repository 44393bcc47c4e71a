"""How `mvd-offline shards` shows what it finds, to people."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer

from mvd_offline.cli.common import human_bytes, print_table

if TYPE_CHECKING:
    from rich.table import Table

    from mvd_offline.recompute import RecomputeReport
    from mvd_offline.shards.repair import Repaired
    from mvd_offline.shards.verify import VerifyReport

MOST_SHOWN: Final = 50
"""Shards, failures or findings that are listed unless more are asked for."""


def print_column(name: str, column: dict[str, Any], shards: int) -> None:
    table = facts_table(f"Column {name}")
    size = human_bytes(column["row_bytes"])
    if name == "clips":
        side = column["width"]
        table.add_row("clip", f"{column['tokens']} frames of {side} x {side} px, {size} a row on average")
    else:
        table.add_row("target", f"{column['tokens']} tokens x {column['width']}, {size} a row")
    if found := column.get("psnr"):
        table.add_row("PSNR", f"{found['mean']:.1f} dB, worst clip {found['worst']:.1f} dB")
    limit = column["max_relative_error"]
    table.add_row(
        "stored as",
        f"{column['codec']} in {column['container']}, {human_bytes(column['payload_bytes'])}"
        + ("" if limit is None else f"; may cost a row {100 * limit:.3g} % at most"),
    )
    table.add_row("shards", f"{column['shards_committed']:,} of {shards:,} committed")
    table.add_row("rows", count_words(column["rows"]) or "none yet")
    for entry in column["producers"]:
        table.add_row("computed by", f"{plain_text(entry['producer'])}: {entry['shards']:,} of the shards")
    for key, value in column["source"].items():
        table.add_row(key, plain_text(value))
    print_table(table)


def shards_table(entries: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table("column", "shard", "state", "views", "rows", "size", "file", box=None, pad_edge=False)
    for entry in entries:
        last = entry.get("last_shard", entry["shard"])
        table.add_row(
            entry["column"],
            str(entry["shard"]) if last == entry["shard"] else f"{entry['shard']} to {last}",
            entry["state"],
            "none" if entry["first_view"] is None else f"{entry['first_view']} to {entry['last_view']}",
            count_words(entry["rows"]),
            human_bytes(entry["size"]) if entry["size"] else "",
            entry["file"],
        )
    return table


def failures_table(entries: list[dict[str, Any]]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table("view", "column", "status", "reason", box=None, pad_edge=False)
    for entry in entries:
        table.add_row(str(entry["view_id"]), entry["column"], entry["status"], escape(entry["detail"]))
    return table


def coding_lines(codec: str, coding: dict[str, Any]) -> list[tuple[str, str]]:
    error, cosine = coding["relative_error"], coding["cosine"]
    if error["max"] == 0:
        return [("coding error", f"none: {codec} kept every value of {coding['rows']:,} rows")]
    quantiles = f"mean {error['mean']:.3g}, p95 {error['p95']:.3g}, worst {error['max']:.3g}"
    return [
        (f"relative error in {codec}", f"{quantiles} (view {coding['worst_view']}), of {coding['rows']:,} rows"),
        ("cosine of a token", f"mean {cosine['mean']:.9g}, min {cosine['min']:.9g}"),
        ("largest difference", f"{coding['max_abs_error']:.4g}"),
    ]


def plain_text(value: Any) -> str:
    """A value that came from outside as text for a table; a mapping on one line."""
    from rich.markup import escape

    if isinstance(value, dict):
        return ", ".join(f"{escape(str(key))} {plain_text(entry)}" for key, entry in value.items())
    return escape(str(value))


def print_row(view_id: int, row: dict[str, Any]) -> None:
    from rich.markup import escape

    view = row["view"]
    table = facts_table(f"View {view_id}")
    for name in ("video_id", "label", "group", "shard", "frames", "status", "detail"):
        table.add_row(name, escape(str(view[name])))
    table.add_row("frame size", f"{view['width']} x {view['height']} px")
    table.add_row("frame_indices", " ".join(map(str, view["frame_indices"])))
    table.add_row("crop", " ".join(f"{side}={value}" for side, value in view["crop"].items()))
    table.add_row("flip", "yes" if view["flip"] else "no")
    print_table(table)
    for name, record in row["columns"].items():
        table = facts_table(f"Column {name}")
        for key, value in record.items():
            if key != "view_id" and value != "":
                text = f"{value:08x}" if key == "crc32c" else f"{value:.5g}" if is_float(value) else str(value)
                table.add_row(key, escape(text))
        print_table(table)


def print_report(store: Path, report: VerifyReport, repaired: Repaired | None) -> None:
    from rich.markup import escape
    from rich.table import Table

    if report.findings:
        table = Table("column", "shard", "row", "found", box=None, pad_edge=False)
        for finding in report.findings[:MOST_SHOWN]:
            place = [finding.column, *("" if n is None else str(n) for n in (finding.shard, finding.row))]
            table.add_row(*place, escape(finding.what))
        print_table(table)
        if len(report.findings) > MOST_SHOWN:
            typer.echo(f"... and {len(report.findings) - MOST_SHOWN} more; --json lists all")
    counts = (
        f"{report.shards_checked} shards and {report.rows_checked} rows checked, {human_bytes(report.bytes_read)} read"
    )
    typer.echo(f"{report.level}: {counts}: {'all is well' if report.ok else f'{len(report.findings)} findings'}")
    if report.quarantine_files:
        size = human_bytes(report.quarantine_bytes)
        typer.echo(f"{store / 'quarantine'} holds {report.quarantine_files} files, {size}; remove it when you like")
    if repaired is None:
        for advice in dict.fromkeys(finding.repair for finding in report.findings):
            typer.echo(f"to do: {advice}")
    elif not report.ok:
        print_repaired(store, repaired)


def print_repaired(store: Path, repaired: Repaired) -> None:
    for place in repaired.set_aside[:MOST_SHOWN]:
        typer.echo(f"put aside: {store / place}")
    if len(repaired.set_aside) > MOST_SHOWN:
        typer.echo(f"... and {len(repaired.set_aside) - MOST_SHOWN} more; --json lists all")
    if repaired.removed:
        typer.echo(f"removed: {len(repaired.removed)} temporary files of killed writers")
    if repaired.remake:
        typer.echo(f"to be made again: {', '.join(f'{column} {shard}' for column, shard in repaired.remake)}")
    typer.echo(f"next: {repaired.next_step}")


def print_recompute(report: RecomputeReport) -> None:
    from rich.table import Table

    heads = ("column", "rows", "identical", "relative error: median, p95, max", "of it coding", "cosine: min, median")
    table = Table(*heads, box=None)
    for name, column in report.columns.items():
        error, cosine = column.relative_error, column.cosine
        table.add_row(
            name,
            str(column.rows),
            str(column.identical),
            f"{error['median']:.2e}, {error['p95']:.2e}, {error['max']:.2e} (view {column.worst_view})",
            f"{column.coding_error['median']:.2e}",
            f"{cosine['min']:.8f}, {cosine['median']:.8f}",
        )
    print_table(table)
    for note in report.notes:
        typer.echo(f"note: {note}")
    for finding in report.findings:
        typer.echo(f"found: {finding}")
    typer.echo(
        f"recompute: {report.pixels_checked} views rendered again, {'all is well' if report.ok else 'see above'}"
    )


def facts_table(title: str) -> Table:
    from rich.markup import escape
    from rich.table import Table

    return Table("", "", title=escape(title), show_header=False, title_justify="left", box=None, pad_edge=False)


def count_words(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {status}" for status, count in counts.items())


def quantile_words(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())


def is_float(value: object) -> bool:
    return isinstance(value, float)
