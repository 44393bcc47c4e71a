"""How much of what is hidden a model predicts, so that one which learnt nothing is seen at once.

The measure is 1 - squared error / variance over the hidden tokens of the test clips, where the variance is about the
mean of each token's place: 1 is a perfect prediction, 0 what places alone tell, as of a model that never looked at the
clip.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from mvd_offline.geometry import TokenGrid
from mvd_offline.losses import TARGET_NORM_EPS
from mvd_offline.models.inputs import normalize
from mvd_offline.models.loading import load_student
from mvd_offline.models.pretraining import build_pretrainer, mae_targets, videomae_targets
from mvd_offline.models.student import PerTokenStudent
from mvd_offline.models.teachers import load_teacher
from mvd_offline.randomness import KeyedStream
from mvd_offline.recipe import DistillMaskSection, DistillRecipe, MaskSection, PretrainRecipe
from mvd_offline.video.masking import draw_mask


@torch.no_grad()
def learnt_by_teacher(recipe: PretrainRecipe, weights: Path, pixels: NDArray[np.uint8]) -> float:
    """Of the pixels that a masked autoencoder is shown nothing of.

    Args:
        pixels: clips, uint8 (rows, T, S, S, 3); MAE sees the first frame of each.
    """
    view = recipe.view
    model = build_pretrainer(recipe.method, recipe.model, view, recipe.normalize_targets)
    model.load_state_dict(load_file(weights))
    video = normalize(torch.from_numpy(pixels))
    if recipe.method == "mae":
        inputs, grid = video[:, :, 0], TokenGrid(1, view.grid.h, view.grid.w)
        targets = mae_targets(inputs, view.patch_size, recipe.normalize_targets)
    else:
        inputs, grid = video, view.grid
        targets = videomae_targets(inputs, view.tubelet_size, view.patch_size, recipe.normalize_targets)
    masks = _masks(recipe.mask, grid, len(pixels))
    return 1.0 - float(model.eval()(inputs, masks)) / float((targets - targets.mean(dim=0))[masks].square().mean())


@torch.no_grad()
def learnt_by_student(recipe: DistillRecipe, weights: Path, pixels: NDArray[np.uint8]) -> dict[str, float]:
    """Of each teacher's features, and of pixels, at the tokens that the student is shown nothing of; all of a per-token
    student's. A momentum teacher is not kept, so that there is nothing to compare with."""
    student, video = load_student(weights), normalize(torch.from_numpy(pixels))
    targets = _targets(recipe, video)
    if isinstance(student, PerTokenStudent):
        predictions: Mapping[str, Tensor] = student(video)
        return {name: share_predicted(predictions[name], target, target) for name, target in targets.items()}
    masks = _masks(recipe.mask, recipe.view.grid, len(pixels))
    predictions = student(video, masks)
    return {
        name: share_predicted(predictions[name].flatten(0, 1), all_[masks], all_, masks)
        for name, all_ in targets.items()
    }


def _targets(recipe: DistillRecipe, video: Tensor) -> dict[str, Tensor]:
    """At all tokens: (rows, N, D), as the loss has them."""
    found: dict[str, Tensor] = {}
    for name in recipe.active_teachers:
        features = load_teacher(recipe.teachers[name].weights, name)(video).float()
        normalized = F.layer_norm(features, features.shape[-1:], eps=TARGET_NORM_EPS)
        found[name] = normalized if recipe.loss.normalize_targets else features
    if recipe.pixels:
        view = recipe.view
        found["pixels"] = videomae_targets(video, view.tubelet_size, view.patch_size, recipe.pixels.normalize_targets)
    return found


def share_predicted(prediction: Tensor, wanted: Tensor, targets: Tensor, masks: Tensor | None = None) -> float:
    """1 - squared error / variance about the mean of each place.

    Args:
        prediction, wanted: of the hidden tokens, of the same shape.
        targets: (rows, N, D) of all tokens.
        masks: bool (rows, N), which of them are hidden; all when None.
    """
    deviation = targets - targets.mean(dim=0)
    error = (prediction.float() - wanted).square().mean()
    return 1.0 - float(error) / float((deviation if masks is None else deviation[masks]).square().mean())


def _masks(section: MaskSection | DistillMaskSection, grid: TokenGrid, rows: int) -> Tensor:
    """bool (rows, N), True = masked."""
    drawn = [draw_mask(section.kind, grid, section.ratio, KeyedStream("learnt", row)) for row in range(rows)]
    return torch.from_numpy(np.stack(drawn))
