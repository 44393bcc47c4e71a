"""The picture of `mvd-offline videos show --augment`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mvd_offline.cli.common import print_json

if TYPE_CHECKING:
    from mvd_offline.video.catalog import Video

AugmentOption = Annotated[
    str | None,
    typer.Option(
        "--augment", metavar="RECIPE", help="Draw the views that this fine-tuning recipe would make of it, as a PNG."
    ),
]
DEFAULT_VIEWS = 8
ViewsOption = Annotated[
    int | None,
    typer.Option("--views", min=1, max=100, help="With --augment: how many.", show_default=str(DEFAULT_VIEWS)),
]
PictureOption = Annotated[
    Path | None,
    typer.Option("--out", help="With --augment: the picture; by default VIDEO.augmented.png here.", show_default=False),
]


def draw_augmented(
    name: str, catalog: Path | None, recipe: str, overrides: list[str], views: int, out: Path | None, as_json: bool
) -> None:
    """Write the picture and say where it is."""
    from mvd_offline.finetuning.picture import augmented_rows, write_picture
    from mvd_offline.recipe import load_finetune

    resolved = load_finetune(recipe, overrides)
    video, root = _from_catalog(name, catalog) if catalog else _from_file(Path(name))
    out = out or Path(f"{Path(video.video_id).stem}.augmented.png")
    rows = augmented_rows(video, root, resolved, views)
    write_picture(rows, out)
    if as_json:
        print_json({"video": video.video_id, "picture": out, "views": [row.caption for row in rows[1:]]})
        return
    typer.echo(f"{out}: {video.video_id} as it is, and {len(rows) - 1} views of it")
    if resolved.mixing:
        typer.echo("Training also mixes each view with one of another video (mixup, CutMix), which is not drawn.")


def _from_catalog(video_id: str, path: Path) -> tuple[Video, Path]:
    from mvd_offline.errors import VideoError
    from mvd_offline.video.catalog import Catalog

    catalog = Catalog.read(path)
    video = catalog.find(video_id)
    if video.status != "ok":
        raise VideoError(video.path, video.detail or video.status, status=video.status)
    return video, catalog.root


def _from_file(path: Path) -> tuple[Video, Path]:
    from mvd_offline.video.catalog import Video
    from mvd_offline.video.decode import probe

    facts = probe(path)
    video = Video(
        video_id=path.name, path=path.name, label=-1, label_name="", frames=facts.frames, fps=facts.fps,
        width=facts.width, height=facts.height, size=0, mtime_ns=0, sha256="", status="ok", detail="",
        decoder=facts.decoder,
    )  # fmt: skip
    return video, path.parent
