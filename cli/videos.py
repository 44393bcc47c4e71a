"""`mvd-offline videos`: catalogs of videos and images, generated videos, and the facts of one video."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mvd_offline.cli import videos_cache
from mvd_offline.cli.common import (
    JsonOption,
    SetOption,
    human_bytes,
    human_duration,
    print_json,
    print_table,
    refuse_ignored,
    say_next,
)
from mvd_offline.cli.videos_augmented import DEFAULT_VIEWS, AugmentOption, PictureOption, ViewsOption, draw_augmented

if TYPE_CHECKING:
    from mvd_offline.progress import WorkProgress
    from mvd_offline.video.catalog import Catalog, Video

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Catalogs of videos and images: scan, synth, show, cache, verify."
)

_PROBLEMS_SHOWN = 50


class FormatName(StrEnum):
    """How a list of videos is written."""

    auto = "auto"
    folder = "folder"
    webdataset = "webdataset"
    csv = "csv"
    ucf101 = "ucf101"
    hmdb51 = "hmdb51"
    ssv2 = "ssv2"


class MediaName(StrEnum):
    """What a scan takes of a folder."""

    auto = "auto"
    videos = "videos"
    images = "images"
    both = "both"


class SubsetName(StrEnum):
    """The side of a split."""

    train = "train"
    test = "test"


WorkersOption = Annotated[int, typer.Option("--workers", min=1, help="Processes.")]


@app.command()
def scan(
    source: Annotated[
        Path,
        typer.Argument(
            help="A folder of videos or images, a list of them, tars of images (a folder, a file or "
            "'train-{000..146}.tar'), or HMDB51's folder of splits."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="The catalog to write; what it already knows is not read again.")],
    root: Annotated[Path | None, typer.Option("--root", help="The folder that the list's paths start from.")] = None,
    list_format: Annotated[FormatName, typer.Option("--format", help="How SOURCE is written.")] = FormatName.auto,
    split: Annotated[int, typer.Option("--split", min=1, help="HMDB51: which of its splits.")] = 1,
    subset: Annotated[SubsetName, typer.Option("--subset", help="HMDB51: which side of it.")] = SubsetName.train,
    media: Annotated[MediaName, typer.Option("--media", help="What of a folder that has both.")] = MediaName.auto,
    min_frames: Annotated[int, typer.Option("--min-frames", min=1, help="Fewer frames are too_short.")] = 1,
    timeout_seconds: Annotated[float, typer.Option("--timeout-seconds", help="Time limit of one file.")] = 30.0,
    workers: WorkersOption = os.cpu_count() or 1,
    as_json: JsonOption = False,
) -> None:
    """Probe every video or image and write the catalog; files that hang or crash a decoder are recorded as such.

    An image is a video of one frame, taken as it is stored: a camera's rotation mark is not applied, as in MAE. Images
    in tars, as webdataset writes them (key.jpg with its label in key.cls), are read where they lie.
    """
    from mvd_offline.progress import WorkProgress
    from mvd_offline.video.catalog import Catalog
    from mvd_offline.video.catalog import scan as scan_videos

    with WorkProgress("scan", None, unit="videos") as progress:
        catalog = scan_videos(
            source,
            root=root,
            list_format=list_format.value,
            split=split,
            subset=subset.value,
            media=media.value,
            workers=workers,
            timeout_seconds=timeout_seconds,
            min_frames=min_frames,
            previous=Catalog.read(out) if out.exists() else None,
            on_progress=partial(_reach, progress),
        )
    catalog.write(out)
    _report_scan(catalog, out, as_json)


@app.command()
def synth(
    out: Annotated[Path, typer.Argument(help="Folder for train/ and test/, each with a folder a class.")],
    videos_per_class: Annotated[int, typer.Option("--videos-per-class", min=1, help="Of the train set.")] = 20,
    test_videos_per_class: Annotated[int, typer.Option("--test-videos-per-class", min=0, help="0: no test set.")] = 5,
    classes: Annotated[int, typer.Option("--classes", help="2, 4, 8 or 16: textures x motions.")] = 16,
    short_side: Annotated[tuple[int, int], typer.Option("--short-side", help="Smallest and largest, pixels.")] = (
        64,
        96,
    ),
    frames: Annotated[tuple[int, int], typer.Option("--frames", help="Fewest and most.")] = (48, 96),
    images: Annotated[bool, typer.Option("--images", help="Images instead: the first frame of each.")] = False,
    seed: Annotated[int, typer.Option("--seed", help="The same seed gives the same bytes.")] = 0,
    workers: WorkersOption = os.cpu_count() or 1,
    as_json: JsonOption = False,
) -> None:
    """Make labelled videos whose classes need both appearance and motion: 4 textures x 4 directions."""
    from mvd_offline.progress import WorkProgress
    from mvd_offline.video.synthetic import synthesize

    written: dict[str, int] = {}
    for name, count in (("train", videos_per_class), ("test", test_videos_per_class)):
        if count:
            with WorkProgress(f"synth {name}", None, unit="videos") as progress:
                paths = synthesize(
                    out / name,
                    videos_per_class=count,
                    seed=seed,
                    split=name,
                    classes=classes,
                    short_side=short_side,
                    frames=frames,
                    images=images,
                    workers=workers,
                    on_progress=partial(_reach, progress),
                )
            written[name] = len(paths)
    if as_json:
        print_json({"out": out, "classes": classes, "seed": seed, "videos": written})
    else:
        for name, number in written.items():
            typer.echo(f"{out / name}: {number} videos of {classes} classes")
        say_next(f"mvd-offline videos scan {shlex.quote(str(out / 'train'))} --out catalog.parquet")


@app.command()
def show(
    video: Annotated[str, typer.Argument(help="A file; or with --catalog, a video's path in it.")],
    catalog: Annotated[Path | None, typer.Option("--catalog", help="Show what this catalog knows.")] = None,
    augment: AugmentOption = None,
    views: ViewsOption = None,
    out: PictureOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print one video's facts, from the file or from a catalog; or draw what fine-tuning makes of it."""
    if augment:
        draw_augmented(video, catalog, augment, overrides or [], views or DEFAULT_VIEWS, out, as_json)
        return
    refuse_ignored("facts, which are shown without --augment", views=views, out=out, set=overrides)
    facts = _facts_from_catalog(video, catalog) if catalog else _facts_from_file(Path(video))
    if as_json:
        print_json(facts)
        return

    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in facts.items():
        table.add_row(name, f"{value:.3f}" if isinstance(value, float) else escape(str(value)))
    print_table(table)


