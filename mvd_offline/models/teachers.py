"""Frozen teachers: what they see, where their features are taken, and the identity that a store records."""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from mvd_offline.errors import CheckpointError, RecipeError, UsageError
from mvd_offline.geometry import TokenGrid
from mvd_offline.models.checkpoints import (
    Checkpoint,
    fuse_qkv_bias,
    load_strictly,
    read_checkpoint,
    weights_sha256,
)
from mvd_offline.models.image_encoder import ImageEncoder, image_position_table, init_for_mae
from mvd_offline.models.inputs import IMAGENET_MEAN, IMAGENET_STD, front_frames
from mvd_offline.models.positions import Positions
from mvd_offline.models.vit import ARCHS, Arch, VideoEncoder, init_for_pretraining
from mvd_offline.recipe import TeacherName, TeacherSection, ViewSection

TeacherPrecision: TypeAlias = Literal["float32", "bfloat16", "float16"]

LAYER = "last_block_before_norm"
POOLING = "mean_over_tokens"
NORMALISATION = {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}
IMAGE_POSITIONS = "sincos_2d"

DEFAULT_FRAMES = 16
DEFAULT_IMAGE_SIZE = 224


class Teacher(nn.Module, ABC):
    """(B, 3, T, H, W), normalised, to (B, N, D): the residual stream after the last block, before the final norm.

    Always in evaluation mode and without gradients. Runs under autocast to `precision` and returns float32.

    Attributes:
        name: `image` or `video`.
        arch, width, grid, image_size, frames, patch_size, tubelet_size: its sizes.
        pooled: gives the mean over all tokens, (B, 1, D), in place of them.
    """

    name: TeacherName
    pooled: bool = False

    def __init__(
        self,
        encoder: nn.Module,
        *,
        arch: Arch,
        patch_size: int,
        tubelet_size: int,
        image_size: int,
        frames: int,
        any_size: bool,
        precision: TeacherPrecision,
    ) -> None:
        """`any_size` accepts clips of other sizes than the nominal one (positions are a formula)."""
        super().__init__()
        self.encoder, self.arch, self.precision = encoder, arch, precision
        self.patch_size, self.tubelet_size = patch_size, tubelet_size
        self.image_size, self.frames, self.any_size = image_size, frames, any_size
        self.grid = TokenGrid.of_clip(
            frames=frames, image_size=image_size, tubelet_size=tubelet_size, patch_size=patch_size
        )
        self.requires_grad_(False)
        self.train(False)

    @property
    def width(self) -> int:
        return self.arch.width

    @property
    def tokens(self) -> int:
        """How many it gives for a clip."""
        return 1 if self.pooled else self.grid.num_tokens

    @property
    @abstractmethod
    def positions(self) -> str:
        """Name of the position table."""

    def forward(self, video: Tensor) -> Tensor:
        if video.ndim != 5 or video.shape[1] != 3:
            raise UsageError(f"a video is (B, 3, T, H, W), not {tuple(video.shape)}")
        wanted = (self.frames, self.image_size, self.image_size)
        if not self.any_size and tuple(video.shape[2:]) != wanted:
            raise UsageError(
                f"the {self.name} teacher takes clips of T, H, W = {wanted}, not {tuple(video.shape[2:])}; "
                "render the view at the teacher's image_size"
            )
        with torch.no_grad(), self._autocast(video):
            features = self._features(video).float()
        return features.mean(dim=1, keepdim=True) if self.pooled else features

    @abstractmethod
    def _features(self, video: Tensor) -> Tensor:
        """(B, N, D) of a video that was checked."""

    def _autocast(self, video: Tensor) -> contextlib.AbstractContextManager[Any]:
        # float32 also switches off an outer autocast: a teacher's precision is part of its identity.
        dtype = getattr(torch, self.precision)
        enabled = dtype is not torch.float32
        return torch.autocast(video.device.type, dtype=dtype if enabled else None, enabled=enabled)

    def train(self, mode: bool = True) -> Teacher:
        """A teacher stays in evaluation mode."""
        del mode
        return super().train(False)

    @cached_property
    def weights_sha256(self) -> str:
        """Hash of the tensors that the forward pass uses, under official names with a fused qkv bias."""
        return weights_sha256(self.encoder.state_dict().items())

    def identity(self) -> dict[str, Any]:
        """Everything that decides this teacher's features for given pixels, as plain JSON values."""
        pooling = {"pooling": POOLING} if self.pooled else {}
        return {
            "kind": self.name,
            "architecture": {**asdict(self.arch), "patch": self.patch_size},
            "weights_sha256": self.weights_sha256,
            "layer": LAYER,
            "positions": self.positions,
            "image_size": self.image_size,
            "tubelet": self.tubelet_size,
            "precision": self.precision,
            "normalisation": NORMALISATION,
            **pooling,
        }


