"""`mvd-offline convert`: checkpoints in and out."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mvd_offline.cli.common import JsonOption, print_json


class ConvertTarget(StrEnum):
    """The formats that `convert` writes."""

    mvd = "mvd"
    hf = "hf"
    timm = "timm"
    safetensors = "safetensors"


class PositionKind(StrEnum):
    """The position tables of video encoders."""

    sincos_3d = "sincos_3d"
    interleaved_1d = "interleaved_1d"


def convert(
    checkpoint: Annotated[
        str,
        typer.Argument(metavar="CKPT", help="A .pth, .safetensors, Hugging Face folder or timm:NAME."),
    ],
    to: Annotated[ConvertTarget, typer.Option("--to", help="Official .pth, Hugging Face, timm or our safetensors.")],
    out: Annotated[Path, typer.Option("--out", help="The file to write; a folder for hf.")],
    heads: Annotated[int | None, typer.Option(help="Attention heads, where the width does not tell.")] = None,
    decoder_heads: Annotated[int | None, typer.Option(help="Attention heads of the decoders.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Input side in pixels, where nothing tells [224].")] = None,
    frames: Annotated[int | None, typer.Option(help="Frames of a clip, where nothing tells [16].")] = None,
    positions: Annotated[
        PositionKind | None,
        typer.Option(help="The video encoder's positions: interleaved_1d for fine-tuned VideoMAE files."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Convert a checkpoint between the official, Hugging Face, timm and safetensors formats."""
    from mvd_offline.models.export import Sizes, convert_checkpoint

    sizes = Sizes(heads, decoder_heads, image_size, frames, positions.value if positions else None)
    converted = convert_checkpoint(checkpoint, to.value, out, sizes)
    if as_json:
        print_json(converted)
        return
    typer.echo(f"{converted.layout} -> {to.value}: {converted.tensors} tensors in {converted.out}")
    if converted.dropped:
        counts = Counter(name.split(".")[0] for name in converted.dropped)
        shown = ", ".join(f"{name} ({count})" for name, count in counts.items())
        typer.echo(f"left out, the target has no place for them: {shown} tensors")
    for note in converted.notes:
        typer.echo(f"note: {note}")
