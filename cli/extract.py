"""`mvd-offline extract`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mvd_offline.cli.common import JsonOption, RootOption, named_paths


def extract(
    store: Annotated[Path, typer.Argument(help="Store that `plan` made.", show_default=False)],
    root: RootOption = None,
    teacher: Annotated[
        list[str] | None,
        typer.Option(
            "--teacher",
            metavar="NAME=PATH",
            help="A teacher's weights, if they moved. A NAME that the store lacks (image, video, or one that starts "
            "with image_ or video_) becomes a new column on the same views, stored like the first column of its kind.",
            show_default=False,
        ),
    ] = None,
    workers: Annotated[
        int,
        typer.Option(
            "--decode-workers",
            "--workers",
            help="Decode processes of each launch process; 0 measures, and has as many as the teachers need.",
            min=0,
        ),
    ] = 0,
    timeout_seconds: Annotated[float, typer.Option(help="Longest time one view may take to decode.", min=0.1)] = 60.0,
    retry: Annotated[
        str, typer.Option(metavar="STATUS[,STATUS]", help="Try rows of these statuses again, e.g. timeout,unreadable.")
    ] = "",
    max_relative_error: Annotated[
        float | None,
        typer.Option(
            help="Stop if coding costs a row of the first shard more than this (relative L2); the store's own bound "
            "holds as well.",
            show_default=False,
        ),
    ] = None,
    bake: Annotated[
        Literal["jpeg"] | None,
        typer.Option(
            help="Keep each view's frames too, as JPEGs (quality 95, 4:4:4; a recipe's store.bake has others): the "
            "teachers see these, and training reads them instead of the videos. Before the first shard only.",
            show_default=False,
        ),
    ] = None,
    codec: Annotated[
        Literal["float32", "float16", "bfloat16", "int8", "klt"] | None,
        typer.Option(help="Codec of a column that is added.", show_default=False),
    ] = None,
    precision: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="Autocast of a teacher that is added.", show_default=False),
    ] = None,
    heads: Annotated[
        int | None,
        typer.Option(
            help="Attention heads of a teacher that is added, where its width does not tell.", min=1, show_default=False
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run the frozen teachers over the views of a store. Run it again to go on; works under accelerate launch."""
    from mvd_offline.cli.common import print_json
    from mvd_offline.errors import UsageError
    from mvd_offline.extract import extract as run
    from mvd_offline.extraction.columns import ColumnOptions

    if max_relative_error is not None and not max_relative_error > 0:
        raise UsageError(f"--max-relative-error {max_relative_error:g}: it must be above 0")
    if not teacher and (codec or precision or heads):
        raise UsageError("--codec, --precision and --heads are for a column that --teacher NAME=PATH adds")
    summary = run(
        store,
        root=root,
        weights=_weights(teacher),
        workers=workers or None,
        timeout_seconds=timeout_seconds,
        retry=[status for status in retry.split(",") if status],
        options=ColumnOptions(codec, precision, heads, max_relative_error),
        bake=bake is not None,
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


def _weights(given: Sequence[str] | None) -> dict[str, str]:
    """Paths by column."""
    from mvd_offline.errors import UsageError, nearest
    from mvd_offline.recipe import TEACHER_NAMES, teacher_kind

    weights = named_paths("--teacher", given)
    for name in weights:
        if teacher_kind(name) is None:
            raise UsageError(
                f"--teacher {name}=...: write it as NAME=PATH with NAME one of {', '.join(TEACHER_NAMES)}, or one that "
                f"starts with {' or '.join(f'{kind}_' for kind in TEACHER_NAMES)}.{nearest(name, TEACHER_NAMES)}"
            )
    return weights


def _print(store: Path, summary: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from mvd_offline.cli.common import human_bytes, human_duration, print_table

    if not summary["coding"]:
        typer.echo(
            f"nothing to extract: {store} has no columns, because its recipe has no teachers. Its views can be trained "
            "on as they are; --teacher NAME=PATH would add a teacher's targets."
        )
        typer.echo(f"next: mvd-offline distill RECIPE --store {store} --run DIR")
        return
    table = Table("", "", title=f"Extraction into {escape(str(store))}", show_header=False, title_justify="left")
    rows = ", ".join(f"{count} {status}" for status, count in summary["rows"].items()) or "none: nothing was left to do"
    table.add_row("rows", rows)
    if summary["added_columns"]:
        table.add_row("columns added", ", ".join(summary["added_columns"]))
    table.add_row("shards committed", str(summary["shards"]))
    table.add_row("written", human_bytes(summary["bytes_written"]))
    table.add_row("time", f"{human_duration(summary['elapsed_seconds'])}, {summary['clips_per_second']:.3g} clips/s")
    for name, coding in summary["coding"].items():
        if coding["rows"]:
            label, text = (
                ("PSNR of clips", _psnr(coding)) if name == "clips" else (f"coding error of {name}", _coding(coding))
            )
            table.add_row(label, text)
    total = sum(summary["seconds"].values()) or 1.0
    table.add_row(
        "spent on",
        ", ".join(f"{stage} {human_duration(s)} ({100 * s / total:.0f} %)" for stage, s in summary["seconds"].items()),
    )
    if (rates := summary["rates"])["decode_seconds"]:
        table.add_row("decode processes", _decoding(rates))
    table.add_row("store", "sealed" if summary["sealed"] else f"{summary['pending_shards']} shards still pending")
    print_table(table)
    for name, coding in summary["coding"].items():
        if coding["shards_over"]:
            typer.echo(
                f"warning: column {name} has rows above the relative error of {coding['max_relative_error']:g} in "
                f"shards {', '.join(map(str, coding['shards_over']))}; they are stored all the same"
            )
    if summary["failures"]:
        failed = Table("video", "status", "reason", title="In the ledger without targets", title_justify="left")
        for video, status, reason in summary["failures"][:20]:
            failed.add_row(escape(video), status, escape(reason))
        print_table(failed)
        if len(summary["failures"]) > 20:
            typer.echo(f"and {len(summary['failures']) - 20} more: mvd-offline shards ls {store} --rows")
    typer.echo(
        f"next: mvd-offline distill RECIPE --store {store} --run DIR"
        if summary["sealed"]
        else f"next: mvd-offline extract {store}"
    )


def _decoding(rates: dict[str, Any]) -> str:
    from mvd_offline.cli.common import human_duration

    teachers = [f"teacher {name} {human_duration(seconds)}" for name, seconds in rates["teacher_seconds"].items()]
    took = ", ".join([f"one takes {human_duration(rates['decode_seconds'])} a view", *teachers])
    return f"{rates['decode_workers']}; {took}, writing {human_duration(rates['writing_seconds'])}"


def _psnr(coding: dict[str, Any]) -> str:
    from mvd_offline.shards.jpeg import psnr

    mean, worst = psnr(coding["mean_relative_error"]), psnr(coding["worst_relative_error"])
    return f"{mean:.1f} dB of the mean error, {worst:.1f} dB of the worst (view {coding['worst_view']})"


def _coding(coding: dict[str, Any]) -> str:
    text = f"mean {coding['mean_relative_error']:.3g}, worst {coding['worst_relative_error']:.3g}"
    return text + (f" (view {coding['worst_view']})" if coding["worst_relative_error"] else "")
