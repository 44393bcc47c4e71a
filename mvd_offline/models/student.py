"""MVD's student: an encoder that sees only visible tokens, and one light decoder for each teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from mvd_offline.errors import UsageError
from mvd_offline.geometry import TokenGrid
from mvd_offline.models.positions import position_table
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
from mvd_offline.recipe import StudentSection, ViewSection

SHORT_NAMES: Mapping[str, str] = {"image": "img", "video": "vid"}
"""Teacher name to the suffix that official parameter names use."""


class Student(VideoEncoder):
    """Predicts each teacher's features at the masked tokens (paper section 3).

    The state dict has exactly the official MVD names. `pos_embed`, `pos_embed_img` and `pos_embed_vid` are buffers:
    stored, never trained. Mask tokens are parameters of shape (1, 1, D).
    """

    def __init__(
        self,
        arch: Arch,
        *,
        grid: TokenGrid,
        patch_size: int = 16,
        tubelet_size: int = 2,
        targets: Mapping[str, int],
        decoder: Arch,
        drop_path: float = 0.0,
        checkpoint_activations: bool = False,
    ) -> None:
        """`targets` maps `image` and/or `video` to the teacher's width; only those decoders are built."""
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
        unknown = set(targets) - set(SHORT_NAMES)
        if unknown:
            raise UsageError(f"unknown targets {sorted(unknown)}; allowed: image, video")
        self.targets = {name: targets[name] for name in SHORT_NAMES if name in targets}
        self.decoder_arch, self.drop_path = decoder, drop_path
        self.norm = LayerNorm(arch.width)
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

    def encode(self, video: Tensor, mask: Tensor | None = None) -> Tensor:
        """Visible tokens after the final norm: (B, N_visible, D); all N tokens without a mask."""
        index = None if mask is None else split_mask(mask)[0]
        return self.norm(self.encode_tokens(video, index))

    @property
    def drop_path_sites(self) -> int:
        """Residual branches of encoder and decoders: the width of `drop_noise`."""
        return 2 * (self.arch.depth + len(self.targets) * self.decoder_arch.depth)

    def forward(
        self, video: Tensor, mask: Tensor, masked_tokens: int | None = None, drop_noise: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Predict the teachers' features of the masked tokens.

        Args:
            video: (B, 3, T, H, W), normalised.
            mask: bool (B, N) in t, h, w order, True = masked, the same number M in each row.
            masked_tokens: M. Pass it in a training loop: otherwise it is read from the mask, which waits for the
                device and breaks a compiled graph.
            drop_noise: (B, drop_path_sites), uniform in [0, 1), for drop path; encoder first, then each decoder.
                Drawn from the global generator when None.

        Returns:
            teacher name to (B, M, D_teacher), masked tokens in raster order.
        """
        if mask.shape != (video.shape[0], self.grid.num_tokens):
            raise UsageError(
                f"the mask has shape {tuple(mask.shape)}; this student's clips have a token grid of {self.grid}: "
                f"(B, {self.grid.num_tokens}) with B = {video.shape[0]} is needed"
            )
        visible, masked = split_mask(mask, masked_tokens)
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
                masked,
            )
            predictions[name] = self.get_submodule(f"decoder_{short}")(x, masked.shape[1], decoder_noise)
        return predictions

    def config(self) -> dict[str, Any]:
        """What `from_config` needs to build this model again; all sizes, no weights."""
        return {
            "arch": asdict(self.arch),
            "grid": asdict(self.grid),
            "patch_size": self.patch_size,
            "tubelet_size": self.tubelet_size,
            "targets": dict(self.targets),
            "decoder": asdict(self.decoder_arch),
            "drop_path": self.drop_path,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Student:
        """The inverse of `config`, with fresh weights."""
        return cls(
            Arch(**config["arch"]),
            grid=TokenGrid(**config["grid"]),
            patch_size=config["patch_size"],
            tubelet_size=config["tubelet_size"],
            targets=config["targets"],
            decoder=Arch(**config["decoder"]),
            drop_path=config["drop_path"],
        )

    def _check_other_grid(self, grid: TokenGrid, video: Tensor) -> None:
        raise UsageError(
            f"this student takes clips of {self.frames} frames of {self.image_size} x {self.image_size} pixels "
            f"(token grid {self.grid}), not {tuple(video.shape)} (token grid {grid})"
        )


def build_student(section: StudentSection, view: ViewSection, targets: Mapping[str, int]) -> Student:
    """The student of a recipe, freshly initialised from torch's global generator.

    Args:
        targets: name of each active teacher to its width.
    """
    arch = encoder_arch(section)
    return Student(
        arch,
        grid=view.grid,
        patch_size=view.patch_size,
        tubelet_size=view.tubelet_size,
        targets=targets,
        decoder=decoder_arch(section.decoder, arch),
        drop_path=section.drop_path,
        checkpoint_activations=section.checkpoint_activations,
    )
