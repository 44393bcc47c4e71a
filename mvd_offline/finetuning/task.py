"""Fine-tuning as a task of the shared loop: the classifier, its mixed batches, its loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from mvd_offline.finetuning.erasing import erase
from mvd_offline.finetuning.mixing import mix_clips, mix_labels
from mvd_offline.finetuning.reading import FinetuneReader
from mvd_offline.models.checkpoints import weights_sha256
from mvd_offline.models.classifier import Classifier, build_classifier
from mvd_offline.models.inputs import normalize
from mvd_offline.models.loading import start_finetuning
from mvd_offline.models.saving import save_model
from mvd_offline.randomness import KeyedStream
from mvd_offline.recipe import FinetuneRecipe, dump_recipe
from mvd_offline.training.averages import Average, constant
from mvd_offline.training.catalogs import CatalogRows
from mvd_offline.training.feeding import Batch
from mvd_offline.training.optim import parameter_groups
from mvd_offline.training.order import BatchRequest
from mvd_offline.training.state import RunIdentity

CLASSIFIER_FILE: Final = "classifier.safetensors"
EMA_FILE: Final = "classifier_ema.safetensors"
SCRATCH: Final = "scratch"


class FinetuneTask:
    """Classification for the shared loop.

    Attributes:
        start: `scratch`, or the hash of the encoder's weights that the run starts from.
    """

    def __init__(
        self, recipe: FinetuneRecipe, rows: CatalogRows, init: Path | None, *, start: str | None = None
    ) -> None:
        """`start`: as the run noted it, where `init` only stands in for what it began with."""
        self.title, self.unit = "finetune", "videos"
        self._recipe, self._rows = recipe, rows
        seed = recipe.training.seed
        self.identity = RunIdentity(rows.source, seed, recipe.optim.batch_size)
        torch.manual_seed(KeyedStream("init", seed).torch_seed())
        self.classifier: Classifier = (
            build_classifier(recipe.model, recipe.clip)
            if init is None
            else start_finetuning(init, recipe.model, recipe.clip)[0]
        )
        self.model: nn.Module = self.classifier
        self.start = start or (SCRATCH if init is None else _encoder_sha256(self.classifier))
        self.averages: Mapping[str, Average] = (
            {"ema": Average(self.classifier, constant(recipe.ema.decay))} if recipe.ema else {}
        )
        self.may_wait = False
        self.reader: Callable[[BatchRequest], Batch] = FinetuneReader(
            videos=rows.videos,
            root=rows.root,
            clip=recipe.clip,
            augment=recipe.augment,
            mixing=recipe.mixing,
            seed=seed,
            drop_path_sites=self.classifier.drop_path_sites,
            dropout_sites=self.classifier.arch.width if recipe.model.head_dropout else 0,
        )

    def groups(self) -> list[dict[str, object]]:
        return parameter_groups(
            self.model.named_parameters(),
            weight_decay=self._recipe.optim.weight_decay,
            layer_decay=self._recipe.optim.layer_decay,
            depth=self.classifier.arch.depth,
        )

    def order(self, epoch: int) -> NDArray[np.int64]:
        return self._rows.order(self._recipe.training.seed, epoch)

    def samples_per_epoch(self) -> int:
        return len(self._rows.videos)

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy with smoothed, and where the batch is mixed, soft labels; accuracy counts the larger share."""
        video, labels = self._augmented(batch)
        logits: Tensor = model(video, batch["drop_path"], batch.get("dropout"))
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self._recipe.label_smoothing)
        expected = labels if labels.ndim == 1 else labels.argmax(dim=1)
        return {"loss": loss, "accuracy": (logits.detach().argmax(dim=1) == expected).float().mean()}

    def _augmented(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The batch as the model sees it: float (B, 3, T, S, S), and labels (B,) or, mixed, (B, classes)."""
        video, labels, mix = normalize(batch["clips"]), batch["labels"], batch.get("mix")
        if "erasures" in batch:
            video = erase(video, batch["erasures"])
        if mix is None:
            return video, labels
        video = mix_clips(video, mix, in_time=self._recipe.quirks.cutmix_in_time)
        return video, mix_labels(labels, self._recipe.model.classes, mix)

    def save(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        recipe = dump_recipe(self._recipe)
        save_model(folder / CLASSIFIER_FILE, self.classifier, recipe=recipe, state=state)
        if "ema" in self.averages:
            save_model(
                folder / EMA_FILE, self.classifier, recipe=recipe, state=self.averages["ema"].module.state_dict()
            )


def _encoder_sha256(classifier: Classifier) -> str:
    encoder = classifier.state_dict().items()
    return weights_sha256((name, tensor) for name, tensor in encoder if not name.startswith(("fc_norm.", "head.")))