class ImageTeacher(Teacher):
    """MAE on the front frame of each tubelet; the class token is dropped and slices are joined in t, h, w order."""

    name = "image"
    encoder: ImageEncoder

    @property
    def positions(self) -> str:
        return IMAGE_POSITIONS

    def _features(self, video: Tensor) -> Tensor:
        frames = front_frames(video, self.tubelet_size)
        images = frames.transpose(1, 2).flatten(0, 1)
        tokens = self.encoder.encode_tokens(images)[:, 1:]
        return tokens.reshape(video.shape[0], -1, self.width)


class VideoTeacher(Teacher):
    """VideoMAE on all tokens of the clip."""

    name = "video"
    encoder: VideoEncoder

    @property
    def positions(self) -> str:
        return self.encoder.positions

    def _features(self, video: Tensor) -> Tensor:
        return self.encoder.encode_tokens(video)


# ---- loading -----------------------------------------------------------------------------------------------------


def load_teacher(
    path: str | Path,
    kind: TeacherName = "image",
    heads: int | None = None,
    image_size: int | None = None,
    frames: int | None = None,
    *,
    tubelet_size: int | None = None,
    positions: Positions | None = None,
    precision: TeacherPrecision = "float32",
) -> Teacher:
    """Load a frozen teacher. Sizes are read from the weights.

    Args:
        path: a .pth of MAE, VideoMAE or MVD, a .safetensors, a Hugging Face folder, `timm:NAME`, or
            `random:ARCH[:SEED]` (official initialisation, for dry runs).
        kind: `image` or `video`.
        heads: attention heads, where neither the file nor the width tells.
        image_size: side of the input in pixels; with None, what the file records or 224, and clips of any size
            that patches divide are accepted.
        frames: of a clip; with None, what the file records or 16.
        tubelet_size: frames of one token; image teachers take the first of them. Default 2, or the weights'; 1 of an
            image teacher where `frames` is odd.
        positions: of a video teacher, where the file does not tell; VideoMAE's `interleaved_1d` by default.
        precision: autocast of the forward pass.

    Raises:
        CheckpointError: unreadable, of the other kind, or with missing, unexpected or misshapen tensors.
    """
    if kind not in ("image", "video"):
        raise UsageError(f"a teacher's kind is image or video, not {kind!r}")
    if str(path).startswith("random:"):
        tubelet_size = tubelet_size or _usual_tubelet(kind, frames)
        return _random_teacher(str(path), kind, heads, image_size, frames, tubelet_size, precision)
    checkpoint = read_checkpoint(path)
    if (checkpoint.layout == "mae") != (kind == "image"):
        found = "image" if checkpoint.layout == "mae" else "video"
        raise CheckpointError(
            f"{path}: its patch embedding is {checkpoint.patch_weight.ndim}-D, so these are weights of the {found} "
            f"kind (layout {checkpoint.layout}); load them with kind={found!r}, in a recipe as "
            f"teachers.{found}.weights"
        )
    if kind == "video" and tubelet_size not in (None, checkpoint.tubelet_size):
        raise CheckpointError(
            f"{path}: tubelet_size={tubelet_size} was given; the weights' is {checkpoint.tubelet_size}"
        )
    stored_size = _stored_image_size(checkpoint)
    tubelet_size = (tubelet_size or _usual_tubelet(kind, frames)) if kind == "image" else checkpoint.tubelet_size
    with torch.device("meta"):
        teacher = _build(
            kind,
            checkpoint.arch(heads),
            patch_size=checkpoint.patch_size,
            tubelet_size=tubelet_size,
            image_size=image_size or checkpoint.image_size or stored_size or DEFAULT_IMAGE_SIZE,
            frames=frames or checkpoint.frames or DEFAULT_FRAMES,
            any_size=image_size is None and frames is None,
            positions=positions or checkpoint.positions or "interleaved_1d",
            precision=precision,
        )
    state = fuse_qkv_bias(checkpoint.encoder_state())
    load_strictly(teacher.encoder, state, use=f"{kind} teacher", source=str(path))
    return teacher.requires_grad_(False)


def teacher_for(section: TeacherSection, view: ViewSection, name: TeacherName) -> Teacher:
    """The teacher of a recipe, checked against the view: its token grid must be the view's, its hash the pinned one.

    Raises:
        RecipeError: another token grid. CheckpointError: weights that are not those of `sha256`.
    """
    teacher = load_teacher(
        section.weights,
        name,
        heads=section.heads,
        image_size=section.image_size or view.image_size,
        frames=view.frames,
        tubelet_size=view.tubelet_size,
        precision=section.precision,
    )
    _check_grid(teacher, view, name)
    if section.sha256 is not None and section.sha256 != teacher.weights_sha256:
        raise CheckpointError(
            f"teachers.{name}: the recipe pins weights with sha256 {section.sha256}, but {section.weights} has "
            f"{teacher.weights_sha256}; use the pinned weights, or change teachers.{name}.sha256"
        )
    return teacher


def empty_teacher(
    section: TeacherSection, view: ViewSection, name: TeacherName, arch: Arch, patch_size: int
) -> Teacher:
    """A teacher of a recipe without its weights, on the `meta` device: it has sizes and shapes, and computes nothing.

    Raises:
        RecipeError: its token grid is not the view's.
    """
    with torch.device("meta"):
        teacher = _build(
            name,
            arch,
            patch_size=patch_size,
            tubelet_size=view.tubelet_size,
            image_size=section.image_size or view.image_size,
            frames=view.frames,
            any_size=False,
            positions="interleaved_1d",
            precision=section.precision,
        )
    _check_grid(teacher, view, name)
    return teacher


