"""Predictions as a picture: the clip, what is hidden of it, and the cosine error there before and after training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mvd_offline.analysis.predictions import PredictedClip
from mvd_offline.sheet import CELL, EMPTY, Pixels, Row, assemble_sheet, cell, shown_slices

COLOURS: Final = "magma"


def prediction_sheet(clip: PredictedClip, title: str) -> Image.Image:
    """Columns are slices in time. Rows: front frames, what the student sees, and for each target the error at the
    tokens that are predicted, before training and after.

    Colours are the angle between prediction and target, from black at 0 to white at 90 degrees, where the two have
    nothing in common: small errors, which are those of a trained student, can be told apart so.
    """
    slices = shown_slices(len(clip.frames))
    rows: list[Row] = [
        (["clip", "front frames"], [cell(clip.frames[s], Image.Resampling.LANCZOS) for s in slices]),
        (
            ["what is seen", f"{clip.visible.mean():.0%} of the tokens".replace("%", " %")],
            [cell(seen(clip, s), Image.Resampling.NEAREST) for s in slices],
        ),
    ]
    for target, errors in clip.errors.items():
        for when, error in errors.items():
            lines = [target, when, f"cosine error {np.nanmean(error):.3f}"]
            rows.append((lines, [Image.fromarray(_enlarged(heat(error[s]), (CELL, CELL))) for s in slices]))
    heading = [title, "angle between prediction and target: black 0, white 90 degrees; grey is not predicted"]
    return assemble_sheet(heading, [f"slice {s}" for s in slices], rows)


def seen(clip: PredictedClip, slice_: int) -> Pixels:
    """The front frame with hidden patches in grey."""
    frame, visible = clip.frames[slice_], clip.visible[slice_]
    return np.where(_enlarged(visible, frame.shape[:2])[..., None], frame, np.array(EMPTY, np.uint8))


def heat(error: NDArray[np.float32]) -> Pixels:
    """A pixel for each token (h, w), in colours; grey where nothing is predicted."""
    from matplotlib import colormaps

    angle = np.arccos(np.clip(1.0 - np.nan_to_num(error), 0.0, 1.0)) / (np.pi / 2)
    colours = (colormaps[COLOURS](angle)[..., :3] * 255).round()
    return np.where(np.isnan(error)[..., None], np.array(EMPTY), colours).astype(np.uint8)


def _enlarged(values: NDArray[np.generic], size: Sequence[int]) -> NDArray[np.generic]:
    """A grid (h, w, ...) over so many pixels, without smoothing, whether or not they divide."""
    rows, columns = (np.arange(size[axis]) * values.shape[axis] // size[axis] for axis in (0, 1))
    return values[rows[:, None], columns[None, :]]
