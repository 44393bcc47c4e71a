"""Distillation as a task of the shared loop: the student, its targets, its loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mvd_offline.distillation.data import DistillData
from mvd_offline.distillation.following import FollowedSamples
from mvd_offline.distillation.momentum import MomentumTeacher
from mvd_offline.distillation.reading import DistillReader
from mvd_offline.errors import RecipeError
from mvd_offline.losses import objectives_of
from mvd_offline.models.inputs import normalize
from mvd_offline.models.pretraining import videomae_targets
from mvd_offline.models.saving import save_model
from mvd_offline.models.starting import start_encoder
from mvd_offline.models.student import student_of
from mvd_offline.randomness import KeyedStream
from mvd_offline.recipe import DistillRecipe, dump_recipe
from mvd_offline.targets import TargetSource
from mvd_offline.training.averages import Average, constant
from mvd_offline.training.loop import Batch
from mvd_offline.training.optim import EXEMPT, MASK_TOKENS, parameter_groups
from mvd_offline.training.order import BatchRequest
from mvd_offline.training.state import RunIdentity
from mvd_offline.video.masking import masked_tokens

STUDENT_FILE = "student.safetensors"
EMA_FILE = "student_ema.safetensors"
INIT = "init_sha256"
"""Under which a run's identity has `DistillTask.init_sha256`."""


class DistillTask:
    """Distillation for the shared loop.

    Attributes:
        init_sha256: of the weights that the run starts from; None where `student.init` names none.
    """

    def __init__(
        self, recipe: DistillRecipe, data: DistillData, source: TargetSource, *, init_sha256: str | None = None
    ) -> None:
        """`init_sha256`: as a run with checkpoints noted it; `student.init`, which may be gone, is not read then."""
        self.title, self.unit = "distill", "clips"
        self._recipe, self._source = recipe, source
        self.samples, self._stores = data.samples, data.rows.labels
        self.may_wait = isinstance(data.samples, FollowedSamples)
        seed = recipe.training.seed
        self.identity = RunIdentity(data.samples.source, seed, recipe.optim.batch_size)
        torch.manual_seed(KeyedStream("init", seed).torch_seed())
        self._objectives = objectives_of(recipe)
        self._masked = _masked_tokens(recipe)
        self.student = student_of(recipe, source.widths)
        if recipe.student.init is not None and init_sha256 is None:
            init_sha256 = start_encoder(self.student, recipe.student.init)
        self.init_sha256 = init_sha256
        self._momentum = MomentumTeacher(self.student, recipe.momentum) if recipe.momentum else None
        self.averages: Mapping[str, Average] = self._averages()
        if recipe.student.compile:
            self.student.compile(dynamic=False)
        self.model: nn.Module = self.student
        self.reader: Callable[[BatchRequest], Batch] = DistillReader(
            rows=data.rows,
            targets=source.reader,
            grid=recipe.view.grid,
            mask=recipe.mask,
            frames=recipe.view.frames,
            image_size=recipe.view.image_size,
            seed=seed,
            check_fraction=recipe.training.pixel_check_fraction,
            drop_path_sites=self.student.drop_path_sites,
            packed=recipe.unpack_clips == "device",
        )

    def names(self) -> dict[str, str]:
        """What names a run: another store, plan, teacher, set of usable rows or start is another run."""
        start = {} if self.init_sha256 is None else {INIT: self.init_sha256}
        return {**self.samples.names(), **start}

    def order(self, epoch: int) -> NDArray[np.int64]:
        return self.samples.order(epoch)

    def samples_per_epoch(self) -> int:
        return self.samples.per_epoch()

    def groups(self) -> list[dict[str, object]]:
        exempt = EXEMPT if self._recipe.quirks.decay_mask_tokens else EXEMPT | MASK_TOKENS
        return parameter_groups(
            self.model.named_parameters(), weight_decay=self._recipe.optim.weight_decay, exempt=exempt
        )

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        video = normalize(batch["clips"][self._recipe.view.image_size])
        predictions, targets = self._predict(model, video, batch), self._targets(video, batch)
        losses = {name: term(predictions[name], targets[name]) for name, term in self._objectives.items()}
        total = sum(term.weight * losses[name] for name, term in self._objectives.items())
        named = {f"loss_{name}": value for name, value in losses.items()}
        return {"loss": torch.as_tensor(total), **named, **self._shares(batch)}

    def _shares(self, batch: Batch) -> dict[str, Tensor]:
        """The part of the batch that comes from each store, where a run has several."""
        return {f"share_{name}": (batch["parts"] == place).float().mean() for place, name in enumerate(self._stores)}

    def _predict(self, model: nn.Module, video: Tensor, batch: Batch) -> dict[str, Tensor]:
        if not self._masked:
            return model(video, drop_noise=batch["drop_path"])
        decoded = batch["tokens"] if self._recipe.mask.decoded < 1.0 else None
        return model(video, batch["mask"], self._masked, batch["drop_path"], decoded)

    def _targets(self, video: Tensor, batch: Batch) -> dict[str, Tensor]:
        """What the student is to predict, at the tokens of the batch."""
        tokens = batch["tokens"]
        targets = self._source.targets(batch["stored"], batch["clips"], tokens)
        if pixels := self._recipe.pixels:
            view = self._recipe.view
            targets["pixels"] = videomae_targets(
                video, view.tubelet_size, view.patch_size, pixels.normalize_targets, tokens
            )
        if self._momentum:
            targets["momentum"] = self._momentum.targets(video, tokens)
        return targets

    def _averages(self) -> dict[str, Average]:
        averages: dict[str, Average] = {}
        if self._recipe.ema:
            averages["ema"] = Average(self.student, constant(self._recipe.ema.decay))
        if self._momentum:
            averages["momentum"] = self._momentum.average
        return averages

    def save(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        recipe = dump_recipe(self._recipe)
        save_model(folder / STUDENT_FILE, self.student, recipe=recipe, state=state)
        if "ema" in self.averages:
            save_model(folder / EMA_FILE, self.student, recipe=recipe, state=self.averages["ema"].module.state_dict())


def _masked_tokens(recipe: DistillRecipe) -> int:
    """Hidden tokens of each clip: none only where the student is to see them all."""
    mask, grid = recipe.mask, recipe.view.grid
    masked = masked_tokens(mask.kind, grid, mask.ratio)
    if not masked and mask.kind != "none":
        tokens = grid.tokens_per_slice if mask.kind == "tube" else grid.num_tokens
        raise RecipeError(
            f"mask.ratio {mask.ratio:g} hides none of the {tokens} tokens that a {mask.kind} mask chooses from (token "
            f"grid {grid}); allowed: {1 / tokens:.3g} to below 1, or mask.kind none, with which the student sees all."
        )
    return masked
