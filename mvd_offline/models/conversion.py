"""What the writers of `convert` share: the sizes that they are given and find, and what they report."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from mvd_offline.errors import CheckpointError
from mvd_offline.geometry import TokenGrid
from mvd_offline.models.checkpoints import Checkpoint
from mvd_offline.models.loading import grid_of_table
from mvd_offline.models.positions import Positions
from mvd_offline.models.vit import Arch


@dataclass(frozen=True)
class Sizes:
    """What weights do not record; None means known, recorded, or the default of 16 frames of 224 pixels."""

    heads: int | None = None
    decoder_heads: int | None = None
    image_size: int | None = None
    frames: int | None = None
    positions: Positions | None = None


@dataclass
class Converted:
    """What `convert_checkpoint` did: the layout it found, what it wrote and left out, and what a user must know.

    Attributes:
        sizes: width, depth, heads and so on of what was written, by their names in a model card.
        difference: largest difference between the outputs of what was written and of the model it came from, on a
            random clip; None where the format holds the same tensors.
        arguments: what `timm.create_model` builds the model with, for a conversion to timm.
    """

    layout: str
    out: str
    tensors: int = 0
    dropped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sizes: dict[str, Any] = field(default_factory=dict)
    difference: float | None = None
    arguments: dict[str, Any] = field(default_factory=dict)


def decoder_of(checkpoint: Checkpoint, sizes: Sizes) -> Arch | None:
    """Sizes of the decoder of pixels that MAE's and VideoMAE's pretraining files have."""
    prefix = {"mae": "decoder_blocks.", "videomae_pretrain": "decoder.blocks."}.get(checkpoint.layout)
    if prefix is None or f"{prefix}0.norm1.weight" not in checkpoint.state:
        return None
    heads = sizes.decoder_heads
    if checkpoint.layout == "mae" and heads is None and checkpoint.decoder_heads is None:
        heads = 16  # of every released MAE decoder
    return checkpoint.decoder(prefix, heads)


def image_size_of(checkpoint: Checkpoint, sizes: Sizes) -> int:
    """Input side in pixels: given, recorded, told by MAE's position table, or 224."""
    table = checkpoint.state.get("pos_embed")
    stored = None
    if checkpoint.layout == "mae" and table is not None:
        stored = round((table.shape[1] - 1) ** 0.5) * checkpoint.patch_size
    return sizes.image_size or checkpoint.image_size or stored or 224


def clip_grid(checkpoint: Checkpoint, sizes: Sizes) -> TokenGrid:
    """Token grid of a video model's clips; a student's is in its position table."""
    if checkpoint.layout == "mvd_student":
        return grid_of_table(checkpoint.state["pos_embed"], checkpoint.source)
    return TokenGrid.of_clip(
        frames=sizes.frames or checkpoint.frames or 16,
        image_size=image_size_of(checkpoint, sizes),
        tubelet_size=checkpoint.tubelet_size,
        patch_size=checkpoint.patch_size,
    )


def sizes_of(checkpoint: Checkpoint, sizes: Sizes) -> dict[str, Any]:
    """What a checkpoint's encoder is, in the order in which a model card says it; heads only if they are known."""
    found: dict[str, Any] = {}
    try:
        found |= asdict(checkpoint.arch(sizes.heads))
    except CheckpointError:
        # Converting to official names needs no heads, and a width alone need not tell them.
        arch = checkpoint.arch(1)
        found |= {"width": arch.width, "depth": arch.depth}
    if checkpoint.layout == "mae":
        return found | {"patch_size": checkpoint.patch_size, "image_size": image_size_of(checkpoint, sizes)}
    grid = clip_grid(checkpoint, sizes)
    found |= {
        "patch_size": checkpoint.patch_size,
        "tubelet_size": checkpoint.tubelet_size,
        "frames": grid.t * checkpoint.tubelet_size,
        "image_size": grid.h * checkpoint.patch_size,
        "positions": sizes.positions or checkpoint.positions or "sincos_3d",
    }
    if heads := sizes.decoder_heads or checkpoint.decoder_heads:
        found["decoder_heads"] = heads
    if checkpoint.layout == "classifier":
        found["classes"] = checkpoint.state["head.weight"].shape[0]
    return found
