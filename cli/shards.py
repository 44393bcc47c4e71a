"""`mvd-offline shards`, also installed as `mvd-shards`: look into a store, and check it."""

from __future__ import annotations

import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from mvd_offline.cli.common import (
    JsonOption,
    RootOption,
    StoreArgument,
    human_bytes,
    named_paths,
    print_json,
    print_table,
    say_next,
)
from mvd_offline.cli.shards_export import export
from mvd_offline.cli.shards_print import (
    MOST_SHOWN,
    coding_lines,
    facts_table,
    failures_table,
    plain_text,
    print_column,
    print_recompute,
    print_report,
    print_row,
    quantile_words,
    shards_table,
)

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Look into a store, and check it.")


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
    table = facts_table(f"Store {store}")
    table.add_row("store_id", facts["store_id"])
    table.add_row("plan", f"{facts['views']:,} views in {facts['shards']:,} shards, sha256 {facts['plan_sha256'][:12]}")
    table.add_row("rows of a shard, a batch", f"{facts['rows_per_shard']}, {facts['batch_rows']}")
    table.add_row("token grid", " x ".join(map(str, facts["grid"])))
    table.add_row("view", plain_text(facts["view"]))
    table.add_row("sealed", "yes" if facts["sealed"] else "no")
    print_table(table)
    for name, column in facts["columns"].items():
        print_column(name, column, facts["shards"])


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
    most = limit or (len(entries) if as_json or limit == 0 else MOST_SHOWN)
    if as_json:
        print_json(entries[:most])
        return
    if not rows and len(entries) > most:
        entries = join_shards(entries)
    print_table(failures_table(entries[:most]) if rows else shards_table(entries[:most]))
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
        print_row(view_id, row)  # before the picture, which needs the video
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
    found = [measure(opened, name, rows) for name in ([column] if column else opened.target_columns)]
    if as_json:
        print_json(found)
        return
    for entry in found:
        table = facts_table(f"Column {entry['column']}: {entry['rows']} rows, {entry['values']:,} values")
        for name, text in coding_lines(entry["codec"], entry["coding"]):
            table.add_row(name, text)
        table.add_row("mean, std", f"{entry['mean']:.5g}, {entry['std']:.5g}")
        table.add_row("min, max", f"{entry['min']:.5g}, {entry['max']:.5g}")
        table.add_row("norm of a token", quantile_words(entry["token_norm"]))
        table.add_row("rms of a channel", quantile_words(entry["channel_rms"]))
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
    from mvd_offline.progress import WorkProgress
    from mvd_offline.report.page import write_report

    with WorkProgress("report", None, unit="", enabled=not as_json) as progress:
        found = write_report(
            store,
            out,
            root=root,
            views=views,
            rows=rows,
            seed=seed,
            on_progress=lambda what, done, total: progress.reach(done, what, total=total),
        )
    if as_json:
        print_json(found)
        return
    typer.echo(f"{found.page}: {human_bytes(found.page_bytes)}, {len(found.views)} views; open it in a browser")
    if found.views_without_frames:
        names = ", ".join(map(str, found.views_without_frames))
        typer.echo(f"without frames, as their videos cannot be read here: views {names}; the page says why")
    say_next(f"mvd-offline distill RECIPE --store {shlex.quote(str(store))} --run DIR")


app.command()(export)


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
    from mvd_offline.progress import WorkProgress
    from mvd_offline.shards.repair import repair as check_and_repair
    from mvd_offline.shards.verify import verify as check

    repaired = again = None
    with WorkProgress("verify", None, unit="shards", enabled=not as_json) as progress:
        arguments: dict[str, Any] = {
            "level": "sample" if level is LevelName.recompute else level.value,
            "sample_rows": rows,
            "seed": seed,
            "on_shard": lambda done, total: progress.reach(done, "", total=total),
        }
        if repair:
            report, repaired = check_and_repair(store, **arguments)
        else:
            report = check(store, **arguments)
    if level is LevelName.recompute and report.ok:
        from mvd_offline.recompute import recompute

        again = recompute(store, rows, root=root, weights=named_paths("--teacher", teacher))
    ok = report.ok and (again is None or again.ok)
    if as_json:
        print_json({"ok": ok, **vars(report), "repaired": repaired, "recompute": again})
    else:
        print_report(store, report, repaired)
        if again is not None:
            print_recompute(again)
        elif level is LevelName.recompute:
            typer.echo("not recomputed: repair the findings first")
        if ok:
            say_next(f"mvd-offline distill RECIPE --store {shlex.quote(str(store))} --run DIR")
        elif not repair:
            say_next(f"mvd-offline shards verify {shlex.quote(str(store))} --repair")
    if not ok:
        raise typer.Exit(1)
