"""`mvd-offline bench`: measurements."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mvd_offline.cli.bench_all import run_everything
from mvd_offline.cli.bench_clips import clips
from mvd_offline.cli.bench_codecs import codecs
from mvd_offline.cli.bench_extraction import extraction
from mvd_offline.cli.bench_pipeline import pipeline
from mvd_offline.cli.bench_planner import planner
from mvd_offline.cli.common import JsonOption, RecipeArgument, SetOption

if TYPE_CHECKING:
    from rich.table import Table

    from mvd_offline.bench.growth import Growth
    from mvd_offline.bench.measure import Spread
    from mvd_offline.bench.official_like import Comparison
    from mvd_offline.bench.read import Reading, ReadTimes
    from mvd_offline.bench.science.run import ScienceResult

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Measurements.")


@app.callback()
def _group() -> None:
    """Measurements."""


@app.command()
def step(
    recipe: RecipeArgument,
    store: Annotated[Path, typer.Option("--store", help="Store that `extract` filled.", show_default=False)],
    steps: Annotated[int, typer.Option(help="Measured steps of each kind.", min=1)] = 5,
    batch_size: Annotated[int, typer.Option(help="Clips of one step.", min=1)] = 8,
    threads: Annotated[int, typer.Option(help="torch threads; 0 leaves torch's choice.", min=0)] = 0,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Time a distillation step with online and with cached targets, in turn, on the same samples."""
    import torch

    from mvd_offline.bench.step import time_steps
    from mvd_offline.cli.common import print_json, print_table
    from mvd_offline.recipe import load_distill

    if threads:
        torch.set_num_threads(threads)
    times = time_steps(load_distill(recipe, overrides or ()), store_dir=store, steps=steps, batch_size=batch_size)
    if as_json:
        print_json(times.to_json())
        return
    from rich.table import Table

    def row(name: str, spread: Spread, unit: str, scale: float = 1.0) -> None:
        low, middle, high = (f"{scale * value:.3g}{unit}" for value in (spread.low, spread.median, spread.high))
        table.add_row(name, low, middle, high)

    table = Table("", "min", "median", "max", title=f"{steps} steps of {batch_size} clips", title_justify="left")
    row("online step", times.online_seconds, " s")
    row("cached step", times.cached_seconds, " s")
    row("online / cached", times.speedup, "")
    row("teachers' share of an online step", times.online_teacher_share, " %", 100)
    row("reading and decoding in a cached step", times.cached_wait_share, " %", 100)
    print_table(table)
    typer.echo(", ".join(f"{key} {value}" for key, value in times.machine.items()))