app.command()(videos_cache.cache)
app.command()(videos_cache.verify)


def _facts_from_catalog(video_id: str, path: Path) -> dict[str, Any]:
    from dataclasses import asdict

    from mvd_offline.video.catalog import Catalog

    return asdict(Catalog.read(path).find(video_id))


def _facts_from_file(path: Path) -> dict[str, Any]:
    from dataclasses import asdict

    from mvd_offline.video.decode import decoder_version, probe
    from mvd_offline.video.files import file_sha256, size_and_mtime

    info = probe(path)
    seconds = info.frames / info.fps if info.fps else 0.0
    return {
        "path": str(path),
        **asdict(info),
        "decoder": decoder_version(info.decoder),
        "seconds": seconds,
        "size": size_and_mtime(path)[0],
        "sha256": file_sha256(path),
    }


def _report_scan(catalog: Catalog, out: Path, as_json: bool) -> None:
    problems = [
        {"path": video.path, "status": video.status, "detail": video.detail}
        for video in catalog.videos
        if video.status != "ok"
    ]
    if as_json:
        facts = {"catalog": out, "root": catalog.root, "videos": len(catalog.videos), "classes": len(catalog.classes)}
        print_json(facts | {"counts": catalog.counts, "problems": problems})
        return

    from rich.markup import escape
    from rich.table import Table

    if problems:
        table = Table("video", "status", "what is wrong", box=None, pad_edge=False)
        for row in problems[:_PROBLEMS_SHOWN]:
            table.add_row(*(escape(row[name]) for name in ("path", "status", "detail")))
        print_table(table)
        if len(problems) > _PROBLEMS_SHOWN:
            typer.echo(f"... and {len(problems) - _PROBLEMS_SHOWN} more; --json lists all")
        typer.echo("")
    ok = [video for video in catalog.videos if video.status == "ok"]
    counts = ", ".join(f"{count} {status}" for status, count in catalog.counts.items())
    typer.echo(f"{len(catalog.videos)} videos: {counts}")
    typer.echo(f"readable: {_amount(ok)}, {human_bytes(sum(video.size for video in ok))}")
    typer.echo(f"catalog: {out}")
    if ok:
        say_next(f"mvd-offline plan RECIPE --videos {shlex.quote(str(out))} --store DIR")
    elif catalog.counts.get("missing") == len(catalog.videos):
        typer.echo(f"Paths were looked for below {catalog.root}: name the folder that they start from with --root.")


def _amount(videos: Sequence[Video]) -> str:
    """`3 h 20 min of video and 12 images`, or what of it there is."""
    images = sum(video.reader == "pillow" for video in videos)
    seconds = sum(video.frames / video.fps for video in videos if video.fps)
    parts = [f"{human_duration(seconds)} of video"] if images < len(videos) or not videos else []
    return " and ".join(parts + [f"{images} images"] * (images > 0))


def _reach(progress: WorkProgress, done: int, total: int) -> None:
    progress.reach(done, "", total=total)
