"""Micro-batches of distillation, read in loader processes: pixels, masks, stored targets."""

from __future__ import annotations

from collections.abc import Sequence
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
from mvd_offline.training.memory import batch_memory
from mvd_offline.training.order import BatchRequest
from mvd_offline.training.packed import PackedClips
from mvd_offline.video.masking import draw_decoded, draw_mask
from mvd_offline.video.views import pixel_hash


@dataclass
class DistillReader:
    """Reads micro-batches in loader processes: pixels, masks, stored targets."""

    rows: RunRows
    targets: TargetReader
    grid: TokenGrid
    mask: DistillMaskSection
    frames: int
    image_size: int
    seed: int
    check_fraction: float
    drop_path_sites: int
    packed: bool = False
    """Whether the device decodes baked clips."""

    def __call__(self, request: BatchRequest) -> Batch:
        stream, rows = KeyedStream("reader"), request.rows
        masks = np.stack([self._mask(stream.restart("mask", self.seed, request.epoch, row)) for row in rows])
        tokens = self._tokens(stream, request, masks)
        return {
            "clips": self._clips(stream, request),
            "mask": torch.from_numpy(masks),
            "tokens": None if tokens is None else torch.from_numpy(tokens),
            "stored": self.targets.read(rows, tokens),
            "drop_path": torch.from_numpy(self._drop_path(stream, request)),
            "parts": torch.from_numpy(self.rows.split(rows)[0]),
        }

    def _mask(self, stream: KeyedStream) -> NDArray[np.bool_]:
        return draw_mask(self.mask.kind, self.grid, self.mask.ratio, stream)

    def _tokens(self, stream: KeyedStream, request: BatchRequest, masks: NDArray[np.bool_]) -> NDArray[np.int64] | None:
        """(B, K) tokens that the student predicts, ascending; None for every token of the clips."""
        if self.mask.kind == "none":
            return None
        streams = (stream.restart("decoded", self.seed, request.epoch, row) for row in request.rows)
        return np.stack([draw_decoded(m, self.mask.decoded, s) for m, s in zip(masks, streams, strict=True)])

    def _drop_path(self, stream: KeyedStream, request: BatchRequest) -> NDArray[np.float32]:
        streams = (stream.restart("drop_path", self.seed, request.epoch, row) for row in request.rows)
        return np.stack([s.uniforms(self.drop_path_sites) for s in streams]).astype(np.float32)

    def _clips(self, stream: KeyedStream, request: BatchRequest) -> dict[int, Tensor | PackedClips]:
        """uint8 (B, T, S, S, 3) by side S: the student's, and that of each teacher that runs beside it."""
        stretches = list(self.rows.stretches(request.rows))
        checked = [self._is_checked(stream, request, row) for row in request.rows]
        if self.packed:
            return {self.image_size: self._packed(stretches, checked)}
        made = self._memory(len(request.rows), self.targets.sizes(self.image_size))
        for number, here, views in stretches:
            part = self.rows.stores[number]
            decoders = part.fill({side: clips[here] for side, (_, clips) in made.items()}, views)
            own = made[self.image_size][1][here]
            for wanted, view_id, clip, decoder in zip(checked[here], views, own, decoders, strict=True):
                if wanted and part.checked:
                    _check(view_id, part, clip, decoder)
        return {side: tensor for side, (tensor, _) in made.items()}

    def _packed(self, stretches: Sequence[tuple[int, slice, list[int]]], checked: Sequence[bool]) -> PackedClips:
        """JPEGs for the device to decode; those that are checked are decoded here as well, as they were for hashing."""
        payloads: list[memoryview] = []
        for number, here, views in stretches:
            part = self.rows.stores[number]
            payloads += part.packed(views)
            wanted = [view_id for view_id, check in zip(views, checked[here], strict=True) if check and part.checked]
            for _, clips in self._memory(len(wanted), (self.image_size,)).values():
                for view_id, clip, decoder in zip(
                    wanted, clips, part.fill({self.image_size: clips}, wanted), strict=True
                ):
                    _check(view_id, part, clip, decoder)
        return PackedClips.of(payloads, self.frames, self.image_size)

    def _memory(self, clips: int, sides: Sequence[int]) -> dict[int, tuple[Tensor, NDArray[np.uint8]]]:
        return {side: batch_memory((clips, self.frames, side, side, 3), np.dtype(np.uint8)) for side in sides}

    def _is_checked(self, stream: KeyedStream, request: BatchRequest, row: int) -> bool:
        first = request.epoch == 0 and request.batch == 0
        return first or stream.restart("pixel_check", self.seed, request.epoch, row).uniform() < self.check_fraction


def _check(view_id: int, part: StoreRows, pixels: NDArray[np.uint8], decoder: str) -> None:
    recorded = part.store.pixels_of(view_id, part.checked)
    found = pixel_hash(pixels)
    if recorded.pixels != found:
        raise PixelMismatchError(
            f"view {view_id} of video {part.plan[view_id].video_id} renders to other pixels than its teachers saw: "
            f"hash {found} with {decoder} here, {recorded.pixels} with {recorded.decoder} at extraction. The video "
            "file, the decoder or Pillow changed. Restore the file or the version, or extract the store again."
        )
