"""Students: encoders, and the light decoders or projectors by which they learn to predict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NotRequired, TypedDict, Unpack

import torch
from torch import Tensor, nn

from mvd_offline.errors import UsageError
from mvd_offline.geometry import TokenGrid
from mvd_offline.models.positions import position_table
from mvd_offline.models.projector import Projector
from mvd_offline.models.vit import (
    Arch,
    Decoder,
    LayerNorm,
    VideoEncoder,
    decoder_arch,
    encoder_arch,
    init_for_pretraining,
    init_mask_tokens,
    split_mask,
    with_mask_tokens,
)
from mvd_offline.recipe import DistillRecipe, StudentSection, TeacherName, ViewSection

SHORT_NAMES: Mapping[str, str] = {"image": "img", "video": "vid", "pixels": "pix", "momentum": "mom"}
"""What is predicted to the suffix of its parameters; those of teachers are the official names."""


class EncoderOptions(TypedDict):
    """What students of both kinds are built with, besides their architecture; only grid and targets are needed."""

    grid: TokenGrid
    targets: Mapping[str, int]
    patch_size: NotRequired[int]
    tubelet_size: NotRequired[int]
    drop_path: NotRequired[float]
    checkpoint_activations: NotRequired[bool]


class StudentEncoder(VideoEncoder):
    """The student without what predicts: an encoder and its final norm.

    Attributes:
        targets: what is predicted (keys of `SHORT_NAMES`, in their order) to its width.
    """

    def __init__(
        self,
        arch: Arch,
        *,
        grid: TokenGrid,
        targets: Mapping[str, int],
        patch_size: int = 16,
        tubelet_size: int = 2,
        drop_path: float = 0.0,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__(
            arch,
            grid=grid,
            patch_size=patch_size,
            tubelet_size=tubelet_size,
            positions="sincos_3d",
            qkv_bias="split",
            drop_path=drop_path,
            checkpoint_activations=checkpoint_activations,
            save_positions=True,
        )
        if unknown := set(targets) - set(SHORT_NAMES):
            raise UsageError(f"unknown targets {sorted(unknown)}; allowed: {', '.join(SHORT_NAMES)}")
        self.targets = {name: targets[name] for name in SHORT_NAMES if name in targets}
        self.drop_path = drop_path
        self.norm = LayerNorm(arch.width)

    @property
    def drop_path_sites(self) -> int:
        """Residual branches: the width of `drop_noise`."""
        return 2 * self.arch.depth

    def encode(self, video: Tensor, mask: Tensor | None = None) -> Tensor:
        """Visible tokens after the final norm: (B, N_visible, D); all N tokens without a mask."""
        index = None if mask is None else split_mask(mask)[0]
        return self.norm(self.encode_tokens(video, index))

    def new_encoder(self) -> VideoEncoder:
        """An encoder of this student's sizes, with weights of its own; parameters and buffers bear the same names."""
        return VideoEncoder(
            self.arch,
            grid=self.grid,
            patch_size=self.patch_size,
            tubelet_size=self.tubelet_size,
            positions=self.positions,
            qkv_bias="split",
        )

    def config(self) -> dict[str, Any]:
        """What `from_config` needs to build this model again; all sizes, no weights."""
        return {
            "arch": asdict(self.arch),
            "grid": asdict(self.grid),
            "patch_size": self.patch_size,
            "tubelet_size": self.tubelet_size,
            "targets": dict(self.targets),
            "drop_path": self.drop_path,
        }

    def _check_other_grid(self, grid: TokenGrid, video: Tensor) -> None:
        raise UsageError(
            f"this student takes clips of {self.frames} frames of {self.image_size} x {self.image_size} pixels "
            f"(token grid {self.grid}), not {tuple(video.shape)} (token grid {grid})"
        )


