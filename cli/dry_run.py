"""`--dry-run` of the trainings: what a run would be and cost, as a table or as JSON."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias, TypeVar

import typer

from mvd_offline.cli.common import human_bytes, human_duration, print_json, print_table

if TYPE_CHECKING:
    from rich.table import Table

    from mvd_offline.costs.dry_run import DryRun, Flops, Tokens
    from mvd_offline.costs.memory import Memory
    from mvd_offline.costs.teachers import TeacherCost
    from mvd_offline.distillation.mixing import StoreShare
    from mvd_offline.recipe import Recipe

T = TypeVar("T")

DryRunOption: TypeAlias = Annotated[
    bool, typer.Option("--dry-run", help="Say what the run would be and cost; loads no weights and writes nothing.")
]
SamplesOption: TypeAlias = Annotated[
    int | None,
    typer.Option("--samples", help="With --dry-run: samples of an epoch, if unknown.", min=1, show_default=False),
]
ProcessesOption: TypeAlias = Annotated[
    int | None,
    typer.Option("--processes", help="With --dry-run: processes; default: this launch's.", min=1, show_default=False),
]
TflopsOption: TypeAlias = Annotated[
    float, typer.Option("--tflops", help="With --dry-run: sustained TFLOP/s of one device, for times.", min=0.001)
]


def needed(given: T | None, option: str) -> T:
    """An option that only `--dry-run` does without.

    Raises:
        UsageError: it is missing.
    """
    from mvd_offline.errors import UsageError

    if not given:
        raise UsageError(f"missing option {option}; only --dry-run goes without it")
    return given


def print_dry_run(
    recipe: Recipe,
    *,
    stores: Sequence[StoreShare] = (),
    catalog: Path | None = None,
    samples: int | None,
    processes: int | None,
    tflops: float,
    as_json: bool,
) -> None:
    """Say what the training of a recipe would be; of several processes only the first does."""
    if int(os.environ.get("RANK", "0")):
        return
    with _without_collector():
        from mvd_offline.costs.dry_run import dry_run

        launched = processes or int(os.environ.get("WORLD_SIZE", "1"))
        dry = dry_run(recipe, stores=stores, catalog=catalog, samples=samples, processes=launched, tflops=tflops)
    if as_json:
        print_json(dry.to_json())
        return
    from mvd_offline.recipe import dump_recipe

    typer.echo(dump_recipe(dry.recipe))
    print_table(_table(dry))
    typer.echo(
        "Operations count a multiplication and an addition as two; papers' GFLOPs count them as one. "
        f"Memory leaves out {dry.memory.left_out}."
    )
    for name, teacher in dry.teachers.items():
        if teacher.known_from == "name":
            typer.echo(f"The {name} teacher's size is assumed from the name of its weights, which are not here.")
    typer.echo("Nothing was written.")


@contextmanager
def _without_collector() -> Iterator[None]:
    """Most of the time goes into imports, and a tenth of that into looking for garbage among what they made."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _table(dry: DryRun) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table("", "", title=f"Dry run of {escape(dry.recipe.name)}", show_header=False, title_justify="left")
    launch = dry.launch
    table.add_row(
        "batch",
        f"{launch.batch_size} samples: {launch.processes} process{'es' * (launch.processes > 1)} x "
        f"{launch.accumulation} micro-batches of {launch.micro_batch_size}"
        + f"; {launch.views} views of each sample"
        * (launch.views > 1),
    )
    total = sum(dry.parameters.values())
    table.add_row("parameters", f"{total:,}: " + ", ".join(f"{part} {n:,}" for part, n in dry.parameters.items()))
    table.add_row("tokens of a clip", _tokens(dry.tokens))
    for name, teacher in dry.teachers.items():
        table.add_row(f"teacher {name}", _teacher(teacher))
    _add_flops(table, dry.flops, launch.clips)
    _add_memory(table, dry.memory)
    _add_steps(table, dry)
    _add_store(table, dry)
    _add_times(table, dry)
    return table


