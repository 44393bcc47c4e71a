"""A view, and the only way from a view to pixels. Import these names from `mvd_offline.video.views`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

import numpy as np
import xxhash
from numpy.typing import NDArray
from PIL import Image

from mvd_offline.errors import VideoError
from mvd_offline.video.crops import CropBox
from mvd_offline.video.decode import Decoded, Reader, decode

Resample: TypeAlias = Literal["bilinear_antialias", "bicubic_antialias", "bilinear"]
"""How a crop becomes the output's size. `bilinear_antialias`: PIL's bilinear, which averages when it shrinks (MVD's
distillation). `bicubic_antialias`: PIL's bicubic (MAE's random resized crop). `bilinear`: the four nearest pixels only,
as `torch.nn.functional.interpolate(align_corners=False)` and OpenCV do (MVD's fine-tuning and test)."""


@dataclass(frozen=True)
class View:
    """A clip and a crop box: what a model sees of a video.

    `status` is `"ok"`, or the catalog's word for a video that cannot be read; such a view has no frames and an empty
    crop box. Sizes are pixels of the decoded frame.
    """

    view_id: int
    video_id: str
    path: str
    label: int
    group: int
    frame_indices: tuple[int, ...]
    crop: CropBox
    flip: bool
    width: int
    height: int
    frames: int
    status: str
    detail: str
    shard: int
    decoder: Reader | None = None
    """The reader that the scan found to be exact; None where nothing is known."""


@dataclass(frozen=True)
class Rendered:
    """A view's pixels, uint8 (T, S, S, 3) RGB, and who decoded them (`"decord 0.6.0"`)."""

    pixels: NDArray[np.uint8]
    decoder: str

    def __repr__(self) -> str:
        return f"Rendered(pixels=uint8 {self.pixels.shape}, decoder={self.decoder!r})"


def render(view: View, root: str | Path, image_size: int, *, resample: Resample = "bilinear_antialias") -> Rendered:
    """Decodes, crops and resizes a view to `image_size` pixels a side.

    Raises:
        VideoError: the view's status is not ok, the file is gone or does not decode, or its frames have another size
            than the scan saw. Paths in the error are relative to `root`.
    """
    return render_sizes(view, root, (image_size,), resample=resample)[image_size]


def render_sizes(
    view: View, root: str | Path, image_sizes: Sequence[int], *, resample: Resample = "bilinear_antialias"
) -> dict[int, Rendered]:
    """One `Rendered` for each size, keyed by it, all from the same decode and the same crop."""
    if view.status != "ok":
        raise VideoError(view.path, view.detail or view.status, status=view.status)
    decoded = decode_frames(view, view.frame_indices, root, reader=view.decoder)
    cut = partial(crop_and_resize, decoded.frames, view.crop, flip=view.flip, resample=resample)
    return {size: Rendered(cut(size, size), decoded.decoder) for size in image_sizes}


class KnownVideo(Protocol):
    """What a scan wrote down of a video: a row of a catalog, or a view."""

    @property
    def path(self) -> str: ...
    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...


def decode_frames(video: KnownVideo, indices: Sequence[int], root: str | Path, *, reader: Reader | None) -> Decoded:
    """Frames of a video whose size is known, in the order asked for.

    Raises:
        VideoError: the file is gone or does not decode, or its frames have another size than the scan saw. Paths in the
            error are relative to `root`.
    """
    try:
        decoded = decode(Path(root) / video.path, indices, reader=reader)
    except VideoError as error:
        raise VideoError(
            video.path, error.reason, frame=error.frame, decoder=error.decoder, status=error.status
        ) from None
    height, width = decoded.frames.shape[1:3]
    if (width, height) != (video.width, video.height):
        raise VideoError(
            video.path,
            f"frames are {width} x {height} pixels, but were {video.width} x {video.height} when the videos were "
            "scanned: the file changed since; scan again (and plan again), or put the old file back",
            decoder=decoded.decoder,
        )
    return decoded


def crop_and_resize(
    frames: NDArray[np.uint8],
    crop: CropBox,
    width: int,
    height: int,
    *,
    flip: bool = False,
    resample: Resample = "bilinear_antialias",
) -> NDArray[np.uint8]:
    """Crop, then resize what was cut out: uint8 (T, H, W, 3) -> uint8 (T, height, width, 3)."""
    if not crop.inside(frames.shape[2], frames.shape[1]):
        raise ValueError(f"{crop} does not lie inside frames of {frames.shape[2]} x {frames.shape[1]} pixels")
    cut = frames[:, crop.y : crop.y + crop.h, crop.x : crop.x + crop.w]
    out = np.empty((len(frames), height, width, 3), np.uint8)
    if resample == "bilinear":
        _interpolate(cut, out)
    else:
        way = Image.Resampling.BICUBIC if resample == "bicubic_antialias" else Image.Resampling.BILINEAR
        for target, frame in zip(out, cut, strict=True):
            target[:] = np.asarray(Image.fromarray(np.ascontiguousarray(frame)).resize((width, height), way))
    return np.ascontiguousarray(out[:, :, ::-1]) if flip else out


def _interpolate(frames: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Bilinear without antialiasing, rounded to the nearest grey level (PIL's own truncates: half a level darker)."""
    (above, below, down), (left, right, along) = (
        _neighbours(source, target) for source, target in zip(frames.shape[1:3], out.shape[1:3], strict=True)
    )
    for target, frame in zip(out, frames, strict=True):
        rows = frame.take(above, axis=0).astype(np.float32)
        rows += (frame.take(below, axis=0) - rows) * down[:, None, None]
        pixels = rows.take(left, axis=1)
        pixels += (rows.take(right, axis=1) - pixels) * along[:, None]
        target[:] = pixels + 0.5


def _neighbours(source: int, target: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """For each of `target` pixels the two of `source` that it lies between, and how far it is towards the second."""
    place = np.maximum((np.arange(target) + 0.5) * (source / target) - 0.5, 0.0)
    first = np.minimum(place.astype(np.intp), source - 1)
    return first, np.minimum(first + 1, source - 1), (place - first).astype(np.float32)


def pixel_hash(pixels: NDArray[np.uint8]) -> str:
    """xxh3_64 of the pixels in C order, as 16 hexadecimal digits."""
    return xxhash.xxh3_64_hexdigest(np.ascontiguousarray(pixels).data)
