"""`mvd-offline convert`: checkpoints in and out."""

from __future__ import annotations

import dataclasses
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
    onnx = "onnx"
    pt2 = "pt2"


class PositionKind(StrEnum):
    """The position tables of video encoders."""

    sincos_3d = "sincos_3d"
    interleaved_1d = "interleaved_1d"


def convert(
    checkpoint: Annotated[
        str,
        typer.Argument(metavar="CKPT", help="A .pth, .safetensors, Hugging Face folder or timm:NAME."),
    ],
    to: Annotated[
        ConvertTarget,
        typer.Option(
            "--to",
            help="Official .pth, Hugging Face, timm, our safetensors; or a graph: ONNX, torch.export (.pt2).",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="The file to write; a folder for hf; either for timm.")],
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
    """Write a checkpoint for another program, with a model card: README.md in a folder, NAME.md beside a file.

    hf: transformers (MVD's position table needs trust_remote_code=True). timm: image weights, to a file or to a folder
    for `local-dir:`. onnx, pt2 (torch.export): the graph of a classifier or of a student's encoder, of any batch size.
    """
    from mvd_offline.model_card import write_card
    from mvd_offline.models.export import Sizes, convert_checkpoint

    sizes = Sizes(heads, decoder_heads, image_size, frames, positions.value if positions else None)
    converted = convert_checkpoint(checkpoint, to.value, out, sizes)
    card = write_card(converted, checkpoint, to.value)
    if as_json:
        print_json({**dataclasses.asdict(converted), "card": card})
        return
    typer.echo(f"{converted.layout} -> {to.value}: {converted.tensors} tensors in {converted.out}")
    if converted.dropped:
        counts = Counter(name.split(".")[0] for name in converted.dropped)
        shown = ", ".join(f"{name} ({count})" for name, count in counts.items())
        typer.echo(f"left out, the target has no place for them: {shown} tensors")
    for note in converted.notes:
        typer.echo(f"note: {note}")
    if converted.difference is not None:
        typer.echo(f"checked: on a random clip its outputs differ by {converted.difference:.2g} at most")
    typer.echo(f"how to load it, and where it came from: {card}")
