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

    from mvd_offline.recompute import RecomputeReport
    from mvd_offline.shards.export import ExportSummary
    from mvd_offline.shards.repair import Repaired
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


class FormName(StrEnum):
    """What a store can be exported to."""

    tar = "tar"
    zarr = "zarr"
    npy = "npy"


class FramesName(StrEnum):
    """How a webdataset export holds the frames."""

    npy = "npy"
    jpg = "jpg"
    none = "none"


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
    table.add_row("plan", f"{facts['views']:,} views in {facts['shards']:,} shards, sha256 {facts['plan_sha256'][:12]}")
    table.add_row("rows of a shard, a batch", f"{facts['rows_per_shard']}, {facts['batch_rows']}")
    table.add_row("token grid", " x ".join(map(str, facts["grid"])))
    table.add_row("view", _plain(facts["view"]))
    table.add_row("sealed", "yes" if facts["sealed"] else "no")
    print_table(table)
    for name, column in facts["columns"].items():
        _print_column(name, column, facts["shards"])


@app.command("ls")
def list_shards(
    store: StoreArgument,
    rows: Annotated[bool, typer.Option("--rows", help="List the rows without a target, with the reason.")] = False,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=0, help="Lines at most; 0: all. Default: 50, and all as JSON.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the shards and their state; with --rows, what became of the rows that have no target."""
    from mvd_offline.shards.inspect import failures, join_shards, ls
    from mvd_offline.shards.store import open_store

    opened = open_store(store, sealed=False)
    entries = failures(opened) if rows else ls(opened)
    most = limit or (len(entries) if as_json or limit == 0 else _SHOWN)
    if as_json:
        print_json(entries[:most])
        return
    if not rows and len(entries) > most:
        entries = join_shards(entries)
    print_table(_failures_table(entries[:most]) if rows else _shards_table(entries[:most]))
    if len(entries) > most:
        typer.echo(f"... and {len(entries) - most:,} more; --limit 0 lists all")
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
        for name, text in _coding_lines(entry["codec"], entry["coding"]):
            table.add_row(name, text)
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
def report(
    store: StoreArgument,
    out: Annotated[Path, typer.Option("-o", "--out", help="HTML file to write.")] = Path("report.html"),
    root: RootOption = None,
    views: Annotated[int, typer.Option("--views", min=0, help="Views that the gallery shows.")] = 6,
    rows: Annotated[int, typer.Option("--rows", min=1, help="Rows of each column to read for its statistics.")] = 256,
    seed: Annotated[int, typer.Option("--seed", help="Which views and rows are drawn.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Write one self-contained HTML page: identity, coverage, failures, sizes, errors, features, views."""
    from mvd_offline.report.page import write_report

    with _progress() as progress:
        task = progress.add_task("opening", total=None)
        found = write_report(
            store,
            out,
            root=root,
            views=views,
            rows=rows,
            seed=seed,
            on_progress=lambda what, done, total: progress.update(task, description=what, completed=done, total=total),
        )
    if as_json:
        print_json(found)
        return
    typer.echo(f"{found.page}: {human_bytes(found.page_bytes)}, {len(found.views)} views; open it in a browser")
    if found.views_without_frames:
        names = ", ".join(map(str, found.views_without_frames))
        typer.echo(f"without frames, as their videos cannot be read here: views {names}; the page says why")


@app.command()
def export(
    store: StoreArgument,
    out: Annotated[Path, typer.Option("--out", help="Folder to write; one of its own.", show_default=False)],
    form: Annotated[
        FormName | None,
        typer.Option("--to", help="tar, zarr: a store; npy: one array of decoded targets a shard.", show_default=False),
    ] = None,
    webdataset: Annotated[
        bool, typer.Option("--webdataset", help="Self-contained tars: frames, targets and view of each sample.")
    ] = False,
    columns: Annotated[
        str | None, typer.Option("--columns", metavar="A,B", help="Default: every column.", show_default=False)
    ] = None,
    frames: Annotated[
        FramesName | None,
        typer.Option("--frames", help="With --webdataset: an array (default), JPEGs, or none.", show_default=False),
    ] = None,
    root: RootOption = None,
    workers: Annotated[
        int, typer.Option("--workers", min=0, help="With --webdataset: decode processes; 0: one a core.")
    ] = 0,
    as_json: JsonOption = False,
) -> None:
    """Write a store in another form, which may be read without this program. Run it again to go on."""
    from mvd_offline.errors import UsageError

    if (form is None) != webdataset:
        raise UsageError("give either --to tar, zarr or npy, or --webdataset")
    if form and (frames or root or workers):
        raise UsageError(f"--to {form.value} renders no frames: --frames, --root and --workers go with --webdataset")
    names = None if columns is None else tuple(dict.fromkeys(name for name in columns.split(",") if name))
    if names == ():
        raise UsageError(f"--columns {columns}: names no column")
    if form is None:
        summary = _export_webdataset(store, out, names, frames or FramesName.npy, root, workers, quiet=as_json)
    else:
        summary = _export_arrays(store, out, names, form, quiet=as_json)
    if as_json:
        print_json({"out": out, **vars(summary)})
    else:
        typer.echo(
            f"{out}: {summary.rows} rows in {summary.shards + summary.shards_kept} shard files "
            f"({summary.shards_kept} were there), {human_bytes(summary.bytes_written)} written; "
            f"{summary.rows_without_target} rows have no target"
        )


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


@app.command("drop-column")
def drop_column(
    store: StoreArgument,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Column to remove.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Remove a column and its files for good, without asking; when it was interrupted, run it again."""
    from mvd_offline.shards.dropping import drop_column as drop

    dropped = drop(store, name)
    if as_json:
        print_json(dropped)
    else:
        typer.echo(f"column {name} is gone: {dropped.files} files, {human_bytes(dropped.bytes)} freed")


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
        bool,
        typer.Option("--repair", help="Put aside what is damaged, so that extract makes it again; rewrite the index."),
    ] = False,
    root: RootOption = None,
    teacher: Annotated[
        list[str] | None,
        typer.Option("--teacher", metavar="NAME=PATH", help="A teacher's weights, if they moved.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check a store; exit status 1 when something is wrong, with what to do about it."""
    from mvd_offline.shards.repair import repair as check_and_repair
    from mvd_offline.shards.verify import verify as check

    repaired = again = None
    with _progress() as progress:
        task = progress.add_task("checking", total=None)
        arguments: dict[str, Any] = {
            "level": "sample" if level is LevelName.recompute else level.value,
            "sample_rows": rows,
            "seed": seed,
            "on_shard": lambda done, total: progress.update(task, completed=done, total=total),
        }
        if repair:
            report, repaired = check_and_repair(store, **arguments)
        else:
            report = check(store, **arguments)
    if level is LevelName.recompute and report.ok:
        from mvd_offline.recompute import recompute

        again = recompute(store, rows, root=root, weights=_weights(teacher))
    ok = report.ok and (again is None or again.ok)
    if as_json:
        print_json({"ok": ok, **vars(report), "repaired": repaired, "recompute": again})
    else:
        _print_report(store, report, repaired)
        if again is not None:
            _print_recompute(again)
        elif level is LevelName.recompute:
            typer.echo("not recomputed: repair the findings first")
    if not ok:
        raise typer.Exit(1)


# ---- exporting ---------------------------------------------------------------------------------------------------


def _export_arrays(
    store: Path, out: Path, columns: tuple[str, ...] | None, form: FormName, *, quiet: bool
) -> ExportSummary:
    from mvd_offline.progress import WorkProgress
    from mvd_offline.shards.export import export_npy, export_store
    from mvd_offline.shards.store import open_store

    source = open_store(store, columns=columns)
    total = len(source.view_ids) * len(source.checked_columns(columns))
    with WorkProgress("export", total, unit="rows", enabled=not quiet) as progress:

        def reach(done: int, written: int) -> None:
            progress.reach(done, human_bytes(written))

        if form is FormName.npy:
            return export_npy(source, out, columns=columns, on_rows=reach)
        return export_store(source, out, form.value, columns=columns, on_rows=reach)


def _export_webdataset(
    store: Path,
    out: Path,
    columns: tuple[str, ...] | None,
    frames: FramesName,
    root: Path | None,
    workers: int,
    *,
    quiet: bool,
) -> ExportSummary:
    import os

    from mvd_offline.webdataset_export import export_webdataset

    workers = workers or len(os.sched_getaffinity(0))
    return export_webdataset(store, out, columns=columns, frames=frames.value, root=root, workers=workers, quiet=quiet)


# ---- printing ----------------------------------------------------------------------------------------------------


def _print_column(name: str, column: dict[str, Any], shards: int) -> None:
    table = _facts_table(f"Column {name}")
    table.add_row("target", f"{column['tokens']} tokens x {column['width']}, {human_bytes(column['row_bytes'])} a row")
    limit = column["max_relative_error"]
    table.add_row(
        "stored as",
        f"{column['codec']} in {column['container']}, {human_bytes(column['payload_bytes'])}"
        + ("" if limit is None else f"; may cost a row {100 * limit:.3g} % at most"),
    )
    table.add_row("shards", f"{column['shards_committed']:,} of {shards:,} committed")
    table.add_row("rows", _counts(column["rows"]) or "none yet")
    for entry in column["producers"]:
        table.add_row("computed by", f"{_plain(entry['producer'])}: {entry['shards']:,} of the shards")
    for key, value in column["source"].items():
        table.add_row(key, _plain(value))
    print_table(table)


def _shards_table(entries: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table("column", "shard", "state", "views", "rows", "size", "file", box=None, pad_edge=False)
    for entry in entries:
        last = entry.get("last_shard", entry["shard"])
        table.add_row(
            entry["column"],
            str(entry["shard"]) if last == entry["shard"] else f"{entry['shard']} to {last}",
            entry["state"],
            "none" if entry["first_view"] is None else f"{entry['first_view']} to {entry['last_view']}",
            _counts(entry["rows"]),
            human_bytes(entry["size"]) if entry["size"] else "",
            entry["file"],
        )
    return table


def _failures_table(entries: list[dict[str, Any]]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table("view", "column", "status", "reason", box=None, pad_edge=False)
    for entry in entries:
        table.add_row(str(entry["view_id"]), entry["column"], entry["status"], escape(entry["detail"]))
    return table


def _coding_lines(codec: str, coding: dict[str, Any]) -> list[tuple[str, str]]:
    error, cosine = coding["relative_error"], coding["cosine"]
    if error["max"] == 0:
        return [("coding error", f"none: {codec} kept every value of {coding['rows']:,} rows")]
    quantiles = f"mean {error['mean']:.3g}, p95 {error['p95']:.3g}, worst {error['max']:.3g}"
    return [
        (f"relative error in {codec}", f"{quantiles} (view {coding['worst_view']}), of {coding['rows']:,} rows"),
        ("cosine of a token", f"mean {cosine['mean']:.9g}, min {cosine['min']:.9g}"),
        ("largest difference", f"{coding['max_abs_error']:.4g}"),
    ]


def _plain(value: Any) -> str:
    """A value that came from outside as text for a table; a mapping on one line."""
    from rich.markup import escape

    if isinstance(value, dict):
        return ", ".join(f"{escape(str(key))} {_plain(entry)}" for key, entry in value.items())
    return escape(str(value))


def _print_row(view_id: int, row: dict[str, Any]) -> None:
    from rich.markup import escape

    view = row["view"]
    table = _facts_table(f"View {view_id}")
    for name in ("video_id", "label", "group", "shard", "frames", "status", "detail"):
        table.add_row(name, escape(str(view[name])))
    table.add_row("frame size", f"{view['width']} x {view['height']} px")
    table.add_row("frame_indices", " ".join(map(str, view["frame_indices"])))
    table.add_row("crop", " ".join(f"{side}={value}" for side, value in view["crop"].items()))
    table.add_row("flip", "yes" if view["flip"] else "no")
    print_table(table)
    for name, record in row["columns"].items():
        table = _facts_table(f"Column {name}")
        for key, value in record.items():
            if key != "view_id" and value != "":
                text = f"{value:08x}" if key == "crc32c" else f"{value:.5g}" if _is_float(value) else str(value)
                table.add_row(key, escape(text))
        print_table(table)


def _print_report(store: Path, report: VerifyReport, repaired: Repaired | None) -> None:
    from rich.markup import escape
    from rich.table import Table

    if report.findings:
        table = Table("column", "shard", "row", "found", box=None, pad_edge=False)
        for finding in report.findings[:_SHOWN]:
            place = [finding.column, *("" if n is None else str(n) for n in (finding.shard, finding.row))]
            table.add_row(*place, escape(finding.what))
        print_table(table)
        if len(report.findings) > _SHOWN:
            typer.echo(f"... and {len(report.findings) - _SHOWN} more; --json lists all")
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
        _print_repaired(store, repaired)


def _print_repaired(store: Path, repaired: Repaired) -> None:
    for place in repaired.set_aside[:_SHOWN]:
        typer.echo(f"put aside: {store / place}")
    if len(repaired.set_aside) > _SHOWN:
        typer.echo(f"... and {len(repaired.set_aside) - _SHOWN} more; --json lists all")
    if repaired.removed:
        typer.echo(f"removed: {len(repaired.removed)} temporary files of killed writers")
    if repaired.remake:
        typer.echo(f"to be made again: {', '.join(f'{column} {shard}' for column, shard in repaired.remake)}")
    typer.echo(f"next: {repaired.next_step}")


def _print_recompute(report: RecomputeReport) -> None:
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
    from rich.markup import escape
    from rich.table import Table

    return Table("", "", title=escape(title), show_header=False, title_justify="left", box=None, pad_edge=False)


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
