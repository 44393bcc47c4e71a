"""The fine-tuned model: encoder, mean over all tokens, LayerNorm, dropout, linear head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from mvd_offline.geometry import TokenGrid
from mvd_offline.models.positions import Positions
from mvd_offline.models.vit import Arch, LayerNorm, VideoEncoder, encoder_arch, init_for_finetuning
from mvd_offline.recipe import ClassifierSection, ClipSection


class Classifier(VideoEncoder):
    """(B, 3, T, H, W) to (B, classes). State-dict names are the official ones; positions are not stored.

    Attributes:
        positions: `sincos_3d` for MVD students and from scratch, `interleaved_1d` for VideoMAE weights, whose
            encoder was trained with that table (the released MVD fine-tuning code silently swaps it).
    """

    def __init__(
        self,
        arch: Arch,
        *,
        grid: TokenGrid,
        classes: int,
        patch_size: int = 16,
        tubelet_size: int = 2,
        positions: Positions = "sincos_3d",
        drop_path: float = 0.0,
        head_dropout: float = 0.0,
        head_init_scale: float = 0.001,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__(
            arch,
            grid=grid,
            patch_size=patch_size,
            tubelet_size=tubelet_size,
            positions=positions,
            qkv_bias="split",
            drop_path=drop_path,
            checkpoint_activations=checkpoint_activations,
        )
        self.classes = classes
        self.fc_norm = LayerNorm(arch.width)
        self.head_dropout = nn.Dropout(head_dropout)
        self.head = nn.Linear(arch.width, classes)
        init_for_finetuning(self)
        with torch.no_grad():
            self.head.weight.mul_(head_init_scale)
            self.head.bias.mul_(head_init_scale)

    @property
    def drop_path_sites(self) -> int:
        """Residual branches: the width of `drop_noise`."""
        return 2 * self.arch.depth

    def features(self, video: Tensor, drop_noise: Tensor | None = None) -> Tensor:
        """Pooled and normalised features before the head: (B, D). There is no norm between blocks and mean."""
        return self.fc_norm(self.encode_tokens(video, drop_noise=drop_noise).mean(dim=1))

    def forward(self, video: Tensor, drop_noise: Tensor | None = None, dropout_noise: Tensor | None = None) -> Tensor:
        """Logits (B, classes).

        Args:
            drop_noise: (B, drop_path_sites), uniform in [0, 1): which residual branches are dropped; drawn here when
                None.
            dropout_noise: (B, D), uniform in [0, 1): which features are dropped before the head; drawn here when None.
        """
        features = self.features(video, drop_noise)
        rate = self.head_dropout.p
        if self.training and dropout_noise is not None:
            features = features * (dropout_noise >= rate) / (1.0 - rate)
        else:
            features = self.head_dropout(features)
        return self.head(features)

    def config(self) -> dict[str, Any]:
        """What `from_config` needs to build this model again; all sizes, no weights."""
        return {
            "arch": asdict(self.arch),
            "grid": asdict(self.grid),
            "patch_size": self.patch_size,
            "tubelet_size": self.tubelet_size,
            "classes": self.classes,
            "positions": self.positions,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Classifier:
        """The inverse of `config`, with fresh weights; drop path and dropout are a run's choice, not the model's."""
        return cls(
            Arch(**config["arch"]),
            grid=TokenGrid(**config["grid"]),
            classes=config["classes"],
            patch_size=config["patch_size"],
            tubelet_size=config["tubelet_size"],
            positions=config["positions"],
        )


def build_classifier(section: ClassifierSection, clip: ClipSection, positions: Positions = "sincos_3d") -> Classifier:
    """The classifier of a recipe, freshly initialised from torch's global generator."""
    return Classifier(
        encoder_arch(section),
        grid=clip.grid,
        classes=section.classes,
        patch_size=clip.patch_size,
        tubelet_size=clip.tubelet_size,
        positions=positions,
        drop_path=section.drop_path,
        head_dropout=section.head_dropout,
        head_init_scale=section.head_init_scale,
        checkpoint_activations=section.checkpoint_activations,
    )
