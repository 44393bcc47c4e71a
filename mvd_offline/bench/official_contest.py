"""The three that `bench official-like` compares, on one drawn batch, with the same weights and the same teachers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from mvd_offline.bench.official import OfficialLikeStep
from mvd_offline.bench.step import Stepper
from mvd_offline.coding import decode, encode
from mvd_offline.distillation.data import DistillData
from mvd_offline.distillation.rows import RunRows
from mvd_offline.distillation.task import DistillTask
from mvd_offline.losses import objectives_of
from mvd_offline.models.inputs import normalize
from mvd_offline.models.student import Student
from mvd_offline.models.teachers import teacher_for
from mvd_offline.models.vit import gather_tokens
from mvd_offline.randomness import KeyedStream
from mvd_offline.recipe import DistillRecipe, TeacherName
from mvd_offline.shards.codecs import get_codec
from mvd_offline.targets import OnlineReader, OnlineTargets, TargetSource
from mvd_offline.training.loop import Batch
from mvd_offline.training.order import BatchRequest
from mvd_offline.video.masking import draw_mask

OFFICIAL: Final = "official-like"
CONTENDERS: Final = (OFFICIAL, "online", "cached")


class Contest:
    """The same batch, weights and teachers for all.

    Attributes:
        precision: of the recipe's training.
        steps: by contender, a step that returns its losses; `cached` is there after `first_step`.
    """

    def __init__(self, recipe: DistillRecipe, batch_size: int, accelerator: Accelerator) -> None:
        device = accelerator.device
        teachers = {name: teacher_for(recipe.teachers[name], recipe.view, name) for name in recipe.active_teachers}
        self._recipe, self._accelerator, self.precision = recipe, accelerator, recipe.training.precision
        self._online = _Remembering(OnlineTargets(teachers, device))
        task = _task(recipe, self._online, batch_size)
        student = task.student
        assert isinstance(student, Student)
        self._batch = _draw_batch(recipe, batch_size, self._online.sizes, student.drop_path_sites, device)
        official = OfficialLikeStep(
            student, teachers, objectives_of(recipe), task.groups(), recipe.optim, recipe.training.precision, device
        )
        # Its loader normalises, in processes of their own.
        videos = {size: normalize(clips) for size, clips in self._batch["clips"].items()}
        self._request = BatchRequest(epoch=0, batch=0, first=0, last_of_step=True, rows=tuple(range(batch_size)))
        online = Stepper(task, recipe, accelerator)
        self.steps: dict[str, Callable[[], dict[str, float]]] = {
            OFFICIAL: partial(official.step, videos, self._batch["mask"], self._batch["drop_path"]),
            "online": partial(online.step, self._batch, self._request),
        }

    def first_step(self) -> dict[str, dict[str, float]]:
        """Losses of each; what our online step's teachers give becomes the cached targets."""
        losses = {name: self.steps[name]() for name in (OFFICIAL, "online")}
        codec, batch_size = self._recipe.store.codec, len(self._batch["mask"])
        stored = {name: _as_stored(of, codec, self._batch["tokens"]) for name, of in self._online.features.items()}
        task = _task(self._recipe, _InMemory(self._online.widths, codec), batch_size)
        cached = Stepper(task, self._recipe, self._accelerator)
        self.steps["cached"] = partial(cached.step, {**self._batch, "stored": stored}, self._request)
        return {**losses, "cached": self.steps["cached"]()}


class _Remembering:
    """Online targets that keep the features of all tokens of the last batch."""

    def __init__(self, source: OnlineTargets) -> None:
        self._source, self.reader, self.widths = source, source.reader, source.widths
        self.features: dict[str, Tensor] = {}

    @property
    def sizes(self) -> Callable[[int], tuple[int, ...]]:
        return self.reader.sizes

    def targets(
        self, stored: Mapping[str, Tensor], clips: Mapping[int, Tensor], tokens: Tensor | None
    ) -> dict[str, Tensor]:
        self.features = self._source.targets(stored, clips, None)
        if tokens is None:
            return self.features
        return {name: gather_tokens(features, tokens) for name, features in self.features.items()}


class _InMemory:
    """Cached targets that were read already."""

    def __init__(self, widths: dict[TeacherName, int], codec: str) -> None:
        self.reader, self.widths, self._codec = OnlineReader(()), widths, codec

    def targets(
        self, stored: Mapping[str, Tensor], clips: Mapping[int, Tensor], tokens: Tensor | None
    ) -> dict[str, Tensor]:
        return {name: decode(coded, self._codec) for name, coded in stored.items()}


class _DrawnSamples:
    """One batch that belongs to no store."""

    source = "drawn"

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def names(self) -> dict[str, str]:
        return {}

    def order(self, epoch: int) -> NDArray[np.int64]:
        return np.arange(self.rows, dtype=np.int64)

    def per_epoch(self) -> int:
        return self.rows


def _task(recipe: DistillRecipe, source: TargetSource, rows: int) -> DistillTask:
    return DistillTask(recipe, DistillData(_DrawnSamples(rows), RunRows(())), source)


def _as_stored(features: Tensor, codec: str, tokens: Tensor) -> Tensor:
    """What a store would give for these tokens of (B, N, D)."""
    coded = encode(features, codec)
    extra = torch.arange(features.shape[1], features.shape[1] + get_codec(codec).extra_rows, device=tokens.device)
    return gather_tokens(coded, torch.cat([tokens, extra.expand(len(tokens), -1)], dim=1))


def _draw_batch(
    recipe: DistillRecipe, rows: int, sizes: Callable[[int], tuple[int, ...]], sites: int, device: torch.device
) -> Batch:
    """Random pixels, and masks and noise as a run draws them in its first epoch."""
    view, seed = recipe.view, recipe.training.seed
    generator = torch.Generator().manual_seed(seed)
    masks = [
        draw_mask(recipe.mask.kind, view.grid, recipe.mask.ratio, KeyedStream("mask", seed, 0, row))
        for row in range(rows)
    ]
    clips = {
        size: torch.randint(0, 256, (rows, view.frames, size, size, 3), dtype=torch.uint8, generator=generator)
        for size in sizes(view.image_size)
    }
    mask = torch.from_numpy(np.stack(masks))
    return {
        "clips": {size: pixels.to(device) for size, pixels in clips.items()},
        "mask": mask.to(device),
        "tokens": torch.from_numpy(np.stack([np.flatnonzero(row) for row in masks])).to(device),
        "stored": {},
        "drop_path": torch.rand(rows, sites, generator=generator).to(device),
    }
