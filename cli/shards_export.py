"""`mvd-offline shards export`."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mvd_offline.cli.common import JsonOption, RootOption, StoreArgument, human_bytes, print_json

if TYPE_CHECKING:
    from mvd_offline.shards.export import ExportSummary


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
    from mvd_offline.webdataset_export import export_webdataset

    workers = workers or len(os.sched_getaffinity(0))
    return export_webdataset(store, out, columns=columns, frames=frames.value, root=root, workers=workers, quiet=quiet)