@app.command("official-like")
def official_like(
    recipe: RecipeArgument,
    batch_size: Annotated[int, typer.Option("--batch", help="Clips of one step.", min=1)] = 2,
    steps: Annotated[int, typer.Option(help="Steps of each kind in a round.", min=1)] = 1,
    rounds: Annotated[int, typer.Option(help="Rounds in which all kinds take turns.", min=1)] = 3,
    threads: Annotated[int, typer.Option(help="torch threads; 0 leaves torch's choice.", min=0)] = 0,
    tflops: Annotated[
        float | None, typer.Option(help="The device's peak TFLOP/s; default: of a large product.", min=0.001)
    ] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Our step, with online and with cached targets, beside the structure of the official loop, on one drawn batch."""
    import torch

    from mvd_offline.bench.official_like import compare_with_official
    from mvd_offline.cli.common import print_json
    from mvd_offline.recipe import load_distill

    if threads:
        torch.set_num_threads(threads)
    comparison = compare_with_official(
        load_distill(recipe, overrides or ()), batch_size=batch_size, steps=steps, rounds=rounds, tflops=tflops
    )
    if as_json:
        print_json(comparison.to_json())
    else:
        _print_comparison(comparison)


def _print_comparison(comparison: Comparison) -> None:
    from rich.markup import escape
    from rich.table import Table

    from mvd_offline.cli.common import print_table

    def spread(value: Spread | None, scale: float = 1.0) -> str:
        return (
            "" if value is None else f"{scale * value.median:.3g} ({scale * value.low:.3g} to {scale * value.high:.3g})"
        )

    steps = f"{comparison.rounds} rounds of {comparison.steps} steps of {comparison.batch_size} clips"
    title = f"{escape(comparison.recipe)}, precision {comparison.precision}: {steps}"
    heads = ("", "clips/s", "of official-like", "by processor time", "% of peak", "loss")
    table = Table(*heads, title=title, title_justify="left")
    for name, rate in comparison.clips_per_second.items():
        table.add_row(
            name,
            spread(rate),
            spread(comparison.over_official_like.get(name)),
            spread((comparison.processor_over_official_like or {}).get(name)),
            spread(comparison.utilization[name], 100),
            f"{comparison.losses[name]['loss']:.6g}",
        )
    print_table(table)
    for note in comparison.notes:
        typer.echo(f"- {note}")
    student, teachers = (comparison.operations[name] / 1e9 for name in ("student", "teachers"))
    peak = spread(comparison.peak_tflops)
    typer.echo(f"a clip: {student:.4g} GFLOP of the student, {teachers:.4g} of the teachers; peak {peak} TFLOP/s")
    typer.echo(", ".join(f"{key} {value}" for key, value in comparison.machine.items()))


@app.command()
def corruption(
    store: Annotated[
        Path | None,
        typer.Argument(help="A small store, which is copied; default: one is made for it.", show_default=False),
    ] = None,
    tries: Annotated[int, typer.Option(help="How often something is damaged.", min=1)] = 2000,
    seed: Annotated[int, typer.Option(help="Of every choice.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Damage a copy of a store again and again: is it found, is anything false read, does the repair heal it?"""
    from mvd_offline.bench.corruption import damage_and_look
    from mvd_offline.cli.common import print_json, print_table

    report = damage_and_look(tries, seed, store=store, quiet=as_json)
    if as_json:
        print_json(report.to_json())
    else:
        from rich.table import Table

        heads = ("damaged", "tries", "found", "healed", "rows read right", "refused", "silent", "other faults")
        table = Table(*heads, title=f"{tries} tries, seed {seed}", title_justify="left")
        for kind, tally in [*report.kinds.items(), ("all", report.total)]:
            outcomes = [tally.rows[name] for name in ("right", "refused", "silent")]
            counts = (tally.tried, tally.found, tally.healed, *outcomes, tally.rows.total() - sum(outcomes))
            table.add_row(kind, *map(str, counts), end_section=kind == list(report.kinds)[-1])
        print_table(table)
        for failure in report.failures[:20]:
            typer.echo(f"failed: {failure}")
        machine = ", ".join(f"{key} {value}" for key, value in report.machine.items())
        typer.echo(f"{len(report.failures)} failures in {report.seconds:.0f} s; {machine}")
    if report.failures:
        raise typer.Exit(1)


@app.command()
def read(
    rows: Annotated[int, typer.Option(help="Rows of each codec, 1568 x 1024; 15 MB of disk each.", min=1)] = 256,
    repeats: Annotated[int, typer.Option(help="Counted passes of each reader under each condition.", min=1)] = 5,
    workers: Annotated[str, typer.Option(help="Loader processes to try; 0 reads row by row, without one.")] = "0,1,2,4",
    threads: Annotated[int, typer.Option(help="Threads of torch and zarr in every process.", min=1)] = 1,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder on the disk to measure; what is written there is removed again."),
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens of a row.", min=1)] = 1568,
    as_json: JsonOption = False,
) -> None:
    """Time reading from stores, warm and cold, beside plain reads, zarr-python, webdataset and other formats."""
    from mvd_offline.bench.read import time_reads
    from mvd_offline.cli.common import print_json, stderr_console

    console = stderr_console()
    times = time_reads(
        rows=rows,
        repeats=repeats,
        workers=_numbers(workers, "--workers"),
        threads=threads,
        folder=out,
        shape=(tokens, 1024),
        say=lambda line: console.print(f"bench read: {line}"),
    )
    if as_json:
        print_json(times.to_json())
    else:
        _print_read_times(times)


@app.command()
def growth(
    rows: Annotated[str, typer.Option(help="Sizes to try, in views; 10000000 takes an hour, and 10 GB of disk.")] = (
        "1000,10000,100000,1000000"
    ),
    parts: Annotated[str, typer.Option(help="What to measure.")] = "plan,seal,open,order,resume,load",
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for growth.json; stores are made in it too, and removed again."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Time and memory of planning, sealing, opening, ordering, resuming and loading, against the number of views."""
    from mvd_offline.bench.growth import measure_growth
    from mvd_offline.cli.common import print_json, stderr_console

    console = stderr_console()
    found = measure_growth(
        _numbers(rows, "--rows"),
        [part.strip() for part in parts.split(",")],
        folder=out,
        say=lambda line: console.print(f"bench growth: {line}", highlight=False),
    )
    if out:
        (out / "growth.json").write_text(json.dumps(found.to_json(), indent=1) + "\n", encoding="ascii")
    if as_json:
        print_json(found.to_json())
    else:
        _print_growth(found)


def _print_growth(found: Growth) -> None:
    from rich.table import Table

    from mvd_offline.cli.common import print_table

    def power(exponent: float | None) -> str:
        return "" if exponent is None else f"{exponent:.2f}"

    heads = ("", "rows", "seconds", "processor s", "start MB", "peak MB", "time ~ rows^", "memory ~ rows^")
    table = Table(*heads, title="Cost against size; memory: what is added to that at the start", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    last = ""
    for cost, time, memory in found.lines():
        if cost.part != last:
            table.add_section()
        seconds = (f"{cost.seconds:.3g}", f"{cost.cpu_seconds:.3g}")
        megabytes = (f"{cost.start_mb:.0f}", f"{cost.peak_mb:.0f}")
        name = cost.part if cost.part != last else ""
        table.add_row(name, f"{cost.rows:,}", *seconds, *megabytes, power(time), power(memory))
        last = cost.part
    print_table(table)
    typer.echo(", ".join(f"{key} {value}" for key, value in found.machine.items()))


@app.command()
def science(
    out: Annotated[Path, typer.Option("--out", help="Folder for everything it makes; run it again to go on.")] = Path(
        "science-out"
    ),
    seeds: Annotated[int, typer.Option(help="Students and classifiers of each row.", min=1)] = 3,
    quick: Annotated[bool, typer.Option("--quick", help="A few steps of everything: does it run?")] = False,
    processes: Annotated[int, typer.Option(help="Rows that are worked on at a time.", min=1)] = min(
        8, os.cpu_count() or 1
    ),
    as_json: JsonOption = False,
) -> None:
    """The paper's comparisons in miniature: what to learn from, how often a view may be seen again. About an hour."""
    from mvd_offline.bench.science.run import PAGE_FILE, RESULTS_FILE, science
    from mvd_offline.cli.common import print_json, stderr_console

    console = stderr_console()
    result = science(
        out,
        seeds=seeds,
        quick=quick,
        processes=processes,
        say=lambda line: console.print(f"bench science: {line}", highlight=False),
    )
    if as_json:
        print_json(result.to_json())
        return
    _print_science(result)
    typer.echo(f"written to {out / PAGE_FILE} and {out / RESULTS_FILE}")


def _print_science(result: ScienceResult) -> None:
    from rich.table import Table

    from mvd_offline.bench.science.pages import FINDING_HEADS, RESULT_HEADS, TABLES, finding_cells, result_cells
    from mvd_offline.cli.common import print_table

    for name, rows in result.tables.items():
        table = Table(*RESULT_HEADS, title=TABLES[name], title_justify="left")
        for row in rows:
            table.add_row(*result_cells(row))
        print_table(table)
    table = Table(*FINDING_HEADS, title="The paper's orderings", title_justify="left")
    for finding in result.findings:
        table.add_row(*finding_cells(finding))
    print_table(table)
    for fact in result.facts:
        typer.echo(f"- {fact}")
    typer.echo(", ".join(f"{key} {value}" for key, value in result.machine.items()))


def _numbers(text: str, option: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdigit() for part in parts):
        raise typer.BadParameter(f"{text!r} is no list of numbers such as 0,1,2,4", param_hint=option)
    return [int(part) for part in parts]


def _print_read_times(times: ReadTimes) -> None:
    from rich.table import Table

    from mvd_offline.bench.readers import CEILING
    from mvd_offline.cli.common import human_bytes, print_table

    for codec, row_bytes in times.row_bytes.items():
        title = f"{codec}: {times.rows} rows of {human_bytes(row_bytes)}, {times.repeats} passes"
        table = Table("", "reader", "checks", title=title, title_justify="left")
        for name in ("rows/s", "GB/s min", "median", "max", f"of {CEILING}: min", "median", "max"):
            table.add_column(name, justify="right")
        for reading in times.readings:
            if reading.codec == codec:
                _add_reading(table, reading, first=reading.reader == CEILING)
        print_table(table)
    typer.echo(", ".join(f"{key} {value}" for key, value in times.machine.items()))
    for peer in times.absent:
        typer.echo(f"{peer} is not installed and was left out: pip install 'mvd-offline[bench]'")


def _add_reading(table: Table, reading: Reading, *, first: bool) -> None:
    """One line; the first of a condition names it."""
    if first:
        table.add_section()
    speed, share = reading.gigabytes_per_second, reading.of_ceiling
    table.add_row(
        f"{reading.cache}, {reading.workers or 'no'} worker{'s' * (reading.workers != 1)}" if first else "",
        reading.reader,
        "crc32c" if reading.checked else "no",
        f"{reading.rows_per_second.median:.0f}",
        *(f"{value:.2f}" for value in (speed.low, speed.median, speed.high)),
        *(f"{100 * value:.0f} %" for value in (share.low, share.median, share.high)),
    )


app.command()(clips)
app.command()(codecs)
app.command()(pipeline)
app.command("all")(run_everything)
app.command()(extraction)
app.command()(planner)
