"""Masked feature regression: how far predictions are from a teacher's features at the masked tokens."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mvd_offline.errors import UsageError

TARGET_NORM_EPS = 1e-6


def masked_feature_loss(
    prediction: Tensor,
    target: Tensor,
    kind: Literal["smooth_l1", "l1", "l2"] = "smooth_l1",
    beta: float = 1.0,
    normalize_targets: bool = False,
) -> Tensor:
    """Mean over batch, masked tokens and channels, in float32 whatever the inputs' dtypes and autocast.

    Args:
        prediction: (B, M, D), the student's.
        target: (B, M, D), a teacher's features at the same tokens.
        kind: `smooth_l1` (the official loss), `l1` or `l2` (mean squared error).
        beta: where SmoothL1 turns from quadratic to linear.
        normalize_targets: LayerNorm without affine parameters, eps 1e-6, on the targets only.

    Returns:
        float32 scalar.
    """
    if prediction.shape != target.shape:
        raise UsageError(
            f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} must have the same shape (B, M, D)"
        )
    with torch.autocast(prediction.device.type, enabled=False):
        prediction, target = prediction.float(), target.float()
        if normalize_targets:
            target = F.layer_norm(target, target.shape[-1:], eps=TARGET_NORM_EPS)
        if kind == "smooth_l1":
            return F.smooth_l1_loss(prediction, target, beta=beta)
        if kind == "l1":
            return F.l1_loss(prediction, target)
        if kind == "l2":
            return F.mse_loss(prediction, target)
    raise UsageError(f"unknown loss {kind!r}; known: smooth_l1, l1, l2")
