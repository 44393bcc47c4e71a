"""Students whose encoder starts from weights that are there already."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from mvd_offline.errors import CheckpointError
from mvd_offline.models.checkpoints import (
    Checkpoint,
    load_strictly,
    read_checkpoint,
    split_qkv_bias,
    weights_sha256,
)
from mvd_offline.models.saving import save_model
from mvd_offline.models.student import StudentEncoder, student_of
from mvd_offline.models.vit import encoder_arch
from mvd_offline.randomness import KeyedStream
from mvd_offline.recipe import DistillRecipe, dump_recipe

_NEEDED = ("patch_embed.", "blocks.")
_TAKEN = (*_NEEDED, "norm.")


def start_encoder(student: StudentEncoder, path: str | Path) -> str:
    """Give a student's encoder the weights of a checkpoint of any layout; what predicts keeps its fresh ones.

    Patch embedding, blocks and, where the file has it, the final norm are taken. Positions are formulas and stay the
    student's; an image encoder's class token is left out, and so are key biases, which softmax cancels. An embedding of
    single frames (of an image encoder, or of a student with tubelets of one frame) is repeated over the frames of a
    tubelet and divided by their number: a tubelet of equal frames is embedded as one of them was.

    Returns:
        sha256 of what was taken, whatever the file's layout.

    Raises:
        CheckpointError: unreadable, or of other sizes.
    """
    try:
        checkpoint = read_checkpoint(path)
    except CheckpointError as error:
        raise CheckpointError(f"student.init: {error}") from None
    _require_same_sizes(student, checkpoint)
    given = {name: t for name, t in split_qkv_bias(checkpoint.encoder_state()).items() if name.startswith(_TAKEN)}
    given["patch_embed.proj.weight"] = inflated(checkpoint.patch_weight, student.tubelet_size)
    kept = {name: t for name, t in student.state_dict().items() if not name.startswith(_NEEDED)}
    load_strictly(student, {**kept, **given}, use="student", source=f"student.init: {path}")
    return weights_sha256(given.items())


def save_untrained_student(path: Path, recipe: DistillRecipe, init: Path | None = None) -> None:
    """Write the student of a recipe with the encoder that its distillation begins with: what training must beat.

    Args:
        init: weights that its encoder has in place of fresh ones, as `start_encoder` takes them.
    """
    torch.manual_seed(KeyedStream("init", recipe.training.seed).torch_seed())
    # The encoder is drawn before what predicts, so that the teachers' own widths change nothing.
    student = student_of(recipe, dict.fromkeys(recipe.active_teachers, encoder_arch(recipe.student).width))
    if init is not None:
        start_encoder(student, init)
    save_model(path, student, recipe=dump_recipe(recipe))


def inflated(weight: Tensor, tubelet_size: int) -> Tensor:
    """A patch embedding of single frames as one of tubelets: (D, 3, p, p) or (D, 3, 1, p, p) to (D, 3, t, p, p)."""
    if weight.ndim == 4:
        weight = weight[:, :, None]
    if weight.shape[2] == tubelet_size:
        return weight
    return weight.expand(-1, -1, tubelet_size, -1, -1) / tubelet_size


def _require_same_sizes(student: StudentEncoder, checkpoint: Checkpoint) -> None:
    # Where heads are not recorded, they are the student's: width and depth are in the tensors.
    arch = checkpoint.arch(checkpoint.heads or student.arch.heads)
    sizes = (
        ("width", arch.width, student.arch.width),
        ("depth", arch.depth, student.arch.depth),
        ("heads", arch.heads, student.arch.heads),
        ("patch size", checkpoint.patch_size, student.patch_size),
    )
    if differing := [f"{what} {found}, the student has {wanted}" for what, found, wanted in sizes if found != wanted]:
        raise CheckpointError(
            f"student.init: {checkpoint.source} holds an encoder of another size: {'; '.join(differing)}. Give weights "
            "of the student's size, or change student and view."
        )
    if checkpoint.tubelet_size not in (1, student.tubelet_size):
        raise CheckpointError(
            f"student.init: {checkpoint.source} embeds tubelets of {checkpoint.tubelet_size} frames, and the student's "
            f"have {student.tubelet_size}; allowed are the same number, or 1, whose weights are repeated. Set "
            f"view.tubelet_size: {checkpoint.tubelet_size}, or give other weights."
        )
