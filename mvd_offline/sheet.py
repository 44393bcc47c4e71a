"""A picture of labelled rows of small pictures: how views, features and predictions are shown side by side."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

CELL: Final = 176
GAP: Final = 6
MARGIN: Final = 14
LABEL: Final = 168
MOST_SLICES: Final = 8

BACKGROUND: Final = (250, 250, 250)
INK: Final = (24, 24, 27)
FAINT: Final = (113, 113, 122)
EMPTY: Final = (228, 228, 231)

Pixels: TypeAlias = NDArray[np.uint8]
Row: TypeAlias = tuple[list[str], Sequence[Image.Image | None]]
"""A row of the picture: the lines beside it, and its cells; None is an empty cell."""


def shown_slices(slices: int) -> list[int]:
    """Which slices of a token grid a picture shows: all, or `MOST_SLICES` that are evenly spread."""
    chosen: list[int] = np.unique(np.linspace(0, slices - 1, min(slices, MOST_SLICES)).round().astype(int)).tolist()
    return chosen


def wrapped(text: str) -> list[str]:
    """Lines that fit beside a row; the first six of them."""
    return textwrap.wrap(text, 26)[:6]


def cell(pixels: Pixels, resampling: Image.Resampling) -> Image.Image:
    """A square picture of (h, w, 3) pixels."""
    return Image.fromarray(pixels).resize((CELL, CELL), resampling)


def assemble_sheet(heading: Sequence[str], captions: Sequence[str], rows: Sequence[Row]) -> Image.Image:
    """The whole picture.

    Args:
        heading: two lines: the title, and a smaller one.
        captions: above each column of cells; none at all when empty.
    """
    columns = max(len(cells) for _, cells in rows)
    heights = [max((cell.height for cell in cells if isinstance(cell, Image.Image)), default=CELL) for _, cells in rows]
    top = MARGIN + 24 + 20 + GAP
    width = 2 * MARGIN + LABEL + columns * (CELL + GAP) - GAP
    height = top + (18 if captions else 0) + sum(heights) + GAP * len(rows) + MARGIN
    sheet = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN - 4), heading[0], INK, ImageFont.load_default(18))
    draw.text((MARGIN, MARGIN + 22), heading[1], FAINT, ImageFont.load_default(12))
    left, y = MARGIN + LABEL, top
    for position, caption in enumerate(captions):
        draw.text((left + position * (CELL + GAP), y), caption, FAINT, ImageFont.load_default(12))
    y += 18 if captions else 0
    for (label, cells), row_height in zip(rows, heights, strict=True):
        for line, text in enumerate(label):
            font = ImageFont.load_default(14 if line == 0 else 12)
            draw.text((MARGIN, y + 20 * line - 2), text, INK if line == 0 else FAINT, font)
        for position, cell in enumerate(cells):
            corner = (left + position * (CELL + GAP), y)
            if isinstance(cell, Image.Image):
                sheet.paste(cell, corner)
            else:
                draw.rectangle([*corner, corner[0] + CELL - 1, corner[1] + row_height - 1], fill=EMPTY)
        y += row_height + GAP
    return sheet
