"""The film of a video and its features as MP4, GIF, WebP or, its first clip alone, as one PNG."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mvd_offline.analysis.attention import Place
from mvd_offline.analysis.features import Film, ModelFilm
from mvd_offline.errors import UsageError
from mvd_offline.geometry import TokenGrid
from mvd_offline.shards.atomic import publish_bytes
from mvd_offline.sheet import BACKGROUND, CELL, FAINT, GAP, INK, MARGIN, Row, assemble_sheet, cell, shown_slices
from mvd_offline.video.synthetic import encode

PANEL: Final = 224
"""Side of a picture in a film, pixels."""
HEAD: Final = 26
FORMATS: Final = (".mp4", ".gif", ".webp", ".png")
MARK: Final = (255, 204, 0)
ATTENTION_COLOURS: Final = "inferno"


def write_film(film: Film, out: Path) -> Path:
    """Write the film in the format that the name's ending says.

    Raises:
        UsageError: another ending.
    """
    if out.suffix not in FORMATS:
        raise UsageError(f"{out}: a film is written as {', '.join(FORMATS[:-1])}, or as one picture in {FORMATS[-1]}.")
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".png":
        _sheet(film).save(out)
    elif out.suffix == ".mp4":
        encode(out, np.stack([np.asarray(picture) for picture in pictures(film)]), round(film.frames_per_second) or 1)
    else:
        _save_animated(film, out)
    return out


def pictures(film: Film) -> Iterator[Image.Image]:
    """One for each frame of the clips: the clip, and beside it each model's colours; below, a row for each token."""
    for clip, frames in enumerate(film.frames):
        for number, frame in enumerate(frames):
            rows = [[_panel(frame), *(_panel(_colours(film, model, clip, number)) for model in film.models)]]
            for which, place in enumerate(film.tokens):
                marked = _marked(film, place, frame, number)
                rows.append([marked, *(_attention(film, model, which, clip, number) for model in film.models)])
            yield _together(film, rows, film.frame_numbers[clip][number])


def _save_animated(film: Film, out: Path) -> None:
    first, *rest = pictures(film)
    options: dict[str, Any] = {"quality": 85} if out.suffix == ".webp" else {"optimize": False}
    with io.BytesIO() as sink:
        first.save(
            sink,
            out.suffix[1:].upper(),
            save_all=True,
            append_images=rest,
            duration=round(1000 / film.frames_per_second),
            loop=0,
            **options,
        )
        publish_bytes(out, sink.getvalue())


# ---- panels ------------------------------------------------------------------------------------------------------


def _slice(film: Film, model: ModelFilm, number: int) -> int:
    """Of a model's tokens, at a frame of the clip."""
    return number * model.grid.t // film.frames.shape[1]


def _colours(film: Film, model: ModelFilm, clip: int, number: int) -> NDArray[np.uint8]:
    colours: NDArray[np.uint8] = model.colours[clip * model.grid.t + _slice(film, model, number)]
    return colours


def _panel(pixels: NDArray[np.uint8]) -> Image.Image:
    """Frames are smoothed, tokens are not."""
    smooth = pixels.shape[0] > PANEL // 4
    return Image.fromarray(pixels).resize(
        (PANEL, PANEL), Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
    )


def _marked(film: Film, place: Place, frame: NDArray[np.uint8], number: int) -> Image.Image:
    """The frame, with a box on the token while its slice is shown."""
    picture, first = _panel(frame), film.models[0]
    return _boxed(picture, place, first.grid) if _slice(film, first, number) == place.slice else picture


def _boxed(picture: Image.Image, place: Place, grid: TokenGrid) -> Image.Image:
    box = [place.column / grid.w, place.row / grid.h, (place.column + 1) / grid.w, (place.row + 1) / grid.h]
    ImageDraw.Draw(picture).rectangle([round(side * (PANEL - 1)) for side in box], outline=MARK, width=2)
    return picture


def _attention(film: Film, model: ModelFilm, which: int, clip: int, number: int) -> Image.Image:
    """Colours over the grey frame, brightest where the token looks most within its clip."""
    maps = model.attention[which][clip]
    weights = maps[_slice(film, model, number)] / max(float(maps.max()), 1e-12)
    return _heated(film.frames[clip, number], weights)


def _heated(frame: NDArray[np.uint8], weights: NDArray[np.float32]) -> Image.Image:
    from matplotlib import colormaps

    colours = (colormaps[ATTENTION_COLOURS](weights)[..., :3] * 255).round().astype(np.uint8)
    heat = Image.fromarray(colours).resize((PANEL, PANEL), Image.Resampling.NEAREST)
    grey = _panel(frame).convert("L").convert("RGB")
    return Image.blend(grey, heat, 0.65)


def _together(film: Film, rows: list[list[Image.Image]], frame_number: int) -> Image.Image:
    columns = len(rows[0])
    width = 2 * MARGIN + columns * (PANEL + GAP) - GAP
    height = MARGIN + HEAD + len(rows) * (PANEL + GAP) + HEAD
    # H.264 halves the chroma planes.
    picture = Image.new("RGB", (width + width % 2, height + height % 2), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    titles = [film.video, *(model.name for model in film.models)]
    for column, title in enumerate(titles):
        draw.text((MARGIN + column * (PANEL + GAP), MARGIN), title[:30], INK, ImageFont.load_default(14))
    for row, panels in enumerate(rows):
        for column, panel in enumerate(panels):
            picture.paste(panel, (MARGIN + column * (PANEL + GAP), MARGIN + HEAD + row * (PANEL + GAP)))
    below = f"frame {frame_number}   principal components of each model's features"
    if film.tokens:
        below += "; attention of the marked tokens, last block, mean over heads"
    draw.text((MARGIN, height - HEAD + 2), below, FAINT, ImageFont.load_default(12))
    return picture


# ---- one picture -------------------------------------------------------------------------------------------------


def _sheet(film: Film) -> Image.Image:
    """The first clip: a column for each slice of the first model."""
    grid, count = film.models[0].grid, film.frames.shape[1]
    slices = shown_slices(grid.t)
    numbers = [slice_ * count // grid.t for slice_ in slices]
    rows: list[Row] = [([film.video], [cell(film.frames[0, n], Image.Resampling.LANCZOS) for n in numbers])]
    for model in film.models:
        shares = " ".join(f"{100 * share:.0f} %" for share in model.shares)
        cells = [cell(_colours(film, model, 0, n), Image.Resampling.NEAREST) for n in numbers]
        rows.append(([model.name, "3 principal components", f"of variance {shares}"], cells))
        for which, place in enumerate(film.tokens):
            rows.append(
                (
                    [model.name, f"attention of token {place}", "(in the box)", "last block, mean of heads"],
                    [_looks(film, model, which, n).resize((CELL, CELL)) for n in numbers],
                )
            )
    captions = [f"frame {film.frame_numbers[0][n]}" for n in numbers]
    return assemble_sheet(["Features over time", "the first clip; colours are each model's own"], captions, rows)


def _looks(film: Film, model: ModelFilm, which: int, number: int) -> Image.Image:
    place, picture = film.tokens[which], _attention(film, model, which, 0, number)
    return _boxed(picture, place, model.grid) if _slice(film, model, number) == place.slice else picture
