"""Distillation as a task of the shared loop: the student, its targets, its loss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mvd_offline.distillation.checking import present_columns
from mvd_offline.distillation.reading import DistillReader
from mvd_offline.distillation.samples import StoreSamples
from mvd_offline.losses import masked_feature_loss
from mvd_offline.models.inputs import normalize
from mvd_offline.models.saving import save_model
from mvd_offline.models.student import build_student
from mvd_offline.randomness import KeyedStream
from mvd_offline.recipe import DistillRecipe, dump_recipe
from mvd_offline.shards.store import Store
from mvd_offline.targets import TargetSource
from mvd_offline.training.loop import Batch
from mvd_offline.training.optim import EXEMPT, MASK_TOKENS, parameter_groups
from mvd_offline.training.order import BatchRequest
from mvd_offline.training.state import RunIdentity
from mvd_offline.video.masking import masked_tokens

STUDENT_FILE = "student.safetensors"


class DistillTask:
    """Distillation for the shared loop."""

    def __init__(self, recipe: DistillRecipe, store: Store, source: TargetSource, root: Path) -> None:
        self.title = "distill"
        self._recipe, self._source = recipe, source
        self.samples = StoreSamples(recipe, store)
        seed = recipe.training.seed
        self.identity = RunIdentity(store.store_id, seed, recipe.optim.batch_size)
        torch.manual_seed(KeyedStream("init", seed).torch_seed())
        self.student = build_student(
            recipe.student, recipe.view, {str(name): width for name, width in source.widths.items()}
        )
        if recipe.student.compile:
            self.student.compile()
        self.model: nn.Module = self.student
        self._masked = masked_tokens(recipe.mask.kind, recipe.view.grid, recipe.mask.ratio)
        self.reader: Callable[[BatchRequest], Batch] = DistillReader(
            plan=self.samples.plan,
            root=root,
            store=store,
            targets=source.reader,
            grid=recipe.view.grid,
            mask=recipe.mask,
            image_size=recipe.view.image_size,
            seed=seed,
            check_fraction=recipe.training.pixel_check_fraction,
            drop_path_sites=self.student.drop_path_sites,
            checked=tuple(filter(store.is_indexed, present_columns(recipe, store))),
        )

    def names(self) -> dict[str, str]:
        """What names the data of a run: another store, plan, teacher or set of usable rows is another run."""
        return self.samples.names()

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
        section = self._recipe.loss
        video = normalize(batch["clips"][self._recipe.view.image_size])
        predictions: dict[str, Tensor] = model(video, batch["mask"], self._masked, batch["drop_path"])
        targets = self._source.targets(batch["stored"], batch["clips"], batch["masked"])
        losses: dict[str, Any] = {
            f"loss_{name}": masked_feature_loss(
                predictions[name], targets[name], section.kind, section.beta, section.normalize_targets
            )
            for name in self._recipe.active_teachers
        }
        total = sum(section.weights[name] * losses[f"loss_{name}"] for name in self._recipe.active_teachers)
        return {"loss": torch.as_tensor(total), **losses}

    def save(self, folder: Path) -> None:
        save_model(folder / STUDENT_FILE, self.student, recipe=dump_recipe(self._recipe))