class Student(StudentEncoder):
    """MVD's student: sees only visible tokens, and predicts by one light decoder for each target (paper section 3).

    With image and video teachers the state dict has exactly the official MVD names; `_pix` and `_mom` are our own.
    `pos_embed`, `pos_embed_img` and so on are buffers: stored, never trained. Mask tokens are parameters (1, 1, D).
    """

    def __init__(self, arch: Arch, *, decoder: Arch, **options: Unpack[EncoderOptions]) -> None:
        """`targets` maps `image`, `video`, `pixels`, `momentum` to widths; only the decoders of those are built."""
        super().__init__(arch, **options)
        self.decoder_arch = decoder
        for name, width in self.targets.items():
            self._add_decoder(SHORT_NAMES[name], width)
        self.init_weights()

    def _add_decoder(self, short: str, out_features: int) -> None:
        decoder = Decoder(
            self.decoder_arch,
            out_features,
            drop_path=self.drop_path,
            checkpoint_activations=self.checkpoint_activations,
        )
        table = position_table("sincos_3d", self.decoder_arch.width, self.grid).clone()
        self.register_buffer(f"pos_embed_{short}", table)
        self.register_parameter(f"mask_token_{short}", nn.Parameter(torch.zeros(1, 1, self.decoder_arch.width)))
        self.add_module(f"down_{short}", nn.Linear(self.arch.width, self.decoder_arch.width))
        self.add_module(f"decoder_{short}", decoder)

    def init_weights(self) -> None:
        """Official initialisation, drawn from torch's global generator."""
        init_for_pretraining(self)
        init_mask_tokens([p for name, p in self.named_parameters() if name.startswith("mask_token_")])

    @property
    def drop_path_sites(self) -> int:
        """Residual branches of encoder and decoders: the width of `drop_noise`."""
        return 2 * (self.arch.depth + len(self.targets) * self.decoder_arch.depth)

    def forward(
        self,
        video: Tensor,
        mask: Tensor,
        masked_tokens: int | None = None,
        drop_noise: Tensor | None = None,
        decoded: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Predict every target at the masked tokens, or at some of them.

        Args:
            video: (B, 3, T, H, W), normalised.
            mask: bool (B, N) in t, h, w order, True = masked, the same number M in each row.
            masked_tokens: M. Pass it in a training loop: otherwise it is read from the mask, which waits for the
                device and breaks a compiled graph.
            drop_noise: (B, drop_path_sites), uniform in [0, 1), for drop path; encoder first, then each decoder.
                Drawn from the global generator when None.
            decoded: int64 (B, K), the masked tokens that decoders see and predict; all M in raster order when None.

        Returns:
            target to (B, K, its width), in the order of `decoded`.
        """
        if mask.shape != (video.shape[0], self.grid.num_tokens):
            raise UsageError(
                f"the mask has shape {tuple(mask.shape)}; this student's clips have a token grid of {self.grid}: "
                f"(B, {self.grid.num_tokens}) with B = {video.shape[0]} is needed"
            )
        visible, masked = split_mask(mask, masked_tokens)
        hidden = masked if decoded is None else decoded
        sites = [2 * self.arch.depth, *[2 * self.decoder_arch.depth] * len(self.targets)]
        noise = [None] * len(sites) if drop_noise is None else drop_noise.split(sites, dim=1)
        encoded = self.norm(self.encode_tokens(video, visible, noise[0]))
        predictions: dict[str, Tensor] = {}
        for name, decoder_noise in zip(self.targets, noise[1:], strict=True):
            short = SHORT_NAMES[name]
            x = with_mask_tokens(
                self.get_submodule(f"down_{short}")(encoded),
                self.get_parameter(f"mask_token_{short}"),
                self.get_buffer(f"pos_embed_{short}"),
                visible,
                hidden,
            )
            predictions[name] = self.get_submodule(f"decoder_{short}")(x, hidden.shape[1], decoder_noise)
        return predictions

    def config(self) -> dict[str, Any]:
        return {**super().config(), "decoder": asdict(self.decoder_arch)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Student:
        """The inverse of `config`, with fresh weights."""
        return cls(Arch(**config["arch"]), decoder=Arch(**config["decoder"]), **_options_in(config))


class PerTokenStudent(StudentEncoder):
    """Per-token distillation (paper, table 10): sees every token; a projector predicts each target at every token.

    A target's projector is named by its suffix in `SHORT_NAMES`, such as `projector_img`.
    """

    def __init__(
        self, arch: Arch, *, projector_depth: int, projector_width: int, **options: Unpack[EncoderOptions]
    ) -> None:
        super().__init__(arch, **options)
        self.projector_depth, self.projector_width = projector_depth, projector_width
        for name, width in self.targets.items():
            projector = Projector(arch.width, projector_width, width, projector_depth)
            self.add_module(f"projector_{SHORT_NAMES[name]}", projector)
        init_for_pretraining(self)

    def forward(self, video: Tensor, mask: Tensor | None = None, drop_noise: Tensor | None = None) -> dict[str, Tensor]:
        """Predict every target at every token.

        Args:
            video: (B, 3, T, H, W), normalised.
            mask: None, or one that hides nothing, where other students take one.
            drop_noise: (B, drop_path_sites), uniform in [0, 1), for drop path; drawn here when None.

        Returns:
            target to (B, N, its width), in t, h, w order.
        """
        if mask is not None and bool(mask.any()):
            raise UsageError(
                "this student was distilled token by token and sees every token: call it without a mask, or with one "
                f"that is False everywhere; {int(mask.sum())} tokens are masked here"
            )
        encoded = self.norm(self.encode_tokens(video, drop_noise=drop_noise))
        return {name: self.get_submodule(f"projector_{SHORT_NAMES[name]}")(encoded) for name in self.targets}

    def config(self) -> dict[str, Any]:
        return {**super().config(), "projector": {"depth": self.projector_depth, "width": self.projector_width}}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> PerTokenStudent:
        """The inverse of `config`, with fresh weights."""
        return cls(
            Arch(**config["arch"]),
            projector_depth=config["projector"]["depth"],
            projector_width=config["projector"]["width"],
            **_options_in(config),
        )


def _options_in(config: Mapping[str, Any]) -> EncoderOptions:
    """Of what `StudentEncoder.config` gave."""
    return {
        "grid": TokenGrid(**config["grid"]),
        "patch_size": config["patch_size"],
        "tubelet_size": config["tubelet_size"],
        "targets": config["targets"],
        "drop_path": config["drop_path"],
    }


# ---- of a recipe -------------------------------------------------------------------------------------------------


def build_student(section: StudentSection, view: ViewSection, targets: Mapping[str, int]) -> Student:
    """A masked student of these sections, freshly initialised from torch's global generator.

    Args:
        targets: what is predicted (`image`, `video`, `pixels`, `momentum`) to its width.
    """
    arch = encoder_arch(section)
    return Student(arch, decoder=decoder_arch(section.decoder, arch), **_options_of(section, view, targets))


def student_of(recipe: DistillRecipe, widths: Mapping[TeacherName, int]) -> Student | PerTokenStudent:
    """The student of a recipe with all that it predicts, freshly initialised; `student.init` is not read.

    Args:
        widths: of the active teachers' features.
    """
    section, view = recipe.student, recipe.view
    targets: dict[str, int] = {str(name): widths[name] for name in recipe.active_teachers}
    if recipe.pixels:
        targets["pixels"] = 3 * view.tubelet_size * view.patch_size**2
    if recipe.momentum:
        targets["momentum"] = encoder_arch(section).width
    if recipe.mask.kind != "none":
        return build_student(section, view, targets)
    arch, projector = encoder_arch(section), section.projector
    return PerTokenStudent(
        arch,
        projector_depth=projector.depth,
        projector_width=projector.width or arch.width,
        **_options_of(section, view, targets),
    )


def _options_of(section: StudentSection, view: ViewSection, targets: Mapping[str, int]) -> EncoderOptions:
    return {
        "grid": view.grid,
        "patch_size": view.patch_size,
        "tubelet_size": view.tubelet_size,
        "targets": targets,
        "drop_path": section.drop_path,
        "checkpoint_activations": section.checkpoint_activations,
    }
