"""Micro-batches of fine-tuning, read in loader processes: augmented views, labels, and what is drawn for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvd_offline.finetuning.drawing import ClipDraw, SampleKey, draw_clip
from mvd_offline.finetuning.mixing import draw_mix
from mvd_offline.randomness import KeyedStream
from mvd_offline.recipe import AugmentSection, ClipSection, MixingSection
from mvd_offline.training.feeding import Batch
from mvd_offline.training.order import BatchRequest
from mvd_offline.video.catalog import Video
from mvd_offline.video.rand_augment import timm_operations
from mvd_offline.video.render import decode_frames


@dataclass
class FinetuneReader:
    """Decodes each video of a request once and makes its views: repeated ones lie side by side.

    What is drawn for a view depends on (seed, epoch, video, repeat) alone. How a micro-batch is mixed depends on its
    place in the global batch: it is the same for any number of processes whose micro-batches have the same size.
    """

    videos: tuple[Video, ...]
    root: Path
    clip: ClipSection
    augment: AugmentSection
    mixing: MixingSection | None
    seed: int
    drop_path_sites: int
    dropout_sites: int
    """Features before the head; 0 without dropout."""

    def __post_init__(self) -> None:
        if self.augment.rand_augment:
            timm_operations()

    def __call__(self, request: BatchRequest) -> Batch:
        videos = [self.videos[row] for row in request.rows]
        keys = [SampleKey(self.seed, request.epoch, video.video_id) for video in videos]
        draws = [draw_clip(video, self.clip, self.augment, key) for video, key in zip(videos, keys, strict=True)]
        batch: Batch = {
            "clips": torch.from_numpy(self._clips(videos, draws)),
            "labels": torch.tensor([video.label for video in videos for _ in range(self.augment.repeats)]),
            "drop_path": self._noise("drop_path", keys, self.drop_path_sites),
        }
        if self.dropout_sites:
            batch["dropout"] = self._noise("dropout", keys, self.dropout_sites)
        if self.augment.erasing:
            batch["erasures"] = [view.erasure for draw in draws for view in draw.views]
        if self.mixing:
            stream = KeyedStream("mixing", self.seed, request.epoch, request.batch, request.first)
            batch["mix"] = draw_mix(self.mixing, self.clip.image_size, stream)
        return batch

    def _clips(self, videos: Sequence[Video], draws: Sequence[ClipDraw]) -> NDArray[np.uint8]:
        """uint8 (videos x repeats, T, S, S, 3)."""
        size, repeats = self.clip.image_size, self.augment.repeats
        clips = np.empty((len(videos) * repeats, self.clip.frames, size, size, 3), np.uint8)
        for place, (video, draw) in enumerate(zip(videos, draws, strict=True)):
            frames = decode_frames(video, draw.indices, self.root, reader=video.reader).frames
            for repeat, view in enumerate(draw.views):
                clips[place * repeats + repeat] = view.render(frames, size)
        return clips

    def _noise(self, use: str, keys: Sequence[SampleKey], sites: int) -> Tensor:
        """float32 (videos x repeats, sites), uniform in [0, 1)."""
        streams = [key.stream(use, repeat) for key in keys for repeat in range(self.augment.repeats)]
        return torch.from_numpy(np.stack([stream.uniforms(sites) for stream in streams]).astype(np.float32))
