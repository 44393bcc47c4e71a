"""`mvd-offline bench clips`."""

from __future__ import annotations

from typing import Annotated

import typer

from mvd_offline.cli.common import JsonOption, RootOption, StoreArgument


def clips(
    store: StoreArgument,
    root: RootOption = None,
    views: Annotated[int, typer.Option(help="Views to load, evenly spread over the store.", min=1)] = 32,
    rounds: Annotated[int, typer.Option(help="How often each is loaded.", min=1)] = 5,
    as_json: JsonOption = False,
) -> None:
    """Load clips from their videos and from a store that has them baked, in turn, in one process."""
    from mvd_offline.bench.clips import time_clips
    from mvd_offline.cli.common import human_bytes, print_json, print_table

    times = time_clips(store, root=root, views=views, rounds=rounds)
    if as_json:
        print_json(times.to_json())
        return
    from rich.table import Table

    title = f"{times.views} clips of {times.clip}, {times.rounds} rounds"
    table = Table("", "min", "median", "max", title=title, title_justify="left")
    for name, spread, unit in (
        ("from the video", times.rendered_ms, "ms"),
        (f"baked, {times.codec}", times.baked_ms, "ms"),
        ("times as fast", times.speedup, ""),
        ("PSNR", times.psnr, "dB"),
    ):
        table.add_row(name, *(f"{value:.3g} {unit}".rstrip() for value in (spread.low, spread.median, spread.high)))
    if found := times.on_gpu:
        values = (found.clip_ms.low, found.clip_ms.median, found.clip_ms.high)
        table.add_row("baked, decoded on the GPU", *(f"{value:.3g} ms" for value in values))
    print_table(table)
    if found:
        typer.echo(f"the GPU's pixels differ by up to {found.largest_difference} of 255 from what the teachers saw")
    typer.echo(f"{human_bytes(round(times.row_bytes))} a clip")
    typer.echo(", ".join(f"{key} {value}" for key, value in times.machine.items()))
