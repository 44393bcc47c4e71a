"""`mvd-offline analyze features`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mvd_offline.cli.analyze_similarity import FramesOption, ImageSizeOption, ModelsOption, StrideOption
from mvd_offline.cli.common import JsonOption, named_paths, print_json

if TYPE_CHECKING:
    from mvd_offline.analysis.attention import Place


def features(
    video: Annotated[Path, typer.Argument(metavar="VIDEO", help="A video file.")],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="A film: .mp4, .gif or .webp; or .png, the first clip in one picture.")
    ],
    models: ModelsOption = None,
    token: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SLICE,ROW,COLUMN",
            help="Show what this token of each clip looks at (last block, mean over heads); repeatable.",
            show_default=False,
        ),
    ] = None,
    clips: Annotated[int, typer.Option(help="Clips of the video, one after the other, at most.", min=1)] = 4,
    frames: FramesOption = None,
    stride: StrideOption = None,
    image_size: ImageSizeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Features of a video in colours, beside it, for teachers, students and classifiers.

    Colours are the first three principal components of a model's features over all tokens of the video. Each model has
    its own: the same colour in two models means nothing.
    """
    from mvd_offline.analysis.feature_film import write_film
    from mvd_offline.analysis.features import film
    from mvd_offline.analysis.models import ClipShape
    from mvd_offline.progress import WorkProgress

    shape = ClipShape(frames, stride, image_size)
    paths, places = named_paths("--model", models), _places(token or ())
    with WorkProgress("features", None, unit="clips", enabled=not as_json) as progress:
        found = film(
            video,
            paths,
            shape=shape,
            clips=clips,
            tokens=places,
            on_clip=lambda done, total: progress.reach(done, total=total),
        )
    path = write_film(found, out)
    if as_json:
        print_json({"film": path, **found.to_json()})
        return
    for model in found.models:
        shares = ", ".join(f"{100 * share:.0f} %" for share in model.shares)
        typer.echo(f"{model.name}: token grid {model.grid}; the colours are {shares} of its variance")
    number = len(found.frames)
    typer.echo(f"wrote {path}: {number} clip{'s' * (number > 1)} of {found.frames.shape[1]} frames")


def _places(given: Sequence[str]) -> list[Place]:
    from mvd_offline.analysis.attention import Place
    from mvd_offline.errors import UsageError

    places = []
    for text in given:
        parts = text.split(",")
        if len(parts) != 3 or not all(part.strip().isdigit() for part in parts):
            raise UsageError(f"--token {text}: write it as SLICE,ROW,COLUMN, three whole numbers from 0.")
        places.append(Place(*map(int, parts)))
    return places
