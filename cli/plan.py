"""`mvd-offline plan`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mvd_offline.cli.common import JsonOption, RecipeArgument, SetOption, say_next

if TYPE_CHECKING:
    from mvd_offline.measuring import Measured


def plan(
    recipe: RecipeArgument,
    videos: Annotated[Path, typer.Option("--videos", help="Catalog that `videos scan` wrote.", show_default=False)],
    store: Annotated[Path, typer.Option("--store", help="Folder of the store to make.", show_default=False)],
    overrides: SetOption = None,
    tflops: Annotated[
        float | None,
        typer.Option(
            help="Sustained TFLOP/s of one device, for the estimates of time; default: 100.",
            min=0.001,
            show_default=False,
        ),
    ] = None,
    measured: Annotated[
        bool,
        typer.Option(
            "--measure",
            help="Estimate from short measurements on this machine: decoding, teachers, writing, loading, the student.",
        ),
    ] = False,
    max_relative_error: Annotated[
        float | None,
        typer.Option(
            help="What coding may cost a row at most (relative L2); extract refuses a codec that misses it. "
            "Overrides store.max_relative_error.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Fix the views of a store, name its teachers by their weights, and say what it will cost.

    It writes which frames and which crop of each video a model sees; `extract` fills in the targets. Without teachers
    in the recipe the store is one of views alone, to train on as it is.

    Hours are those of one device. The teachers' own are known where their weights lie in the run folder that
    `mvd-offline pretrain` left.
    """
    from mvd_offline.cli.common import hours_rows, human_bytes, human_duration, print_json, print_table, stderr_console
    from mvd_offline.errors import UsageError
    from mvd_offline.planner import estimate as estimate_of
    from mvd_offline.planner import plan_store
    from mvd_offline.recipe import load_distill

    if measured and tflops is not None:
        raise UsageError(
            f"--measure finds out how fast this machine is, and --tflops {tflops:g} says so: leave one of them out."
        )
    changes = list(overrides or ())
    if max_relative_error is not None:
        changes.append(f"store.max_relative_error={max_relative_error}")
    resolved = load_distill(recipe, changes)
    made = plan_store(resolved, catalog_path=videos, store_dir=store)
    rates = None
    if measured:
        from mvd_offline.measuring import measure

        console = stderr_console()
        rates = measure(resolved, made, say=lambda line: console.print(f"plan: {line}", highlight=False))
    estimate = estimate_of(resolved, made, tflops or 100.0, measured=rates)
    if as_json:
        print_json({"store_id": made.store_id, **estimate.to_json()})
        return
    from rich.markup import escape
    from rich.table import Table

    from mvd_offline.progress import rate_in_words

    table = Table("", "", title=f"Store {escape(str(store))}", show_header=False, title_justify="left")
    failed = ", ".join(f"{count} {status}" for status, count in estimate.failed_rows.items()) or "none"
    table.add_row(
        "views", f"{estimate.rows} of {estimate.videos} videos in {estimate.shards} shards; unusable: {failed}"
    )
    table.add_row("tokens of a view", estimate.grid)
    if not estimate.teachers:
        table.add_row("teachers", "none: a store of views alone, to train on as it is")
    for name, text in estimate.teachers.items():
        table.add_row(f"teacher {name}", text)
    for row in hours_rows(estimate.hours.to_json()):
        table.add_row(*map(escape, row))
    if estimate.teachers:
        for codec, size in estimate.bytes_by_codec.items():
            table.add_row(
                f"size in {codec}", human_bytes(size) + ("  <- this store" if codec == estimate.codec else "")
            )
        if estimate.clips_bytes:
            table.add_row("size of baked clips", human_bytes(estimate.clips_bytes))
        table.add_row(
            "reading",
            f"{rate_in_words(estimate.read_megabytes_per_second, 'MB')} a device for "
            f"{rate_in_words(estimate.clips_per_second, 'clips')}",
        )
        table.add_row("step on the store", f"{human_duration(estimate.step_seconds)} of one device")
        after = estimate.break_even_epoch
        table.add_row(
            "break-even",
            "never: training on the store is no faster here"
            if after is None
            else f"caching is cheaper from epoch {after:.3g} on",
        )
    if rates is not None:
        table.add_section()
        for row in _measured_rows(rates, resolved.training.workers):
            table.add_row(*row)
    print_table(table)
    if estimate.teachers:
        say_next(f"mvd-offline extract {shlex.quote(str(store))}")
    else:
        say_next(f"mvd-offline distill RECIPE --store {shlex.quote(str(store))} --run DIR")


def _measured_rows(rates: Measured, workers: int) -> list[tuple[str, str]]:
    """What was measured, in words."""
    from mvd_offline.cli.common import human_bytes, human_duration

    teachers = ", ".join(f"{name} {human_duration(seconds)}" for name, seconds in rates.teacher_seconds.items())
    rows = [
        ("measured on this machine", ", ".join(f"{key} {value}" for key, value in rates.machine.items())),
        ("decoding a view", f"{human_duration(rates.render_seconds)} in one process, of {rates.cores} cores"),
    ]
    if teachers:
        written = human_bytes(sum(rates.row_bytes.values()))
        rows += [
            ("teachers, a clip", teachers),
            ("writing a view", f"{human_duration(rates.writing_seconds)} for {written}"),
            ("reading the store", f"{human_bytes(rates.read_bytes_per_second)}/s, warm"),
        ]
    loaders = f"in one loader process, of {workers}" if workers else "in the training process"
    update = human_duration(rates.update_seconds)
    return [
        *rows,
        ("loading a clip", f"{human_duration(rates.loading_seconds)} {loaders}"),
        ("student", f"{human_duration(rates.micro_seconds)} for {rates.micro_batch} clips, update {update}"),
    ]
