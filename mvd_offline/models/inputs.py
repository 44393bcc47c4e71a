"""From rendered pixels to a model's input. Normalisation only: geometry belongs to `mvd_offline.video`."""

from __future__ import annotations

import torch
from torch import Tensor

from mvd_offline.errors import UsageError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalize(pixels: Tensor) -> Tensor:
    """Scale to [0, 1] and apply the ImageNet constants.

    Args:
        pixels: uint8 (B, T, H, W, 3), RGB, on any device.

    Returns:
        float32 (B, 3, T, H, W), contiguous, on the same device.
    """
    if pixels.dtype != torch.uint8 or pixels.ndim != 5 or pixels.shape[-1] != 3:
        raise UsageError(f"pixels are uint8 (B, T, H, W, 3), not {pixels.dtype} {tuple(pixels.shape)}")
    mean, std = channel_constants(pixels)
    video = pixels.permute(0, 4, 1, 2, 3).float().div(255.0)
    return ((video - mean) / std).contiguous()


def denormalize(video: Tensor) -> Tensor:
    """The inverse of `normalize`, rounded and cut off at black and white: uint8 (B, T, H, W, 3)."""
    mean, std = channel_constants(video)
    pixels = (video * std + mean).mul(255.0).round().clamp(0.0, 255.0)
    return pixels.to(torch.uint8).permute(0, 2, 3, 4, 1).contiguous()


def channel_constants(like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation as float32 (1, 3, 1, 1, 1) on the device of `like`."""
    # Filled where they are: a copy from here would wait until the device has done all that it was told to.
    mean, std = (
        torch.stack([torch.full((), value, dtype=torch.float32, device=like.device) for value in values])
        for values in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return mean.view(1, 3, 1, 1, 1), std.view(1, 3, 1, 1, 1)


def front_frames(video: Tensor, tubelet_size: int) -> Tensor:
    """The first frame of each tubelet: (B, 3, T, H, W) to (B, 3, T / tubelet_size, H, W). What image teachers see."""
    return video[:, :, ::tubelet_size]
