"""`mvd-offline shards`, also installed as `mvd-shards`: look into a store, and check it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mvd_offline.cli.common import JsonOption, human_bytes, print_json, print_table, stderr_console

if TYPE_CHECKING:
    from rich.progress import Progress
    from rich.table import Table

    from mvd_offline.shards.verify import VerifyReport

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Look into a store, and check it.")

StoreArgument = Annotated[Path, typer.Argument(metavar="STORE", help="Folder of a store.", show_default=False)]
RootOption = Annotated[
    Path | None, typer.Option("--root", help="Folder of the videos, if they moved.", show_default=False)
]

_SHOWN = 50


class LevelName(StrEnum):
    """How thoroughly to check."""

    quick = "quick"
    sample = "sample"
    full = "full"
    recompute = "recompute"


@app.command()
def info(store: StoreArgument, as_json: JsonOption = False) -> None:
    """Say what a store is: its identity, its columns and their teachers, and how far it is."""
    from mvd_offline.shards.inspect import info as describe
    from mvd_offline.shards.store import open_store

    facts = describe(open_store(store, sealed=False))
    if as_json:
        print_json(facts)
        return
    table = _facts_table(f"Store {store}")
    table.add_row("store_id", facts["store_id"])
    table.add_row("plan", f"{facts['views']} views in {facts['shards']} shards, sha256 {facts['plan_sha256'][:12]}")
    table.add_row("rows of a shard, a batch", f"{facts['rows_per_shard']}, {facts['batch_rows']}")
    table.add_row("token grid", " x ".join(map(str, facts["grid"])))
    table.add_row("view", ", ".join(f"{key} {value}" for key, value in facts["view"].items()))
    table.add_row("sealed", "yes" if facts["sealed"] else "no")
    print_table(table)
    for name, column in facts["columns"].items():
        table = _facts_table(f"Column {name}")
        table.add_row(
            "target", f"{column['tokens']} tokens x {column['width']}, {human_bytes(column['row_bytes'])} a row"
        )
        table.add_row(
            "stored as", f"{column['codec']} in {column['container']}, {human_bytes(column['payload_bytes'])}"
        )
        table.add_row("shards", f"{column['shards_committed']} of {facts['shards']} committed")
        table.add_row("rows", _counts(column["rows"]) or "none yet")
        for key, value in column["source"].items():
            table.add_row(
                key, ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
            )
        print_table(table)


@app.command("ls")
def list_shards(
    store: StoreArgument,
    rows: Annotated[bool, typer.Option("--rows", help="List the rows without a target, with the reason.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the shards and their state; with --rows, what became of the rows that have no target."""
    from rich.markup import escape
    from rich.table import Table

    from mvd_offline.shards.inspect import failures, ls
    from mvd_offline.shards.store import open_store

    opened = open_store(store, sealed=False)
    entries = failures(opened) if rows else ls(opened)
    if as_json:
        print_json(entries)
        return
    if rows:
        table = Table("view", "column", "status", "reason", box=None, pad_edge=False)
        for entry in entries:
            table.add_row(str(entry["view_id"]), entry["column"], entry["status"], escape(entry["detail"]))
    else:
        table = Table("column", "shard", "state", "views", "rows", "size", "file", box=None, pad_edge=False)
        for entry in entries:
            size = "" if entry["size"] is None else human_bytes(entry["size"])
            views = f"{entry['first_view']} to {entry['last_view']}"
            table.add_row(
                entry["column"], str(entry["shard"]), entry["state"], views, _counts(entry["rows"]), size, entry["file"]
            )
    print_table(table)
    if rows and not entries:
        typer.echo("every committed row has a target")


