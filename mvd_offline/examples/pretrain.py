"""Clips or images of a masked autoencoder: whole, masked, and as the model completes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from mvd_offline.examples.files import Example, Film, write_examples
from mvd_offline.examples.reading import first_samples, frame_ticks, pictured
from mvd_offline.geometry import TokenGrid
from mvd_offline.models.inputs import denormalize, normalize
from mvd_offline.models.pretraining import (
    NORM_PIX_EPS,
    MAEPretrainer,
    VideoMAEPretrainer,
    build_pretrainer,
    mae_targets,
    videomae_targets,
)
from mvd_offline.models.vit import gather_tokens, split_mask
from mvd_offline.recipe import PretrainRecipe
from mvd_offline.training.loop import Task

CLIPS, IMAGES = 2, 8
_GREY = 127


class Completed(NamedTuple):
    """uint8 (B, T, H, W, 3): as given, with what was hidden in grey, and with what the model put in its place."""

    whole: Tensor
    masked: Tensor
    completed: Tensor


def write_pretrain_examples(
    run: Path, weights: Path, recipe: PretrainRecipe, task: Task, name: Callable[[int], str], device: torch.device
) -> None:
    """The first samples of epoch 0 with the masks that they had there.

    Args:
        weights: the teacher as the run saved it: where it is sharded, no process has all of it.
        name: of a row.
    """
    images = recipe.method == "mae"
    rows, batch = first_samples(task, IMAGES if images else CLIPS)
    pretrainer = build_pretrainer(recipe.method, recipe.model, recipe.view, recipe.normalize_targets)
    pretrainer.load_state_dict(load_file(weights))
    found = complete(pretrainer.to(device).eval(), batch["clips"].to(device), batch["mask"].to(device))
    lead = "with the masks that they had there, and what the model put in the place of what it did not see"
    if recipe.normalize_targets:
        lead += "; it predicts normalised patches, which have the mean and deviation of the true ones here"
    if images:
        across = Completed(*(part[:, 0] for part in found))
        example = Example("Images of the first batch", ", ".join(map(name, rows)), (), _films(across))
        write_examples(run, f"Images of the first batch {lead}.", [example])
        return
    shown = pictured(recipe.view.frames, recipe.view.tubelet_size)
    write_examples(
        run,
        f"Clips of the first batch {lead}.",
        [
            Example(name(row), "", frame_ticks(shown), _films(Completed(*(part[place, shown] for part in found))))
            for place, row in enumerate(rows)
        ],
    )


def complete(pretrainer: MAEPretrainer | VideoMAEPretrainer, clips: Tensor, mask: Tensor) -> Completed:
    """What a model makes of masked clips.

    Args:
        clips: uint8 (B, T, H, W, 3), of one frame for MAE.
        mask: bool (B, N), True = masked.
    """
    visible, masked = split_mask(mask)
    video = normalize(clips)
    with torch.inference_mode():
        if isinstance(pretrainer, MAEPretrainer):
            grid = TokenGrid(1, pretrainer.side, pretrainer.side)
            true = mae_targets(video[:, :, 0], pretrainer.patch_size, normalize=False)[:, :, :, None]
            predicted = pretrainer.predict(video[:, :, 0], visible, masked)[..., None]
            patch, tubelet = pretrainer.patch_size, 1
        else:
            encoder = pretrainer.encoder
            grid, patch, tubelet = encoder.grid, encoder.patch_size, encoder.tubelet_size
            true = videomae_targets(video, tubelet, patch, normalize=False).unflatten(2, (-1, 3))
            predicted = pretrainer.predict(video, visible, masked).unflatten(2, (-1, 3))
        patches = filled(true, predicted.float(), masked, normalized=pretrainer.normalize_targets)
        pixels = assembled(patches.flatten(2), grid, tubelet, patch)
        if isinstance(pretrainer, MAEPretrainer):
            completed = denormalize(pixels.permute(0, 4, 1, 2, 3))
        else:
            completed = pixels.mul(255.0).round().clamp(0.0, 255.0).to(torch.uint8)
    hidden = assembled(mask[:, :, None].expand(-1, -1, tubelet * patch * patch * 3), grid, tubelet, patch)
    return Completed(clips.cpu(), clips.masked_fill(hidden, _GREY).cpu(), completed.cpu())


def filled(true: Tensor, predicted: Tensor, masked: Tensor, *, normalized: bool) -> Tensor:
    """Patches (B, N, K, C) with those of `masked` (B, M) as predicted.

    Normalised predictions get the mean and the deviation over K of the true patches: their light and contrast cannot be
    known from them.
    """
    if normalized:
        own = gather_tokens(true.flatten(2), masked).unflatten(2, true.shape[2:])
        deviation = (own.var(dim=2, keepdim=True) + NORM_PIX_EPS).sqrt()
        predicted = predicted * deviation + own.mean(dim=2, keepdim=True)
    rows = torch.arange(len(true), device=true.device)[:, None]
    filled = true.clone()
    filled[rows, masked] = predicted
    return filled


def assembled(patches: Tensor, grid: TokenGrid, tubelet: int, patch: int) -> Tensor:
    """Patches (B, N, tubelet * patch^2 * 3), each in t, y, x, channel order, as (B, T, H, W, 3)."""
    cubes = patches.reshape(len(patches), grid.t, grid.h, grid.w, tubelet, patch, patch, 3)
    cubes = cubes.permute(0, 1, 4, 2, 5, 3, 6, 7)
    return cubes.reshape(len(patches), grid.t * tubelet, grid.h * patch, grid.w * patch, 3)


def _films(found: Completed) -> tuple[Film, ...]:
    names = ("as it is", "what it saw", "completed")
    return tuple(Film(name, pixels=part.numpy()) for name, part in zip(names, found, strict=True))
