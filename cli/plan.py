"""`mvd-offline plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mvd_offline.cli.common import JsonOption, RecipeArgument, SetOption


def plan(
    recipe: RecipeArgument,
    videos: Annotated[Path, typer.Option("--videos", help="Catalog that `videos scan` wrote.", show_default=False)],
    store: Annotated[Path, typer.Option("--store", help="Folder of the store to make.", show_default=False)],
    overrides: SetOption = None,
    tflops: Annotated[
        float, typer.Option(help="Sustained TFLOP/s of one device, for the estimates of time.", min=0.001)
    ] = 100.0,
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
    from mvd_offline.cli.common import hours_rows, human_bytes, print_json, print_table
    from mvd_offline.planner import estimate as estimate_of
    from mvd_offline.planner import plan_store
    from mvd_offline.recipe import load_distill

    changes = list(overrides or ())
    if max_relative_error is not None:
        changes.append(f"store.max_relative_error={max_relative_error}")
    resolved = load_distill(recipe, changes)
    made = plan_store(resolved, catalog_path=videos, store_dir=store)
    estimate = estimate_of(resolved, made, tflops)
    if as_json:
        print_json({"store_id": made.store_id, **estimate.to_json()})
        return
    from rich.table import Table

    table = Table("", "", title=f"Store {store}", show_header=False, title_justify="left")
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
        table.add_row(*row)
    if estimate.teachers:
        for codec, size in estimate.bytes_by_codec.items():
            table.add_row(
                f"size in {codec}", human_bytes(size) + ("  <- this store" if codec == estimate.codec else "")
            )
        table.add_row(
            "reading",
            f"{estimate.read_megabytes_per_second:.3g} MB/s a GPU for {estimate.clips_per_second:.3g} clips/s",
        )
        table.add_row("break-even", f"caching is cheaper after {estimate.break_even_epoch:.3g} epochs")
    print_table(table)
    following = f"extract {store}" if estimate.teachers else f"distill RECIPE --store {store} --run DIR"
    typer.echo(f"next: mvd-offline {following}")
