"""Masked feature regression: how far predictions are from a teacher's features at the masked tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from mvd_offline.errors import UsageError
from mvd_offline.recipe import DistillRecipe

TARGET_NORM_EPS = 1e-6

LossKind: TypeAlias = Literal["smooth_l1", "l1", "l2"]


@dataclass(frozen=True)
class Objective:
    """One term of a student's loss: `weight` times `masked_feature_loss`."""

    weight: float
    kind: LossKind = "smooth_l1"
    beta: float = 1.0
    normalize_targets: bool = False

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The distance, not weighted: float32 scalar."""
        return masked_feature_loss(prediction, target, self.kind, self.beta, self.normalize_targets)


def objectives_of(recipe: DistillRecipe) -> dict[str, Objective]:
    """What a recipe's student predicts (`image`, `video`, `pixels`, `momentum`) to its term of the loss, in that order.

    Pixels are regressed as by VideoMAE, with the mean squared error; their normalisation is the target's. Features of
    a momentum teacher are regressed like those of the frozen ones, but normalised by its own choice.
    """
    loss = recipe.loss
    found: dict[str, Objective] = {
        name: Objective(loss.weights[name], loss.kind, loss.beta, loss.normalize_targets)
        for name in recipe.active_teachers
    }
    if recipe.pixels:
        found["pixels"] = Objective(recipe.pixels.weight, "l2")
    if recipe.momentum:
        found["momentum"] = Objective(recipe.momentum.weight, loss.kind, loss.beta, recipe.momentum.normalize_targets)
    return found


def masked_feature_loss(
    prediction: Tensor,
    target: Tensor,
    kind: LossKind = "smooth_l1",
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
