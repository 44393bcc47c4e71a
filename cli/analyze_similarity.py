"""`mvd-offline analyze similarity`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from mvd_offline.cli.common import JsonOption, RootOption, named_paths, print_json, print_table

if TYPE_CHECKING:
    from mvd_offline.analysis.similarity import Similarity

ModelsOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        metavar="NAME=PATH",
        help="A teacher, student or classifier: a file, a Hugging Face folder, timm:NAME or the folder of a run. "
        "Repeatable.",
        show_default=False,
    ),
]
FramesOption: TypeAlias = Annotated[
    int | None, typer.Option(help="Frames of a clip, where models do not tell.", min=1, show_default=False)
]
StrideOption: TypeAlias = Annotated[
    int | None, typer.Option(help="Every how manieth frame, where models do not tell.", min=1, show_default=False)
]
ImageSizeOption: TypeAlias = Annotated[
    int | None, typer.Option(help="Side in pixels; default: each model's own.", min=1, show_default=False)
]


def similarity(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for similarity.png and similarity.csv.")],
    models: ModelsOption = None,
    store: Annotated[
        Path | None,
        typer.Option(help="Store whose columns are compared, and on whose views models run.", show_default=False),
    ] = None,
    videos: Annotated[Path | None, typer.Option(help="Without a store: catalog of videos.", show_default=False)] = None,
    clips: Annotated[int, typer.Option(help="How many clips, at most.", min=1)] = 64,
    seed: Annotated[int, typer.Option(help="Which ones are drawn.")] = 0,
    frames: FramesOption = None,
    stride: StrideOption = None,
    image_size: ImageSizeOption = None,
    still: Annotated[
        bool, typer.Option("--still", help="Show models the first frame of each clip, repeated, as well.")
    ] = False,
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """How alike the frames of a clip are to teachers, students and classifiers (the paper's figures 3 to 5).

    The teachers of a store need not run: their features are read. Models that are given beside it are shown the same
    clips. Features hold the places of slices, too: with --still you see how unlike slices are in which nothing moves.
    """
    from mvd_offline.analysis.models import ClipShape
    from mvd_offline.analysis.similarity import similarity as job
    from mvd_offline.analysis.similarity_figure import draw_similarity, write_similarity_csv
    from mvd_offline.progress import WorkProgress

    with WorkProgress("similarity", clips, unit="clips", enabled=not as_json) as progress:
        found = job(
            named_paths("--model", models),
            store_dir=store,
            catalog_path=videos,
            shape=ClipShape(frames, stride, image_size),
            clips=clips,
            seed=seed,
            still=still,
            root=root,
            on_clip=lambda done, total: progress.reach(done, total=total),
        )
    out.mkdir(parents=True, exist_ok=True)
    picture = draw_similarity(found, out / "similarity.png")
    table = write_similarity_csv(found, out / "similarity.csv")
    if as_json:
        print_json({"picture": picture, "csv": table, **found.to_json()})
        return
    _print(found)
    typer.echo(f"wrote {picture} and {table}")


def _print(found: Similarity) -> None:
    from rich.markup import escape
    from rich.table import Table

    from mvd_offline.analysis.similarity import DEFINITIONS
    from mvd_offline.analysis.similarity_figure import IN_WORDS

    title = (
        f"Cosine of two different slices, {found.clips} {escape(found.source)}: mean ± standard deviation over clips"
    )
    heads = [f"{IN_WORDS[definition]}{rest}" for definition in DEFINITIONS for rest in ("", ", first to last")]
    table = Table("model", "slices", *heads, title=title, title_justify="left")
    for model in found.models:
        spreads = [
            spread
            for definition in DEFINITIONS
            for spread in (model.other_slices(definition), model.by_distance(definition)[-1])
        ]
        cells = [f"{spread.mean:.4f} ± {spread.std:.4f}" for spread in spreads]
        table.add_row(escape(model.name), str(model.slices), *cells)
    print_table(table)
    if found.repeating:
        typer.echo(
            f"note: {found.repeating} of these clips are longer than their video, which repeats its last frame, and "
            "that is wholly alike: take a smaller --stride or fewer --frames.",
            err=True,
        )
    for video, reason in found.unread.items():
        typer.echo(f"left out, as it cannot be read: {video}: {reason}", err=True)
