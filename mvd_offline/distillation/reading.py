"""Micro-batches of distillation, read in loader processes: pixels, masks, stored targets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvd_offline.distillation.rows import RunRows, StoreRows
from mvd_offline.errors import PixelMismatchError
from mvd_offline.geometry import TokenGrid
from mvd_offline.randomness import KeyedStream
from mvd_offline.recipe import DistillMaskSection
from mvd_offline.targets import TargetReader
from mvd_offline.training.loop import Batch
from mvd_offline.training.order import BatchRequest
from mvd_offline.video.masking import draw_decoded, draw_mask
from mvd_offline.video.views import View, pixel_hash


@dataclass
class DistillReader:
    """Reads micro-batches in loader processes: pixels, masks, stored targets."""

    rows: RunRows
    targets: TargetReader
    grid: TokenGrid
    mask: DistillMaskSection
    image_size: int
    seed: int
    check_fraction: float
    drop_path_sites: int

    def __call__(self, request: BatchRequest) -> Batch:
        masks = np.stack([self._mask(request.epoch, row) for row in request.rows])
        tokens = self._tokens(request, masks)
        return {
            "clips": self._clips(request),
            "mask": torch.from_numpy(masks),
            "tokens": None if tokens is None else torch.from_numpy(tokens),
            "stored": self.targets.read(request.rows, tokens),
            "drop_path": torch.from_numpy(self._drop_path(request)),
            "parts": torch.from_numpy(self.rows.split(request.rows)[0]),
        }

    def _mask(self, epoch: int, row: int) -> NDArray[np.bool_]:
        stream = KeyedStream("mask", self.seed, epoch, row)
        return draw_mask(self.mask.kind, self.grid, self.mask.ratio, stream)

    def _tokens(self, request: BatchRequest, masks: NDArray[np.bool_]) -> NDArray[np.int64] | None:
        """(B, K) tokens that the student predicts, ascending; None for every token of the clips."""
        if self.mask.kind == "none":
            return None
        streams = (KeyedStream("decoded", self.seed, request.epoch, row) for row in request.rows)
        return np.stack([draw_decoded(m, self.mask.decoded, s) for m, s in zip(masks, streams, strict=True)])

    def _drop_path(self, request: BatchRequest) -> NDArray[np.float32]:
        draws = [KeyedStream("drop_path", self.seed, request.epoch, row) for row in request.rows]
        return np.stack([stream.uniforms(self.drop_path_sites) for stream in draws]).astype(np.float32)

    def _clips(self, request: BatchRequest) -> dict[int, Tensor]:
        sizes = self.targets.sizes(self.image_size)
        rendered = []
        for row in request.rows:
            view, part = self.rows[row]
            rendered.append(part.pixels(view, sizes))
            if part.checked and self._is_checked(request, row):
                own = rendered[-1][self.image_size]
                _check(view, part, own.pixels, own.decoder)
        return {size: torch.from_numpy(np.stack([r[size].pixels for r in rendered])) for size in sizes}

    def _is_checked(self, request: BatchRequest, row: int) -> bool:
        first = request.epoch == 0 and request.batch == 0
        stream = KeyedStream("pixel_check", self.seed, request.epoch, row)
        return first or stream.uniform() < self.check_fraction


def _check(view: View, part: StoreRows, pixels: NDArray[np.uint8], decoder: str) -> None:
    recorded = part.store.pixels_of(view.view_id, part.checked)
    found = pixel_hash(pixels)
    if recorded.pixels != found:
        raise PixelMismatchError(
            f"view {view.view_id} of video {view.video_id} renders to other pixels than its teachers saw: hash "
            f"{found} with {decoder} here, {recorded.pixels} with {recorded.decoder} at extraction. The video "
            "file, the decoder or Pillow changed. Restore the file or the version, or extract the store again."
        )
