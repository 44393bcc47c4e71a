"""A picture of what fine-tuning makes of a video, for a person to look at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mvd_offline.finetuning.drawing import ClipDraw, SampleKey, ViewDraw, draw_clip
from mvd_offline.finetuning.erasing import erase
from mvd_offline.models.inputs import denormalize, normalize
from mvd_offline.recipe import FinetuneRecipe
from mvd_offline.video.catalog import Video
from mvd_offline.video.crops import center_crop
from mvd_offline.video.render import crop_and_resize, decode_frames

COLUMNS: Final = 6
TILE: Final = 192
"""Longest side of a frame in the picture, pixels."""
_STRIP, _TEXT, _GAP = 22, 13, 2


@dataclass(frozen=True)
class PictureRow:
    """Frames uint8 (T, S, S, 3), and what was done to them."""

    caption: str
    frames: NDArray[np.uint8]


def augmented_rows(video: Video, root: Path, recipe: FinetuneRecipe, views: int) -> list[PictureRow]:
    """The clip of epoch 0 as it is, then the first `views` views that training would see, from epoch 0 on.

    They are not mixed with other views: that takes other videos.
    """
    rows: list[PictureRow] = []
    for epoch, draw, repeat in islice(_views(video, recipe), views):
        frames = decode_frames(video, draw.indices, root, reader=video.reader).frames
        if not rows:
            size = recipe.clip.image_size
            box = center_crop(video.width, video.height)
            plain = crop_and_resize(frames, box, size, size)
            rows.append(PictureRow(f"{video.video_id}: the centre of epoch 0's frames, as they are", plain))
        view = draw.views[repeat]
        caption = f"epoch {epoch}, view {repeat + 1}: {describe(view)}"
        rows.append(PictureRow(caption, as_trained(view, frames, recipe.clip.image_size)))
    return rows


def describe(view: ViewDraw) -> str:
    """`Rotate 21.3, Invert; crop 120 x 96 at (7, 0); flipped; erased`."""
    done = [", ".join(str(operation) for operation in view.operations) or "no operation"]
    done.append(f"crop {view.crop.w} x {view.crop.h} at ({view.crop.x}, {view.crop.y})")
    return "; ".join(done + ["flipped"] * view.flip + ["erased"] * (view.erasure is not None))


def as_trained(view: ViewDraw, frames: NDArray[np.uint8], image_size: int) -> NDArray[np.uint8]:
    """The pixels of a view, erased as in training; noise beyond black and white is cut off."""
    clip = torch.from_numpy(view.render(frames, image_size))[None]
    return denormalize(erase(normalize(clip), [view.erasure]))[0].numpy()


def write_picture(rows: list[PictureRow], path: Path) -> None:
    """A PNG with a row for each clip, its caption above up to six of its frames."""
    shown = [_columns(row.frames) for row in rows]
    tile, columns = min(TILE, shown[0].shape[1]), len(shown[0])
    font = ImageFont.load_default(size=_TEXT)
    width = max(columns * (tile + _GAP), *(int(font.getlength(row.caption)) + 2 * _GAP for row in rows))
    page = Image.new("RGB", (width, len(rows) * (tile + _STRIP)), "white")
    pen = ImageDraw.Draw(page)
    for place, (row, frames) in enumerate(zip(rows, shown, strict=True)):
        top = place * (tile + _STRIP)
        pen.text((_GAP, top + 3), row.caption, fill="black", font=font)
        for column, frame in enumerate(frames):
            picture = Image.fromarray(frame).resize((tile, tile), Image.Resampling.LANCZOS)
            page.paste(picture, (column * (tile + _GAP), top + _STRIP))
    page.save(path)


def _views(video: Video, recipe: FinetuneRecipe) -> Iterator[tuple[int, ClipDraw, int]]:
    epoch = 0
    while True:
        key = SampleKey(recipe.training.seed, epoch, video.video_id)
        draw = draw_clip(video, recipe.clip, recipe.augment, key)
        yield from ((epoch, draw, repeat) for repeat in range(len(draw.views)))
        epoch += 1


def _columns(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return frames[np.linspace(0, len(frames) - 1, min(COLUMNS, len(frames))).astype(int)]
