"""Teachers from scratch by masked pixel regression: MAE on single frames, VideoMAE on clips.

State dicts have the official MAE and VideoMAE names, so `load_teacher` takes what these models save.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mvd_offline.errors import UsageError
from mvd_offline.geometry import TokenGrid
from mvd_offline.models.image_encoder import ImageEncoder, image_position_table, init_for_mae
from mvd_offline.models.inputs import channel_constants
from mvd_offline.models.positions import position_table
from mvd_offline.models.vit import (
    Arch,
    Decoder,
    LayerNorm,
    VideoEncoder,
    decoder_arch,
    encoder_arch,
    gather_tokens,
    init_for_pretraining,
    init_mask_tokens,
    make_blocks,
    patches_of,
    run_blocks,
    split_mask,
    with_mask_tokens,
)
from mvd_offline.recipe import PretrainModelSection, ViewSection

NORM_PIX_EPS = 1e-6


def mae_targets(images: Tensor, patch_size: int, normalize: bool = True) -> Tensor:
    """MAE's regression targets.

    Args:
        images: (B, 3, S, S), ImageNet-normalised.
        normalize: (x - mean) / sqrt(var + 1e-6) of each patch, jointly over pixels and channels, unbiased variance.

    Returns:
        float32 (B, N, patch_size^2 * 3), each patch in y, x, channel order.
    """
    patches = patches_of(images.float()[:, :, None], 1, patch_size).squeeze(3)
    target = patches.permute(0, 1, 3, 4, 2).flatten(2)
    if normalize:
        mean, variance = target.mean(dim=-1, keepdim=True), target.var(dim=-1, keepdim=True)
        target = (target - mean) / (variance + NORM_PIX_EPS).sqrt()
    return target


def videomae_targets(
    video: Tensor, tubelet_size: int, patch_size: int, normalize: bool = True, index: Tensor | None = None
) -> Tensor:
    """VideoMAE's regression targets, from pixels scaled back to [0, 1].

    Args:
        video: (B, 3, T, H, W), ImageNet-normalised.
        normalize: (x - mean) / (std + 1e-6) of each cube and channel over its positions, unbiased std.
        index: int64 (B, M), the tokens that are wanted; all N when None.

    Returns:
        float32 (B, N, tubelet_size * patch_size^2 * 3), or (B, M, ...); each cube in t, y, x, channel order.
    """
    mean, std = channel_constants(video)
    cubes = patches_of(video.float() * std + mean, tubelet_size, patch_size, index)
    target = cubes.permute(0, 1, 3, 4, 5, 2).flatten(2, 4)
    if normalize:
        deviation = target.var(dim=2, keepdim=True).sqrt() + NORM_PIX_EPS
        target = (target - target.mean(dim=2, keepdim=True)) / deviation
    return target.flatten(2)


class MAEPretrainer(ImageEncoder):
    """Masked autoencoder on images: encode what is visible, predict the pixels of what is masked."""

    decoder_pos_embed: Tensor

    def __init__(
        self,
        arch: Arch,
        *,
        image_size: int,
        patch_size: int,
        decoder: Arch,
        normalize_targets: bool = True,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__(arch, image_size=image_size, patch_size=patch_size, drop_path=drop_path, save_positions=True)
        self.decoder_arch, self.normalize_targets = decoder, normalize_targets
        self.norm = LayerNorm(arch.width)
        self.decoder_embed = nn.Linear(arch.width, decoder.width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder.width))
        self.register_buffer("decoder_pos_embed", image_position_table(decoder.width, self.side, self.side).clone())
        self.decoder_blocks = make_blocks(decoder, "fused")
        self.decoder_norm = LayerNorm(decoder.width)
        self.decoder_pred = nn.Linear(decoder.width, patch_size**2 * 3)
        init_for_pretraining(self)
        init_for_mae(self)

    def forward(self, images: Tensor, mask: Tensor, masked_tokens: int | None = None) -> Tensor:
        """Mean squared error over masked patches.

        Args:
            images: (B, 3, S, S), normalised.
            mask: bool (B, N), True = masked, the same number in each row.
            masked_tokens: that number, to keep the device from being waited for.

        Returns:
            float32 scalar.
        """
        visible, masked = split_mask(mask, masked_tokens)
        prediction = self.predict(images, visible, masked)
        target = mae_targets(images, self.patch_size, self.normalize_targets)
        return F.mse_loss(prediction.float(), gather_tokens(target, masked))

    def predict(self, images: Tensor, visible: Tensor, masked: Tensor) -> Tensor:
        """What stands for `mae_targets` at the tokens of `masked` (B, M): (B, M, patch_size^2 * 3)."""
        return self._decode(self.norm(self.encode_tokens(images, visible)), visible, masked)

    def _decode(self, encoded: Tensor, visible: Tensor, masked: Tensor) -> Tensor:
        """(B, 1 + V, D) to pixels of the masked patches (B, M, p * p * 3); attention does not mind the token order."""
        x = self.decoder_embed(encoded)
        cls = x[:, :1] + self.decoder_pos_embed[:, :1]
        patches = with_mask_tokens(x[:, 1:], self.mask_token, self.decoder_pos_embed[:, 1:], visible, masked)
        x = run_blocks(self.decoder_blocks, torch.cat([cls, patches], dim=1))
        return self.decoder_pred(self.decoder_norm(x[:, -masked.shape[1] :]))

    def config(self) -> dict[str, Any]:
        """Sizes, for the metadata of a saved file."""
        return {
            "arch": asdict(self.arch),
            "decoder": asdict(self.decoder_arch),
            "image_size": self.image_size,
            "patch_size": self.patch_size,
            "positions": None,
        }


class NormedVideoEncoder(VideoEncoder):
    """The encoder with the final norm that its decoder expects."""

    def __init__(self, arch: Arch, **sizes: Any) -> None:
        super().__init__(arch, **sizes)
        self.norm = LayerNorm(arch.width)

    def forward(self, video: Tensor, index: Tensor) -> Tensor:
        """Tokens of `index` after the norm: (B, V, D)."""
        return self.norm(self.encode_tokens(video, index))


class VideoMAEPretrainer(nn.Module):
    """Masked autoencoder on clips; no class token, one-dimensional positions in encoder and decoder."""

    decoder_table: Tensor

    def __init__(
        self,
        arch: Arch,
        *,
        grid: TokenGrid,
        patch_size: int,
        tubelet_size: int,
        decoder: Arch,
        normalize_targets: bool = True,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.arch, self.decoder_arch, self.normalize_targets = arch, decoder, normalize_targets
        self.encoder = NormedVideoEncoder(
            arch,
            grid=grid,
            patch_size=patch_size,
            tubelet_size=tubelet_size,
            positions="interleaved_1d",
            qkv_bias="split",
            drop_path=drop_path,
        )
        self.encoder_to_decoder = nn.Linear(arch.width, decoder.width, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder.width))
        self.decoder = Decoder(decoder, tubelet_size * patch_size**2 * 3)
        table = position_table("interleaved_1d", decoder.width, grid).clone()
        self.register_buffer("decoder_table", table, persistent=False)
        init_for_pretraining(self)
        init_mask_tokens([self.mask_token])

    def forward(self, video: Tensor, mask: Tensor, masked_tokens: int | None = None) -> Tensor:
        """Mean squared error over masked cubes.

        Args:
            video: (B, 3, T, H, W), normalised.
            mask: bool (B, N) in t, h, w order, True = masked, the same number in each row.
            masked_tokens: that number, to keep the device from being waited for.

        Returns:
            float32 scalar.
        """
        visible, masked = split_mask(mask, masked_tokens)
        prediction = self.predict(video, visible, masked)
        target = videomae_targets(video, self.encoder.tubelet_size, self.encoder.patch_size, self.normalize_targets)
        return F.mse_loss(prediction.float(), gather_tokens(target, masked))

    def predict(self, video: Tensor, visible: Tensor, masked: Tensor) -> Tensor:
        """What stands for `videomae_targets` at the tokens of `masked` (B, M): (B, M, tubelet * patch_size^2 * 3)."""
        x = self.encoder_to_decoder(self.encoder(video, visible))
        x = with_mask_tokens(x, self.mask_token, self.decoder_table, visible, masked)
        return self.decoder(x, masked.shape[1])

    def config(self) -> dict[str, Any]:
        """Sizes, for the metadata of a saved file."""
        return {
            "arch": asdict(self.arch),
            "decoder": asdict(self.decoder_arch),
            "image_size": self.encoder.image_size,
            "frames": self.encoder.frames,
            "patch_size": self.encoder.patch_size,
            "tubelet_size": self.encoder.tubelet_size,
            "positions": "interleaved_1d",
        }


def build_pretrainer(
    method: Literal["mae", "videomae"],
    section: PretrainModelSection,
    view: ViewSection,
    normalize_targets: bool = True,
) -> MAEPretrainer | VideoMAEPretrainer:
    """The pretraining model of a recipe, freshly initialised from torch's global generator."""
    arch = encoder_arch(section)
    decoder = decoder_arch(section.decoder, arch)
    if method == "mae":
        return MAEPretrainer(
            arch,
            image_size=view.image_size,
            patch_size=view.patch_size,
            decoder=decoder,
            normalize_targets=normalize_targets,
            drop_path=section.drop_path,
        )
    if method == "videomae":
        return VideoMAEPretrainer(
            arch,
            grid=view.grid,
            patch_size=view.patch_size,
            tubelet_size=view.tubelet_size,
            decoder=decoder,
            normalize_targets=normalize_targets,
            drop_path=section.drop_path,
        )
    raise UsageError(f"unknown pretraining method {method!r}; known: mae, videomae")
