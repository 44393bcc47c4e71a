"""`mvd-offline analyze predictions`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mvd_offline.cli.common import JsonOption, RootOption, SetOption, print_json


def predictions(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run of `distill`.")],
    store: Annotated[Path, typer.Option(help="Store that it learnt from, or another of its recipe.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for view-N.png.")],
    view: Annotated[
        list[int] | None,
        typer.Option(metavar="VIEW", help="View of the store; repeatable. Default: the first ones of the first epoch."),
    ] = None,
    clips: Annotated[int, typer.Option(help="How many, without --view.", min=1)] = 2,
    root: RootOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Where a student's predictions are wrong: the cosine error at masked tokens, before and after training.

    The masks are those of its first epoch; the student before training is the one that the recipe's seed draws.
    """
    from mvd_offline.analysis.prediction_sheet import prediction_sheet
    from mvd_offline.analysis.predictions import predict_store
    from mvd_offline.recipe import load_distill
    from mvd_offline.training.run import RECIPE_FILE, require_run

    require_run(run)
    recipe = load_distill(run / RECIPE_FILE, overrides or ())
    found = predict_store(recipe, run, store, views=view, clips=clips, root=root)
    out.mkdir(parents=True, exist_ok=True)
    pictures = []
    for clip in found:
        pictures.append(out / f"view-{clip.view_id}.png")
        prediction_sheet(clip, f"{recipe.name}: view {clip.view_id}, store {store.name}").save(pictures[-1])
    if as_json:
        print_json([{"picture": picture, **clip.to_json()} for picture, clip in zip(pictures, found, strict=True)])
        return
    for picture, clip in zip(pictures, found, strict=True):
        said = "; ".join(
            f"{target} " + ", ".join(f"{mean:.3f} {when}" for when, mean in means.items())
            for target, means in clip.means().items()
        )
        typer.echo(f"{picture}: cosine error of {said}")