def _tokens(tokens: Tokens) -> str:
    if not tokens.decoded:
        return f"{tokens.total}, all visible"
    return f"{tokens.total}: {tokens.visible} visible, {tokens.masked} masked, predictions at {tokens.decoded}"


def _teacher(teacher: TeacherCost) -> str:
    arch = teacher.arch
    return (
        f"width {arch.width}, depth {arch.depth}, heads {arch.heads}, patches of {teacher.patch_size} px, "
        f"{teacher.parameters:,} parameters (size from the {teacher.known_from})"
    )


def _add_flops(table: Table, flops: Flops, clips: int) -> None:
    rows = {f"{part}, forward": count for part, count in flops.forward.items()}
    rows["backward"] = flops.backward
    rows["recomputed activations"] = flops.recompute
    rows["momentum teacher"] = flops.momentum_teacher
    rows["training"] = flops.training
    rows.update({f"teacher {name}": count for name, count in flops.teachers.items()})
    for part, count in rows.items():
        if count:
            table.add_row(f"GFLOP {part}", f"{count / 1e9:,.1f} a clip, {count * clips / 1e12:,.1f} TFLOP a step")


def _add_memory(table: Table, memory: Memory) -> None:
    table.add_row("memory of a process", f"{human_bytes(memory.total)} as the recipe is, estimated")
    parts = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimiser": memory.optimizer,
        "clips": memory.clips,
    }
    if memory.frozen:
        parts["frozen weights"] = memory.frozen
    table.add_row("  apart from activations", ", ".join(f"{part} {human_bytes(n)}" for part, n in parts.items()))
    for precision, kept in memory.activations.items():
        mine = precision == memory.precision
        plain, checkpointed = (
            human_bytes(size) + (" <-" if mine and chosen is memory.checkpointed else "")
            for size, chosen in ((kept.plain, False), (kept.checkpointed, True))
        )
        table.add_row(f"  activations in {precision}", f"{plain}; with checkpointing {checkpointed}")


def _add_steps(table: Table, dry: DryRun) -> None:
    if (steps := dry.steps) is None:
        table.add_row("steps", "unknown: give --samples N, or what tells the samples of an epoch")
    else:
        table.add_row(
            "steps",
            f"{steps.stop:,} of a schedule of {steps.total:,}; {steps.per_epoch:,} an epoch of {steps.samples:,} "
            f"samples, warm-up {steps.warmup:,}, {steps.checkpoints} checkpoints",
        )
    table.add_row("learning rate", f"peak {dry.peak_lr:.3g}, floor {dry.floor_lr:.3g}")


def _add_store(table: Table, dry: DryRun) -> None:
    if (reading := dry.reading) is None:
        return
    table.add_row(
        "targets of a clip",
        f"{human_bytes(reading.row_bytes)} read and checked, {human_bytes(reading.kept_row_bytes)} of it used",
    )
    if reading.epoch_bytes is not None:
        table.add_row("read in an epoch", human_bytes(reading.epoch_bytes))
    if reading.store_bytes is not None:
        known = "on disk" if reading.store_bytes_known_from == "store" else "estimated"
        table.add_row("store", f"{human_bytes(reading.store_bytes)} {known}")


def _add_times(table: Table, dry: DryRun) -> None:
    times = dry.times
    at = f"at {dry.launch.tflops:g} TFLOP/s a device"
    text = f"{human_duration(times.step_seconds)} {at}"
    if dry.teachers:
        text += f"; {human_duration(times.online_step_seconds)} with online teachers"
    table.add_row("step", text)
    if times.device_hours is not None:
        table.add_row("training", f"{times.device_hours:,.3g} device-hours")
    if dry.teachers and times.online_device_hours is not None and times.extraction_device_hours is not None:
        table.add_row(
            "with online teachers",
            f"{times.online_device_hours:,.3g} device-hours; extraction once {times.extraction_device_hours:,.3g}",
        )
    if dry.teachers:
        text = f"{times.speedup:.2f} x a step over online teachers, if nothing waits for data"
        if times.break_even_epoch is not None:
            text += f"; cheaper in all from epoch {times.break_even_epoch:.3g} on"
        table.add_row("expected speed-up", text)
