"""Students and classifiers from files, and classifiers that start from pretrained encoders."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from mvd_offline.errors import CheckpointError
from mvd_offline.geometry import TokenGrid
from mvd_offline.models.checkpoints import Checkpoint, State, load_strictly, read_checkpoint, split_qkv_bias
from mvd_offline.models.classifier import Classifier, build_classifier
from mvd_offline.models.positions import Positions, position_table
from mvd_offline.models.student import SHORT_NAMES, PerTokenStudent, Student
from mvd_offline.models.vit import Arch
from mvd_offline.recipe import ClassifierSection, ClipSection

HEAD: tuple[str, ...] = ("head.weight", "head.bias")


def load_student(
    path: str | Path, heads: int | None = None, *, decoder_heads: int | None = None
) -> Student | PerTokenStudent:
    """Load a student from an official MVD file or from our own safetensors, in evaluation mode.

    Everything else is read from the weights: the token grid from the stored position table, what it predicts from the
    decoders that are there. One that was distilled token by token has projectors instead, and takes no mask.

    Args:
        heads: of the encoder, where neither the file nor the width tells.
        decoder_heads: of the decoders; default the encoder's where the widths are equal, 8 for 512 and 640.

    Raises:
        CheckpointError: another layout, position tables that are not MVD's, or tensors missing, unexpected, misshapen.
    """
    checkpoint = read_checkpoint(path)
    if checkpoint.layout != "mvd_student":
        raise CheckpointError(
            f"{path}: this is a {checkpoint.layout} checkpoint; a student has decoders (down_img, down_vid, ...) or "
            "projectors. To fine-tune it, start a classifier from it"
        )
    student = _student_of(checkpoint, heads, decoder_heads)
    state = split_qkv_bias(checkpoint.state)
    _check_tables(student, state, str(path))
    load_strictly(student, state, use="student", source=str(path))
    return student.eval()


def load_classifier(
    path: str | Path,
    heads: int | None = None,
    *,
    image_size: int | None = None,
    frames: int | None = None,
    positions: Positions | None = None,
) -> Classifier:
    """Load a fine-tuned model with its head, in evaluation mode.

    Args:
        image_size: nominal side of the input in pixels, default 224; clips of other sizes are accepted.
        frames: nominal frames of a clip, default 16.
        positions: pass `interleaved_1d` for an official VideoMAE file: its names do not differ from MVD's, whose
            `sincos_3d` is the default. Hugging Face folders and our own files record it.
    """
    checkpoint = read_checkpoint(path)
    if checkpoint.layout != "classifier":
        raise CheckpointError(
            f"{path}: this is a {checkpoint.layout} checkpoint without head.weight, not a classifier. Give a "
            "fine-tuned file (`mvd-offline finetune` makes one of it), or judge its encoder by `mvd-offline evaluate "
            "--probe`."
        )
    with torch.device("meta"):
        classifier = Classifier(
            checkpoint.arch(heads),
            grid=TokenGrid.of_clip(
                frames=frames or checkpoint.frames or 16,
                image_size=image_size or checkpoint.image_size or 224,
                tubelet_size=checkpoint.tubelet_size,
                patch_size=checkpoint.patch_size,
            ),
            classes=checkpoint.state["head.weight"].shape[0],
            patch_size=checkpoint.patch_size,
            tubelet_size=checkpoint.tubelet_size,
            positions=positions or checkpoint.positions or "sincos_3d",
        )
    load_strictly(classifier, split_qkv_bias(checkpoint.state), use="classifier", source=str(path))
    return classifier.eval()


def start_finetuning(
    path: str | Path,
    section: ClassifierSection,
    clip: ClipSection,
    *,
    positions: Positions | None = None,
) -> tuple[Classifier, list[str]]:
    """A classifier whose encoder comes from a checkpoint: a student, VideoMAE, or an already fine-tuned model.

    The pretraining norm and the decoders are left out; fc_norm and head are fresh unless the file has them. A head for
    another number of classes is replaced by a fresh one: the only tensors that may not fit.

    Returns:
        the classifier in training mode, and the names of head tensors that were dropped.
    """
    checkpoint = read_checkpoint(path)
    if checkpoint.layout == "mae":
        raise CheckpointError(f"{path}: image weights (a 4-D patch embedding) cannot start a video classifier")
    classifier = build_classifier(section, clip, positions or checkpoint.positions or "sincos_3d")
    _require_same_sizes(checkpoint, classifier, path)
    fresh = classifier.state_dict()
    state = split_qkv_bias(checkpoint.encoder_state())
    dropped = [name for name in HEAD if name in state and state["head.weight"].shape != fresh["head.weight"].shape]
    for name in dropped:
        del state[name]
    for name in ("fc_norm.weight", "fc_norm.bias", *HEAD):
        state.setdefault(name, fresh[name])
    load_strictly(classifier, state, use="classifier to fine-tune", source=str(path))
    return classifier.train(), dropped


def _require_same_sizes(checkpoint: Checkpoint, classifier: Classifier, path: str | Path) -> None:
    # Where heads are not recorded, they are the recipe's: all other sizes are in the tensors.
    found = checkpoint.arch(checkpoint.heads or classifier.arch.heads)
    sizes = {
        "width": (found.width, classifier.arch.width),
        "depth": (found.depth, classifier.arch.depth),
        "heads": (found.heads, classifier.arch.heads),
        "patch_size": (checkpoint.patch_size, classifier.patch_size),
        "tubelet_size": (checkpoint.tubelet_size, classifier.tubelet_size),
    }
    if differing := [f"{name} {there} (the recipe: {ours})" for name, (there, ours) in sizes.items() if there != ours]:
        raise CheckpointError(
            f"{path}: an encoder of another size cannot start this recipe's classifier: it has {', '.join(differing)}. "
            "Give the checkpoint of an encoder of the recipe's size, or the recipe of the checkpoint's (model.arch, or "
            "model.width, depth and heads; clip.patch_size and tubelet_size)."
        )


def _student_of(checkpoint: Checkpoint, heads: int | None, decoder_heads: int | None) -> Student | PerTokenStudent:
    state, arch = checkpoint.state, checkpoint.arch(heads)
    shorts = {name: short for name, short in SHORT_NAMES.items() if f"decoder_{short}.head.weight" in state}
    if "pos_embed" in state and any(name.startswith("projector_") for name in state):
        return _per_token_student_of(checkpoint, arch)
    if not shorts or "pos_embed" not in state:
        raise CheckpointError(f"{checkpoint.source}: missing: pos_embed or decoder_img.head / decoder_vid.head tensors")
    first = next(iter(shorts.values()))
    same_width = state[f"decoder_{first}.blocks.0.norm1.weight"].shape[0] == arch.width
    if same_width and decoder_heads is None and checkpoint.decoder_heads is None:
        decoder_heads = arch.heads
    decoder = checkpoint.decoder(f"decoder_{first}.blocks.", decoder_heads)
    with torch.device("meta"):
        return Student(
            arch,
            grid=grid_of_table(state["pos_embed"], checkpoint.source),
            patch_size=checkpoint.patch_size,
            tubelet_size=checkpoint.tubelet_size,
            targets={name: state[f"decoder_{short}.head.weight"].shape[0] for name, short in shorts.items()},
            decoder=decoder,
        )


def _per_token_student_of(checkpoint: Checkpoint, arch: Arch) -> PerTokenStudent:
    state = checkpoint.state
    shorts = {name: short for name, short in SHORT_NAMES.items() if f"projector_{short}.layers.0.weight" in state}
    if not shorts:
        raise CheckpointError(f"{checkpoint.source}: missing: projector_img.layers or projector_vid.layers tensors")
    first = f"projector_{next(iter(shorts.values()))}.layers."
    depth = sum(name.startswith(first) and name.endswith(".weight") for name in state)
    with torch.device("meta"):
        return PerTokenStudent(
            arch,
            grid=grid_of_table(state["pos_embed"], checkpoint.source),
            patch_size=checkpoint.patch_size,
            tubelet_size=checkpoint.tubelet_size,
            targets={n: state[f"projector_{short}.layers.{depth - 1}.weight"].shape[0] for n, short in shorts.items()},
            projector_depth=depth,
            projector_width=state[f"{first}0.weight"].shape[0],
        )


def grid_of_table(table: Tensor, source: str) -> TokenGrid:
    """The square token grid whose 3-D sine-cosine table this is: weights record no clip size, but the table does."""
    tokens, width = table.shape[1:]
    for side in range(1, int(tokens**0.5) + 1):
        if tokens % (side * side) == 0:
            grid = TokenGrid(tokens // (side * side), side, side)
            if _is_table(table, position_table("sincos_3d", width, grid)):
                return grid
    raise CheckpointError(
        f"{source}: pos_embed of shape {tuple(table.shape)} is not MVD's 3-D sine-cosine table of any square token "
        "grid; were its positions trained or interpolated?"
    )


def _is_table(stored: Tensor, computed: Tensor) -> bool:
    # Half-precision files were rounded before they became float32.
    return torch.allclose(stored, computed, rtol=0.0, atol=2e-3 if _is_half(stored) else 1e-5)


def _is_half(tensor: Tensor) -> bool:
    return bool((tensor.half().float() == tensor).all())


def _check_tables(student: Student | PerTokenStudent, state: State, source: str) -> None:
    """Stored tables must be the formula's; the model then keeps the formula's."""
    for name, computed in student.named_buffers():
        stored = state.get(name)
        if stored is not None and stored.shape == computed.shape:
            if not _is_table(stored, computed):
                raise CheckpointError(f"{source}: {name} is not MVD's 3-D sine-cosine table for grid {student.grid}")
            state[name] = computed
