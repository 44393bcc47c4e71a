"""`mvd-offline evaluate CKPT --probe ...`: its options, and what it prints."""

from __future__ import annotations

import os
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from mvd_offline.cli.common import human_bytes, human_duration, print_json, print_table

if TYPE_CHECKING:
    from mvd_offline.evaluation.videos import Unreadables
    from mvd_offline.probing.encoders import EncoderOverrides
    from mvd_offline.probing.job import ProbeReport
    from mvd_offline.probing.preparing import WorkEstimate


class ProbeName(StrEnum):
    """A small classifier on frozen features."""

    linear = "linear"
    attentive = "attentive"
    knn = "knn"


class PrecisionName(StrEnum):
    """Autocast of a frozen encoder."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


ProbesOption: TypeAlias = Annotated[
    list[ProbeName] | None,
    typer.Option(
        "--probe",
        help="Judge the encoder of a pretrained checkpoint (or run of `distill`) by a classifier on its frozen "
        "features instead: linear and knn look at the mean token, attentive at all of them. Repeatable.",
        show_default=False,
    ),
]
TrainOption: TypeAlias = Annotated[
    Path | None,
    typer.Option("--train", help="With --probe: catalog of the videos to fit on.", show_default=False),
]
FeaturesOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--store",
        help="With --probe: folder of the features, which are made once; by default `features` in --out. Mean tokens "
        "are small (1.5 kB a clip of a ViT-S); all tokens are not (1.2 MB).",
        show_default=False,
    ),
]
ViewsOption: TypeAlias = Annotated[
    int,
    typer.Option(
        "--views",
        help="With --probe: views of each training video; one is centred, several have random crops.",
        min=1,
    ),
]
EpochsOption: TypeAlias = Annotated[
    float | None,
    typer.Option(
        "--epochs",
        help="With --probe attentive: how long it is fitted.",
        min=0.01,
        show_default="20, and at least 500 steps",
    ),
]
HeadsOption: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--heads",
        help="With --probe: attention heads of the encoder, where its width does not tell.",
        min=1,
        show_default=False,
    ),
]
FramesOption: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--frames", help="With --probe: frames of a clip, where the file does not tell.", min=1, show_default="16"
    ),
]
StrideOption: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--stride",
        help="With --probe: stride between frames, where the file does not tell.",
        min=1,
        show_default="4",
    ),
]
SizeOption: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--image-size",
        help="With --probe: pixels of a frame's side, where the file does not tell.",
        min=1,
        show_default="224",
    ),
]
EncoderPrecisionOption: TypeAlias = Annotated[
    PrecisionName, typer.Option("--precision", help="With --probe: autocast of the encoder.")
]
WorkersOption: TypeAlias = Annotated[
    int,
    typer.Option(
        "--workers",
        help="With --probe: decode processes of each launch process; 0 shares out this machine's cores.",
        min=0,
    ),
]


def run_probes(
    checkpoints: Sequence[Path],
    probes: Sequence[ProbeName],
    *,
    train: Path | None,
    tests: Sequence[Path],
    out: Path | None,
    store: Path | None,
    views: int,
    epochs: float | None,
    encoder: EncoderOverrides,
    unreadables: Unreadables,
    workers: int,
    as_json: bool,
) -> None:
    """Probe one checkpoint and print what was found."""
    from mvd_offline.errors import UsageError
    from mvd_offline.probing.attentive import AttentiveSettings
    from mvd_offline.probing.job import probe
    from mvd_offline.probing.preparing import ExtractionOptions

    if len(checkpoints) != 1 or train is None or len(tests) != 1:
        raise UsageError(
            f"--probe takes one checkpoint ({len(checkpoints)} given), --train with the catalog to fit on "
            f"({'one' if train else 'none'} given) and one --videos, the catalog to test on ({len(tests)} given)."
        )
    folder = out or _folder_of(checkpoints[0])
    report = probe(
        str(checkpoints[0]),
        [kind.value for kind in probes],
        train=train,
        test=tests[0],
        out=folder,
        store_dir=store,
        encoder=encoder,
        extraction=ExtractionOptions(
            workers=workers or max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))),
            quiet=as_json,
            say=_say,
        ),
        attentive=AttentiveSettings(epochs=epochs),
        views=views,
        unreadables=unreadables,
    )
    if report is None:
        return
    if as_json:
        print_json(report)
    else:
        _print(report, folder, store or folder / "features")


def _folder_of(checkpoint: Path) -> Path:
    """Where the results go by default: beside a file, or into a folder."""
    from mvd_offline.errors import UsageError
    from mvd_offline.training.run import PROBE_FOLDER

    if checkpoint.is_dir():
        return checkpoint / PROBE_FOLDER
    if not checkpoint.exists():
        raise UsageError(
            f"{checkpoint} is no file or folder of this machine. Check the path; for timm:NAME and random:ARCH give "
            "--out, the folder of the results."
        )
    return checkpoint.parent / f"{checkpoint.stem}_probe"


def _say(estimate: WorkEstimate) -> None:
    from mvd_offline.probing.preparing import ASSUMED_TFLOPS

    what = "the mean token" if estimate.tokens == 1 else f"all {estimate.tokens} tokens"
    size, in_all = human_bytes(estimate.clip_bytes), human_bytes(estimate.clips * estimate.clip_bytes)
    encoder, decoding = human_duration(estimate.encoder_seconds), human_duration(estimate.decode_seconds)
    typer.echo(
        f"features to make: {what} of {estimate.clips} clips, {size} a clip, {in_all} in all; estimated: encoder "
        f"{encoder} at {ASSUMED_TFLOPS:g} TFLOP/s, decoding {decoding} on {estimate.cores} cores",
        err=True,
    )


def _print(report: ProbeReport, folder: Path, store: Path) -> None:
    from rich.table import Table

    from mvd_offline.probing.job import RESULT_FILE

    table = Table("probe", "top-1 %", "top-5 %", "mean class %", "seconds", box=None, pad_edge=False)
    for kind, found in report.probes.items():
        values = [f"{100 * value:.2f}" for value in (found.top1, found.top5, found.mean_class_accuracy)]
        table.add_row(kind, *values, f"{report.seconds[kind]:.1f}")
    print_table(table)
    made = f"in {human_duration(report.extraction_seconds)}" if report.extraction_seconds else "were there"
    tested = max(found.videos for found in report.probes.values())
    typer.echo(f"fitted on {report.clips['train']} clips, tested on {tested} videos; features {made}: {store}")
    if left_out := report.unreadable["train"]:
        typer.echo(f"{len(left_out)} training clips left out, such as {left_out[0].video_id}: {left_out[0].reason}")
    what = "counted as wrong" if report.unreadables == "wrong" else "left out"
    for video in report.unreadable["test"]:
        typer.echo(f"{what}: {video.video_id}: {video.reason}")
    typer.echo(f"per class: {folder / RESULT_FILE}")
