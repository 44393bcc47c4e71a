"""Clips that a student was distilled on, and how far its predictions were from their targets, at first and at last."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from mvd_offline.analysis.prediction_sheet import heat, seen
from mvd_offline.analysis.predictions import PredictedClip, predict
from mvd_offline.distillation.data import DistillData
from mvd_offline.distillation.task import STUDENT_FILE
from mvd_offline.examples.files import Example, Film, write_examples
from mvd_offline.recipe import DistillRecipe
from mvd_offline.sheet import shown_slices
from mvd_offline.targets import TargetSource

CLIPS = 2


def write_distill_examples(
    run: Path, recipe: DistillRecipe, data: DistillData, source: TargetSource, device: torch.device
) -> None:
    """The first clips of epoch 0 with their masks, and the error of each target before training and after."""
    clips = predict(recipe, data, source, run / STUDENT_FILE, device, clips=CLIPS)
    write_examples(
        run,
        "Clips of the first batch under the masks that they had there. Below them, at the tokens that are predicted, "
        "the angle between prediction and target: black is 0 degrees, white 90, where the two have nothing in common; "
        "what is not predicted is light grey.",
        [_example(clip, data) for clip in clips],
    )


def _example(clip: PredictedClip, data: DistillData) -> Example:
    view, _ = data.rows[clip.view_id]
    slices = shown_slices(len(clip.frames))
    films = [Film("clip", "front frames", clip.frames[slices])]
    if not clip.visible.all():
        share = f"{100 * clip.visible.mean():.0f} % of the tokens"
        films.append(Film("what is seen", share, np.stack([seen(clip, slice_) for slice_ in slices])))
    for target, errors in clip.errors.items():
        for when, error in errors.items():
            pixels = np.stack([heat(error[slice_]) for slice_ in slices])
            films.append(Film(f"{target} {when}", f"cosine error {np.nanmean(error):.3f}", pixels))
    return Example(view.video_id, f"view {clip.view_id}", tuple(f"slice {slice_}" for slice_ in slices), tuple(films))
