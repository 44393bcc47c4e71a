"""Baked clips: the frames of a view as the store keeps them, which its teachers saw and its students see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mvd_offline.shards.codecs import Codec, CodingError, get_codec, measure_error
from mvd_offline.shards.schema import CLIPS, ColumnSpec
from mvd_offline.shards.store import Store
from mvd_offline.video.crops import CropBox
from mvd_offline.video.render import Rendered, View, crop_and_resize, render_sizes


@dataclass(frozen=True)
class Baked:
    """A row of column `clips`: its payload, and what baking cost.

    `relative_error` is the root mean square difference as a share of 255 here (see `jpeg.psnr`); a token is a frame.
    """

    payload: bytes
    error: CodingError


def clips_column(frames: int, image_size: int, codec: str, container: str) -> ColumnSpec:
    """The column of a store that is to be baked."""
    source = {"kind": CLIPS, "frames": frames, "image_size": image_size}
    return ColumnSpec(CLIPS, tokens=frames, width=image_size, codec=codec, container=container, source=source)


def render_baked(
    view: View, root: str | Path, image_size: int, sizes: Sequence[int], codec_name: str
) -> tuple[dict[int, Rendered], Baked]:
    """Render a view, bake it, and give every size of what is then left of it.

    Raises as `render`.
    """
    codec = get_codec(codec_name)
    assert codec.packing is not None
    clip = render_sizes(view, root, (image_size,))[image_size]
    payload = codec.packing.pack(clip.pixels)
    kept = _unpacked(codec, memoryview(payload), len(clip.pixels), image_size)
    return resized(kept, sizes, clip.decoder), Baked(payload, baking_error(clip.pixels, kept))


def baking_error(pixels: NDArray[np.uint8], kept: NDArray[np.uint8]) -> CodingError:
    """What baking cost a clip; see `Baked`."""
    before, after = (values.reshape(len(values), -1).astype(np.float32) for values in (pixels, kept))
    measured = measure_error(before, after)
    root_mean_square = float(np.sqrt(np.square(after - before, dtype=np.float64).mean()))
    missing = 1 - measured.cosine_min, 1 - measured.cosine_mean
    return CodingError.of(root_mean_square / 255, *missing, measured.max_abs_error)


def unpack_clip(payload: memoryview, spec: ColumnSpec, sizes: Sequence[int], decoder: str) -> dict[int, Rendered]:
    """Every size of a stored clip.

    Args:
        decoder: who decoded the video when it was baked.
    """
    return resized(_unpacked(get_codec(spec.codec), payload, spec.tokens, spec.width), sizes, decoder)


def resized(clip: NDArray[np.uint8], sizes: Sequence[int], decoder: str) -> dict[int, Rendered]:
    """A clip, uint8 (T, S, S, 3), at other sizes too: made from its own pixels, since there are no others."""
    side = clip.shape[1]
    whole = CropBox(0, 0, side, side)
    return {
        size: Rendered(clip if size == side else crop_and_resize(clip, whole, size, size), decoder)
        for size in (side, *sizes)
    }


def baked_clips(store: Store, view_ids: Sequence[int], sizes: Sequence[int]) -> list[dict[int, Rendered]]:
    """Stored clips of some views. Raises as `Store.read`."""
    index = store.status(CLIPS)
    clips = store.read_coded(CLIPS, view_ids)
    return [resized(clip, sizes, index.row(view).decoder) for view, clip in zip(view_ids, clips, strict=True)]


def fill_baked(store: Store, view_ids: Sequence[int], clips: Mapping[int, NDArray[np.uint8]]) -> list[str]:
    """Put stored clips of some views into arrays (B, T, S, S, 3), by side S; returns who decoded each video.

    Raises as `Store.read`.
    """
    index, side = store.status(CLIPS), store.header.columns[CLIPS].width
    whole = CropBox(0, 0, side, side)
    stored = store.read_coded(CLIPS, view_ids, out=clips.get(side))
    for size in clips.keys() - {side}:
        for clip, target in zip(stored, clips[size], strict=True):
            target[...] = crop_and_resize(clip, whole, size, size)
    return [index.decoders[decoder] for decoder in index.decoder[list(view_ids)].tolist()]


def _unpacked(codec: Codec, payload: memoryview, frames: int, side: int) -> NDArray[np.uint8]:
    assert codec.packing is not None
    clip = np.empty(codec.shape(frames, side), np.uint8)
    codec.packing.unpack(payload, clip)
    return clip
