"""`mvd-offline bench extraction`."""

from __future__ import annotations

from typing import Annotated

import typer

from mvd_offline.cli.common import JsonOption, RootOption, StoreArgument


def extraction(
    store: StoreArgument,
    root: RootOption = None,
    rows: Annotated[int, typer.Option(help="Views to extract, the first of the store.", min=1)] = 32,
    rounds: Annotated[int, typer.Option(help="How often, in turn with the teachers alone.", min=1)] = 3,
    workers: Annotated[
        int, typer.Option("--decode-workers", help="Decode processes; 0 as many as the teachers need.", min=0)
    ] = 0,
    threads: Annotated[int, typer.Option(help="torch threads; 0 leaves torch's choice.", min=0)] = 0,
    as_json: JsonOption = False,
) -> None:
    """Extract into fresh stores, and run the same teachers on the same clips in memory, in turn: what is lost?

    The store needs to be planned only; nothing is written into it.
    """
    import torch

    from mvd_offline.bench.extraction import time_extraction
    from mvd_offline.cli.common import human_bytes, human_duration, print_json, print_table

    if threads:
        torch.set_num_threads(threads)
    times = time_extraction(store, root=root, rows=rows, rounds=rounds, workers=workers or None)
    if as_json:
        print_json(times.to_json())
        return
    from rich.table import Table

    title = f"{times.rows} clips in batches of {times.batch_rows}, {times.rounds} rounds"
    table = Table("", "min", "median", "max", title=title, title_justify="left")
    for name, spread, unit, scale in (
        ("teachers alone", times.teachers_clips_per_second, " clips/s", 1.0),
        ("extraction", times.extraction_clips_per_second, " clips/s", 1.0),
        ("of the teachers alone", times.share, " %", 100.0),
        ("by processor time", times.processor_share, " %", 100.0),
    ):
        if spread is None:
            continue
        table.add_row(name, *(f"{scale * value:.3g}{unit}" for value in (spread.low, spread.median, spread.high)))
    for stage, spread in {**times.seconds, "and before it, starting": times.starting_seconds}.items():
        table.add_row(stage, *(human_duration(value) for value in (spread.low, spread.median, spread.high)))
    print_table(table)
    rates = times.rates
    typer.echo(
        f"{rates['decode_workers']} decode processes; one takes {human_duration(rates['decode_seconds'])} a view; the "
        f"writing thread {human_duration(rates['writing_seconds'])} of {human_bytes(round(times.bytes_a_row))}"
    )
    typer.echo("; ".join(f"teacher {name}: {text}" for name, text in times.teachers.items()))
    typer.echo(", ".join(f"{key} {value}" for key, value in times.machine.items()))