@app.command()
def show(
    store: StoreArgument,
    view_id: Annotated[int, typer.Argument(metavar="VIEW_ID", help="Row of the store.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("--out", help="PNG to write; default: view_VIEW_ID.png here.", show_default=False)
    ] = None,
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one row: its view, its record and norms, and a picture of its frames, crop and features."""
    from mvd_offline.inspection import contact_sheet, describe_row

    row = describe_row(store, view_id)
    path = out or Path(f"view_{view_id}.png")
    if not as_json:
        _print_row(view_id, row)  # before the picture, which needs the video
    contact_sheet(store, view_id, root).save(path)
    if as_json:
        print_json({**row, "picture": path})
    else:
        typer.echo(f"picture: {path}")


@app.command()
def stats(
    store: StoreArgument,
    column: Annotated[
        str | None, typer.Option("--column", help="One column; default: all.", show_default=False)
    ] = None,
    rows: Annotated[int, typer.Option("--rows", min=1, help="Rows to read of each column, evenly spread.")] = 256,
    as_json: JsonOption = False,
) -> None:
    """Statistics of the stored values: range, norms, and the channels that stand out."""
    from mvd_offline.shards.inspect import stats as measure
    from mvd_offline.shards.store import open_store

    opened = open_store(store, sealed=False)
    found = [measure(opened, name, rows) for name in ([column] if column else opened.columns)]
    if as_json:
        print_json(found)
        return
    for entry in found:
        table = _facts_table(f"Column {entry['column']}: {entry['rows']} rows, {entry['values']:,} values")
        table.add_row("mean, std", f"{entry['mean']:.5g}, {entry['std']:.5g}")
        table.add_row("min, max", f"{entry['min']:.5g}, {entry['max']:.5g}")
        table.add_row("norm of a token", _quantiles(entry["token_norm"]))
        table.add_row("rms of a channel", _quantiles(entry["channel_rms"]))
        outliers = (
            f"{channel['channel']} ({channel['ratio_to_median']:.3g} x)"
            for channel in entry["outlier_channels"]
            if channel["ratio_to_median"] is not None
        )
        table.add_row("largest channels", ", ".join(outliers) + " the median channel's rms")
        print_table(table)


@app.command()
def seal(store: StoreArgument, as_json: JsonOption = False) -> None:
    """Write what is derived from the commit records: the index, and each column's description for other software."""
    from mvd_offline.shards.store import open_store

    opened = open_store(store, sealed=False)
    opened.seal()
    if as_json:
        print_json(
            {"store_id": opened.store_id, "sealed": opened.sealed, "index_bytes": opened.index_path.stat().st_size}
        )
    else:
        typer.echo(f"{store} is sealed: {opened.shard_count} shards of {', '.join(opened.columns)}")


@app.command()
def verify(
    store: StoreArgument,
    level: Annotated[
        LevelName,
        typer.Option(
            "--level",
            help="quick: documents and file sizes; sample: and some rows; full: and every byte; "
            "recompute: and the teachers run again over some rows.",
        ),
    ] = LevelName.quick,
    rows: Annotated[int, typer.Option("--rows", min=1, help="Rows that sample and recompute look at.")] = 64,
    seed: Annotated[int, typer.Option("--seed", help="Which rows sample draws.")] = 0,
    repair: Annotated[
        bool, typer.Option("--repair", help="Withdraw damaged shards, so that extract makes them again.")
    ] = False,
    root: RootOption = None,
    teacher: Annotated[
        list[str] | None,
        typer.Option("--teacher", metavar="NAME=PATH", help="A teacher's weights, if they moved.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check a store; exit status 1 when something is wrong, with what to do about it."""
    from mvd_offline.shards.verify import verify as check
    from mvd_offline.shards.verify import withdraw_damaged

    depth = "sample" if level is LevelName.recompute else level.value
    with _progress() as progress:
        task = progress.add_task("checking", total=None)
        report = check(
            store,
            depth,  # type: ignore[arg-type]
            sample_rows=rows,
            seed=seed,
            on_shard=lambda done, total: progress.update(task, completed=done, total=total),
        )
    withdrawn = withdraw_damaged(store, report) if repair else []
    again = None
    if level is LevelName.recompute and report.ok:
        from mvd_offline.recompute import recompute

        again = recompute(store, rows, root=root, weights=_weights(teacher))
    ok = report.ok and (again is None or again.ok)
    if as_json:
        print_json({"ok": ok, **_plain_report(report), "withdrawn": withdrawn, "recompute": again})
    else:
        _print_report(report, withdrawn)
        if again is not None:
            _print_recompute(again)
        elif level is LevelName.recompute:
            typer.echo("not recomputed: repair the findings first")
    if not ok:
        raise typer.Exit(1)


# ---- printing ----------------------------------------------------------------------------------------------------


def _print_row(view_id: int, row: dict[str, Any]) -> None:
    view = row["view"]
    table = _facts_table(f"View {view_id}")
    for name in ("video_id", "label", "group", "shard", "frames", "status", "detail"):
        table.add_row(name, str(view[name]))
    table.add_row("frame size", f"{view['width']} x {view['height']} px")
    table.add_row("frame_indices", " ".join(map(str, view["frame_indices"])))
    table.add_row("crop", " ".join(f"{side}={value}" for side, value in view["crop"].items()))
    table.add_row("flip", "yes" if view["flip"] else "no")
    print_table(table)
    for name, record in row["columns"].items():
        table = _facts_table(f"Column {name}")
        for key, value in record.items():
            if key != "view_id" and value != "":
                table.add_row(
                    key, f"{value:08x}" if key == "crc32c" else f"{value:.5g}" if _is_float(value) else str(value)
                )
        print_table(table)


def _print_report(report: VerifyReport, withdrawn: list[tuple[str, int]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    if report.findings:
        table = Table("column", "shard", "row", "what", "what to do", box=None, pad_edge=False)
        for finding in report.findings[:_SHOWN]:
            place = [finding.column, *("" if n is None else str(n) for n in (finding.shard, finding.row))]
            table.add_row(*place, escape(finding.what), escape(finding.repair))
        print_table(table)
        if len(report.findings) > _SHOWN:
            typer.echo(f"... and {len(report.findings) - _SHOWN} more; --json lists all")
    counts = (
        f"{report.shards_checked} shards and {report.rows_checked} rows checked, {human_bytes(report.bytes_read)} read"
    )
    typer.echo(f"{report.level}: {counts}: {'all is well' if report.ok else f'{len(report.findings)} findings'}")
    if withdrawn:
        names = ", ".join(f"{column} {shard}" for column, shard in withdrawn)
        typer.echo(f"withdrawn: {names}; next: mvd-offline extract STORE")


def _print_recompute(report: Any) -> None:
    from rich.table import Table

    table = Table("column", "rows", "identical", "relative error: median, p95, max", "cosine: min, median", box=None)
    for name, column in report.columns.items():
        error, cosine = column.relative_error, column.cosine
        table.add_row(
            name,
            str(column.rows),
            str(column.identical),
            f"{error['median']:.2e}, {error['p95']:.2e}, {error['max']:.2e} (view {column.worst_view})",
            f"{cosine['min']:.8f}, {cosine['median']:.8f}",
        )
    print_table(table)
    for finding in report.findings:
        typer.echo(finding)
    typer.echo(
        f"recompute: {report.pixels_checked} views rendered again, {'all is well' if report.ok else 'see above'}"
    )


def _plain_report(report: VerifyReport) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(report)


def _weights(given: list[str] | None) -> dict[str, str]:
    from mvd_offline.errors import UsageError

    weights = {}
    for item in given or ():
        name, separator, path = item.partition("=")
        if not separator or not name or not path:
            raise UsageError(f"--teacher {item}: write it as NAME=PATH, with the name of a column")
        weights[name] = path
    return weights


def _facts_table(title: str) -> Table:
    from rich.table import Table

    return Table("", "", title=title, show_header=False, title_justify="left", box=None, pad_edge=False)


def _progress() -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = stderr_console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal, transient=True)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {status}" for status, count in counts.items())


def _quantiles(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())


def _is_float(value: object) -> bool:
    return isinstance(value, float)
