"""Probes of the student while it is being distilled: what its features are worth, from one checkpoint to the next.

The probe's clips are decoded anew each time, and their mean tokens kept in memory: the student's features change with
every step. They are computed by all processes, in step with each other; each fits the same probes on them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mvd_offline.errors import VideoError
from mvd_offline.evaluation.scoring import Predictions, score
from mvd_offline.models.inputs import normalize
from mvd_offline.models.student import StudentEncoder
from mvd_offline.models.vit import VideoEncoder
from mvd_offline.probing.labels import read_labelled
from mvd_offline.probing.pooled import pooled_scores
from mvd_offline.recipe import DistillRecipe, ProbeSection, ViewSection
from mvd_offline.training.averages import copy_weights
from mvd_offline.training.catalogs import CatalogRows
from mvd_offline.training.stopping import outlive_signals, stop_requested
from mvd_offline.video.render import View, render
from mvd_offline.video.views import draw_view

BATCH_CLIPS: Final = 16
"""Of one forward pass of one process."""


class ProbeInterlude:
    """Probes for the training loop; see `training.interludes.Interlude`."""

    def __init__(self, section: ProbeSection, recipe: DistillRecipe, student: StudentEncoder) -> None:
        """Reads the catalogs.

        Raises:
            UsageError: videos without labels, or catalogs of other classes.
        """
        self.name, self.every_epochs = "probe", section.every_epochs
        self._section, self._student = section, student
        self._videos = read_labelled(Path(section.train), Path(section.test))
        view = recipe.view.model_copy(update={"crop": "center", "flip": 0.0, "groups": 1, "num_sample": 1})
        self._train, self._test = (
            ClipReader(rows, view, recipe.training.workers) for rows in (self._videos.train, self._videos.test)
        )

    def look(self, accelerator: Accelerator) -> dict[str, float] | None:
        """Top-1 and top-5 of each probe; `unreadable` counts clips that are left out, where there are any."""
        encoder = self._student.new_encoder().to(accelerator.device).eval()
        copy_weights(self._student, encoder)
        train = mean_tokens(encoder, self._train, accelerator)
        test = mean_tokens(encoder, self._test, accelerator) if train is not None else None
        if train is None or test is None:
            return None
        del encoder  # its memory is for the probes
        values: dict[str, float] = {}
        for kind in self._section.kinds:
            labels = torch.from_numpy(train.labels)
            scores = pooled_scores(
                kind, train.features, labels, test.features, self._videos.classes, accelerator.device
            )
            found = score(Predictions(test.video_ids, test.labels, scores.double().cpu().numpy()))
            values |= {f"{kind}_top1": found.top1, f"{kind}_top5": found.top5}
        if left_out := train.left_out + test.left_out:
            values["unreadable"] = left_out
        return values


@dataclass(frozen=True)
class ClipFeatures:
    """Mean tokens, float32 (rows, D) in main memory, of the clips that could be read; and how many could not."""

    features: Tensor
    labels: NDArray[np.int64]
    video_ids: tuple[str, ...]
    left_out: int


@torch.no_grad()
def mean_tokens(encoder: VideoEncoder, clips: ClipReader, accelerator: Accelerator) -> ClipFeatures | None:
    """Features of all clips, in all processes; None where a signal asks one of them to stop.

    The processes exchange each batch, so that none is ever far ahead, or goes on without the others.
    """
    parts = []
    for pixels, readable in clips.batches(accelerator.process_index, accelerator.num_processes):
        video = normalize(pixels.to(accelerator.device))
        with accelerator.autocast():
            means = encoder.encode_tokens(video).float().mean(dim=1)
        stop = torch.full_like(means[:, :1], stop_requested())
        gathered = accelerator.gather(torch.cat([means, readable.to(means)[:, None], stop], dim=1)).cpu()
        if gathered[:, -1].any():
            return None
        parts.append(gathered[:, :-1])
    rows = torch.cat(parts)[: len(clips)]  # the last batches are filled up
    read = rows[:, -1] > 0
    kept = [video for video, is_read in zip(clips.videos, read.tolist(), strict=True) if is_read]
    return ClipFeatures(
        features=rows[read, :-1],
        labels=np.array([video.label for video in kept], np.int64),
        video_ids=tuple(video.video_id for video in kept),
        left_out=len(clips) - len(kept),
    )


class ClipReader(Dataset[tuple[Tensor, Tensor]]):
    """One view of each video, rendered in loader processes."""

    def __init__(self, rows: CatalogRows, view: ViewSection, workers: int) -> None:
        self.videos, self._root, self._view, self._workers = rows.videos, rows.root, view, workers

    def __len__(self) -> int:
        return len(self.videos)

    def batches(self, rank: int, ranks: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one process: as many for each, the same number of clips in each.

        The batches of all processes side by side, one after the other, hold the videos in their order; after the last
        video comes the last video again.

        Yields:
            uint8 (B, T, S, S, 3), and whether each clip could be read, bool (B,); pixels of others are 0.
        """
        size = min(BATCH_CLIPS, -(-len(self) // ranks))
        rounds = -(-len(self) // (size * ranks))
        starts = [(turn * ranks + rank) * size for turn in range(rounds)]
        mine = [[min(row, len(self) - 1) for row in range(start, start + size)] for start in starts]
        loader = DataLoader(
            self, sampler=mine, batch_size=None, num_workers=self._workers, worker_init_fn=_start_worker
        )
        return iter(loader)

    def __getitem__(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        section = self._view
        pixels = np.zeros((len(rows), section.frames, section.image_size, section.image_size, 3), np.uint8)
        readable = np.zeros(len(rows), bool)
        for place, row in enumerate(rows):
            view = View(view_id=row, shard=0, **draw_view(self.videos[row], section, 0))
            try:
                pixels[place] = render(view, self._root, section.image_size).pixels
            except VideoError:
                continue  # which `readable` says
            readable[place] = True
        return torch.from_numpy(pixels), torch.from_numpy(readable)


def _start_worker(number: int) -> None:
    outlive_signals()