def _check_grid(teacher: Teacher, view: ViewSection, name: TeacherName) -> None:
    if teacher.grid != view.grid:
        fitting = view.grid.h * teacher.patch_size
        raise RecipeError(
            f"teachers.{name}: with patches of {teacher.patch_size} pixels, image_size {teacher.image_size} gives a "
            f"token grid of {teacher.grid}, but the view's is {view.grid}; set teachers.{name}.image_size: {fitting}"
        )


def declared_identity(section: TeacherSection, view: ViewSection, name: TeacherName) -> dict[str, Any]:
    """What a recipe alone says of a teacher's identity; fields that only the weights tell are left out."""
    declared: dict[str, Any] = {
        "kind": name,
        "layer": LAYER,
        "image_size": section.image_size or view.image_size,
        "tubelet": view.tubelet_size,
        "precision": section.precision,
        "normalisation": NORMALISATION,
    }
    if name == "image":
        declared["positions"] = IMAGE_POSITIONS
    if section.heads is not None:
        declared["architecture"] = {"heads": section.heads}
    if section.sha256 is not None:
        declared["weights_sha256"] = section.sha256
    return declared


def released_patch_size(kind: TeacherName, arch: str) -> int:
    """Pixels of a patch's side of the released teacher of this size: MAE H has 14, all others 16."""
    return 14 if kind == "image" and arch == "vit_huge" else 16


def _usual_tubelet(kind: TeacherName, frames: int | None) -> int:
    """Frames of one token where nothing tells. An image teacher takes single frames as well, where pairs do not fit."""
    return 1 if kind == "image" and frames is not None and frames % 2 else 2


def _random_teacher(
    text: str,
    kind: TeacherName,
    heads: int | None,
    image_size: int | None,
    frames: int | None,
    tubelet_size: int,
    precision: TeacherPrecision,
) -> Teacher:
    _, name, *rest = text.split(":")
    if name not in ARCHS or len(rest) > 1 or not all(part.isdigit() for part in rest):
        raise UsageError(f"{text!r}: write random:ARCH or random:ARCH:SEED with ARCH one of {', '.join(ARCHS)}")
    arch = ARCHS[name] if heads is None else Arch(ARCHS[name].width, ARCHS[name].depth, heads)
    patch_size = released_patch_size(kind, name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rest[0]) if rest else 0)
        teacher = _build(
            kind,
            arch,
            patch_size=patch_size,
            tubelet_size=tubelet_size,
            image_size=image_size or DEFAULT_IMAGE_SIZE,
            frames=frames or DEFAULT_FRAMES,
            any_size=image_size is None and frames is None,
            positions="interleaved_1d",
            precision=precision,
        )
        init_for_pretraining(teacher.encoder)
        if kind == "image":
            init_for_mae(teacher.encoder)
    return teacher


def _build(
    kind: TeacherName,
    arch: Arch,
    *,
    patch_size: int,
    tubelet_size: int,
    image_size: int,
    frames: int,
    any_size: bool,
    positions: Positions,
    precision: TeacherPrecision,
) -> Teacher:
    grid = TokenGrid.of_clip(frames=frames, image_size=image_size, tubelet_size=tubelet_size, patch_size=patch_size)
    encoder: nn.Module
    if kind == "image":
        encoder = ImageEncoder(arch, image_size=image_size, patch_size=patch_size)
    else:
        encoder = VideoEncoder(
            arch,
            grid=grid,
            patch_size=patch_size,
            tubelet_size=tubelet_size,
            positions=positions,
            qkv_bias="fused",
        )
    cls = ImageTeacher if kind == "image" else VideoTeacher
    return cls(
        encoder,
        arch=arch,
        patch_size=patch_size,
        tubelet_size=tubelet_size,
        image_size=image_size,
        frames=frames,
        any_size=any_size,
        precision=precision,
    )


def _stored_image_size(checkpoint: Checkpoint) -> int | None:
    """Side in pixels of the images that a MAE file's position table is for.

    Raises:
        CheckpointError: a table that is not MAE's. The teacher recomputes positions for its grid, as MVD does, so a
            model with learned positions would silently become another one.
    """
    table = checkpoint.state.get("pos_embed")
    if checkpoint.layout != "mae" or table is None:
        return None
    side = math.isqrt(table.shape[1] - 1)
    if side * side == table.shape[1] - 1:
        computed = image_position_table(table.shape[2], side, side)
        if torch.allclose(table, computed, rtol=0.0, atol=2e-3):
            return side * checkpoint.patch_size
    raise CheckpointError(
        f"{checkpoint.source}: pos_embed of shape {tuple(table.shape)} is not MAE's 2-D sine-cosine table with a class "
        "token; image teachers are MAE models, whose positions are recomputed and not loaded"
    )
