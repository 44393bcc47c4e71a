"""The picture of a confusion matrix, from two classes to several hundred."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mvd_offline.evaluation.pictures import draw_confusion

WHITE = 250


@pytest.mark.parametrize("classes", [2, 16, 51, 400])
def test_right_answers_are_a_dark_diagonal_and_mistakes_are_seen(classes: int, tmp_path: Path) -> None:
    table = np.zeros((classes, classes + 1), np.int64)
    table[range(classes), range(classes)] = 49
    table[0, classes - 1] = 1
    draw_confusion(table, [f"class ${k}" for k in range(classes)], tmp_path / "c.png")
    pixels = np.asarray(Image.open(tmp_path / "c.png").convert("RGB")).astype(int)
    top, left, side = box_of(pixels)
    cell = side / classes
    assert cell >= 4, "a cell can be seen"

    def colour(row: int, column: int) -> int:
        """Red, which is what blue lacks, near the corner of a cell, away from its number."""
        return int(pixels[int(top + (row + 0.25) * cell), int(left + (column + 0.25) * cell), 0])

    assert colour(classes - 1, classes - 1) < 60
    assert colour(0, 0) < 60
    empty = colour(classes - 1, 0)
    assert colour(0, classes - 1) < empty - 20, "one mistake of fifty shows"


def box_of(pixels: np.ndarray) -> tuple[float, float, float]:
    """Top, left and side of the matrix: the longest dark lines are its frame."""
    dark = (pixels < 80).all(axis=2)
    rows, columns = (np.flatnonzero(dark.sum(axis=axis) > 0.9 * dark.sum(axis=axis).max()) for axis in (1, 0))
    assert rows[-1] - rows[0] == pytest.approx(columns[-1] - columns[0], abs=2)
    return rows[0], columns[0], rows[-1] - rows[0]


def test_unreadable_videos_have_a_column_of_their_own(tmp_path: Path) -> None:
    table = np.array([[3, 0, 0], [0, 3, 0]])
    draw_confusion(table, ["a", "b"], tmp_path / "all.png")
    draw_confusion(table + np.array([[0, 0, 0], [0, 0, 3]]), ["a", "b"], tmp_path / "gone.png")
    sizes = [Image.open(tmp_path / name).size for name in ("all.png", "gone.png")]
    assert sizes[0] != sizes[1]


@pytest.mark.parametrize("classes", [2, 4, 16, 51])
@pytest.mark.parametrize("mistakes", [0, 1])
def test_the_picture_is_as_large_as_what_it_shows(classes: int, mistakes: int, tmp_path: Path) -> None:
    table = np.eye(classes, classes + 1, dtype=np.int64) + mistakes
    draw_confusion(table, [f"name of class {k}" for k in range(classes)], tmp_path / "c.png")
    drawn = (np.asarray(Image.open(tmp_path / "c.png").convert("L")) < WHITE).nonzero()
    with Image.open(tmp_path / "c.png") as picture:
        right, bottom = picture.width - drawn[1].max(), picture.height - drawn[0].max()
    assert 10 < right < 110, "a margin of less than an inch, and nothing is cut off"
    assert 10 < bottom < 110
