"""The views of a test: segments x crops of each video, from one decode and one resize of the frames they need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from mvd_offline.errors import VideoError
from mvd_offline.recipe import ClipSection, EvaluationSection
from mvd_offline.video.catalog import Video
from mvd_offline.video.decode import decode
from mvd_offline.video.multicrop import multi_crop_views
from mvd_offline.video.sampling import dense_test_indices, uniform_test_indices


@dataclass(frozen=True)
class ViewBatch:
    """Every view of some videos: `clips` uint8 (rows x views, T, S, S, 3), video by video, clip by clip, crop by crop.

    `failed` has the reasons of the videos that could not be read, by row; they have no clips.
    """

    rows: tuple[int, ...]
    clips: Tensor | None
    failed: dict[int, str]

    def pin_memory(self) -> ViewBatch:
        """What a loader asks of batches that a GPU will fetch."""
        return self if self.clips is None else replace(self, clips=self.clips.pin_memory())


class ViewBatches(Dataset[ViewBatch]):
    """Item i is a batch of whole videos: a function of videos and recipe alone, so that every launch runs the same.

    A batch holds as many videos as have at most `batch_size` views together, and at least one.
    """

    def __init__(self, videos: Sequence[Video], root: Path, clip: ClipSection, section: EvaluationSection) -> None:
        self._videos, self._root, self._clip, self._section = videos, root, clip, section
        self._per_batch = max(1, section.batch_size // (section.segments * section.crops))

    def __len__(self) -> int:
        return -(-len(self._videos) // self._per_batch)

    def __getitem__(self, item: int) -> ViewBatch:
        clips: dict[int, NDArray[np.uint8]] = {}
        failed: dict[int, str] = {}
        first = item * self._per_batch
        for row in range(first, min(first + self._per_batch, len(self._videos))):
            try:
                clips[row] = self.views(row)
            except VideoError as error:
                failed[row] = error.reason
        # A video has megabytes of views: where one fills a batch, they are not copied again.
        stacked = np.concatenate(list(clips.values())) if len(clips) > 1 else next(iter(clips.values()), None)
        return ViewBatch(tuple(clips), None if stacked is None else torch.from_numpy(stacked), failed)

    def views(self, row: int) -> NDArray[np.uint8]:
        """All views of one video, uint8 (segments x crops, T, S, S, 3)."""
        video, clip, section = self._videos[row], self._clip, self._section
        segments = [_test_indices(video.frames, k, clip, section) for k in range(section.segments)]
        wanted = sorted({index for indices in segments for index in indices})
        frames = decode(self._root / video.path, wanted, reader=video.reader).frames
        if frames.shape[1:3] != (video.height, video.width):
            raise VideoError(
                video.path,
                f"frames are {frames.shape[2]} x {frames.shape[1]} pixels, and {video.width} x {video.height} when it "
                "was scanned: the file changed since; scan the videos again",
            )
        crops = multi_crop_views(frames, clip.image_size, section.crops)
        views = np.empty((section.segments, section.crops, clip.frames, *crops.shape[2:]), np.uint8)
        for view, indices in zip(views, segments, strict=True):
            np.take(crops, np.searchsorted(wanted, indices), axis=1, out=view, mode="clip")
        return views.reshape(-1, *views.shape[2:])


def _test_indices(frames: int, segment: int, clip: ClipSection, section: EvaluationSection) -> tuple[int, ...]:
    if clip.sampling == "dense":
        return dense_test_indices(frames, segment, section.segments, clip.frames, clip.stride)
    return uniform_test_indices(frames, segment, section.segments, clip.frames)
