"""The picture of predictions: which patch is shown where, and which colour an error has."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mvd_offline.analysis.prediction_sheet import prediction_sheet
from mvd_offline.analysis.predictions import AFTER, BEFORE, PredictedClip
from mvd_offline.sheet import CELL, EMPTY, GAP, LABEL, MARGIN


@pytest.fixture
def clip() -> PredictedClip:
    """Two slices of 2 x 2 tokens: the upper left is seen, the lower right is a perfect prediction after training."""
    visible = np.zeros((2, 2, 2), bool)
    visible[:, 0, 0] = True
    after = np.full((2, 2, 2), 1.0, np.float32)
    after[visible], after[:, 1, 1] = np.nan, 0.0
    before = np.where(visible, np.nan, np.float32(1.0)).astype(np.float32)
    frames = np.full((2, 32, 32, 3), 200, np.uint8)
    return PredictedClip(7, frames, visible, {"image": {BEFORE: before, AFTER: after}})


def quarter(sheet: Image.Image, row: int, token: tuple[int, int]) -> tuple[int, ...]:
    """Colour in the middle of a token of the first cell of a row, counted from the last."""
    top = sheet.height - MARGIN - row * (CELL + GAP)
    left = MARGIN + LABEL
    return sheet.getpixel((left + CELL * (2 * token[1] + 1) // 4, top + CELL * (2 * token[0] + 1) // 4))


def test_hidden_patches_are_grey_and_errors_are_coloured(clip: PredictedClip) -> None:
    sheet = prediction_sheet(clip, "title")

    assert quarter(sheet, 3, (0, 0)) == (200, 200, 200)
    assert quarter(sheet, 3, (1, 1)) == EMPTY
    assert quarter(sheet, 1, (0, 0)) == EMPTY
    assert max(quarter(sheet, 1, (1, 1))) < 10
    assert min(quarter(sheet, 1, (0, 1))) > 150
    assert min(quarter(sheet, 2, (1, 1))) > 150


def test_means_are_over_what_is_predicted(clip: PredictedClip) -> None:
    assert clip.means() == {"image": {BEFORE: 1.0, AFTER: pytest.approx(2 / 3)}}
