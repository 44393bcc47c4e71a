"""Micro-batches of distillation, read in loader processes: pixels, masks, stored targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvd_offline.errors import PixelMismatchError
from mvd_offline.geometry import TokenGrid
from mvd_offline.randomness import KeyedStream
from mvd_offline.recipe import DistillMaskSection
from mvd_offline.shards.store import Store
from mvd_offline.targets import TargetReader
from mvd_offline.training.loop import Batch
from mvd_offline.training.order import BatchRequest
from mvd_offline.video.masking import draw_mask
from mvd_offline.video.views import Plan, View, pixel_hash, render_sizes


@dataclass
class DistillReader:
    """Reads micro-batches in loader processes: pixels, masks, stored targets."""

    plan: Plan
    root: Path
    store: Store
    targets: TargetReader
    grid: TokenGrid
    mask: DistillMaskSection
    image_size: int
    seed: int
    check_fraction: float
    drop_path_sites: int
    checked: tuple[str, ...]
    """Columns whose recorded pixels must be those that are rendered."""

    def __call__(self, request: BatchRequest) -> Batch:
        views = [self.plan[row] for row in request.rows]
        masks = np.stack([self._mask(request.epoch, view) for view in views])
        masked = np.stack([np.flatnonzero(mask) for mask in masks])
        return {
            "clips": self._clips(request, views),
            "mask": torch.from_numpy(masks),
            "masked": torch.from_numpy(masked),
            "stored": self.targets.read(request.rows, masked),
            "drop_path": torch.from_numpy(self._drop_path(request)),
        }

    def _mask(self, epoch: int, view: View) -> NDArray[np.bool_]:
        stream = KeyedStream("mask", self.seed, epoch, view.view_id)
        return draw_mask(self.mask.kind, self.grid, self.mask.ratio, stream)

    def _drop_path(self, request: BatchRequest) -> NDArray[np.float32]:
        draws = [KeyedStream("drop_path", self.seed, request.epoch, row) for row in request.rows]
        return np.stack([stream.uniforms(self.drop_path_sites) for stream in draws]).astype(np.float32)

    def _clips(self, request: BatchRequest, views: Sequence[View]) -> dict[int, Tensor]:
        sizes = self.targets.sizes(self.image_size)
        rendered = [render_sizes(view, self.root, sizes) for view in views]
        for view, renderings in zip(views, rendered, strict=True):
            if self._is_checked(request, view):
                self._check(view, renderings[self.image_size].pixels, renderings[self.image_size].decoder)
        return {size: torch.from_numpy(np.stack([r[size].pixels for r in rendered])) for size in sizes}

    def _is_checked(self, request: BatchRequest, view: View) -> bool:
        if not self.checked:
            return False
        first = request.epoch == 0 and request.batch == 0
        stream = KeyedStream("pixel_check", self.seed, request.epoch, view.view_id)
        return first or stream.uniform() < self.check_fraction

    def _check(self, view: View, pixels: NDArray[np.uint8], decoder: str) -> None:
        recorded = self.store.pixels_of(view.view_id, self.checked)
        found = pixel_hash(pixels)
        if recorded.pixels != found:
            raise PixelMismatchError(
                f"view {view.view_id} of video {view.video_id} renders to other pixels than its teachers saw: hash "
                f"{found} with {decoder} here, {recorded.pixels} with {recorded.decoder} at extraction. The video "
                "file, the decoder or Pillow changed. Restore the file or the version, or extract the store again."
            )
