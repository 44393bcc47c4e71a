"""Supervised training of a classifier, from a student's encoder or from scratch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from mvd_offline.accounting import begin_launch, write_report
from mvd_offline.models.checkpoints import weights_sha256
from mvd_offline.models.classifier import Classifier, build_classifier
from mvd_offline.models.inputs import normalize
from mvd_offline.models.loading import start_finetuning
from mvd_offline.models.saving import save_model
from mvd_offline.randomness import KeyedStream
from mvd_offline.recipe import AugmentSection, ClipSection, FinetuneRecipe, dump_recipe
from mvd_offline.training.averages import Average
from mvd_offline.training.catalogs import CatalogRows, say_left_out
from mvd_offline.training.launch import open_accelerator
from mvd_offline.training.loop import Batch, TrainingSummary, check_launch, train
from mvd_offline.training.optim import parameter_groups
from mvd_offline.training.order import BatchRequest
from mvd_offline.training.run import open_run
from mvd_offline.training.state import RunIdentity
from mvd_offline.video.augment import clip_view
from mvd_offline.video.catalog import Video
from mvd_offline.video.crops import draw_flip, random_resized_crop_box
from mvd_offline.video.render import render
from mvd_offline.video.sampling import dense_train_indices, uniform_train_indices

CLASSIFIER_FILE = "classifier.safetensors"
CLASSES_FILE = "classes.json"


def finetune(
    recipe: FinetuneRecipe,
    *,
    catalog_path: Path,
    run: Path,
    init: Path | None = None,
    accelerator: Accelerator | None = None,
) -> TrainingSummary:
    """Train the recipe's classifier on labelled videos; goes on if `run` holds a started run.

    Args:
        init: a student, VideoMAE or fine-tuned checkpoint; None starts from scratch.

    Raises:
        UsageError: labels that do not fit `model.classes`.
        CheckpointError: no such file as `init`, or a checkpoint of another size.
        IdentityError: the run was started on other videos, labels or weights.
    """
    accelerator = accelerator or open_accelerator(recipe.training)
    rows = CatalogRows(catalog_path)
    check_launch(len(rows.videos), recipe.optim, recipe.training, accelerator)
    rows.require_labels(recipe.model.classes)
    task = FinetuneTask(recipe, rows, init)
    open_run(run, recipe, {"source": rows.source, "init": task.start}, main=accelerator.is_main_process)
    if accelerator.is_main_process:
        say_left_out(rows)
        (run / CLASSES_FILE).write_text(json.dumps(list(rows.classes), indent=2) + "\n", encoding="utf-8")
        begin_launch(run, accelerator)
    accelerator.wait_for_everyone()
    summary = train(task, recipe.optim, recipe.training, run=run, accelerator=accelerator)
    if accelerator.is_main_process:
        write_report(run, recipe.optim.batch_size)
    return summary


@dataclass
class FinetuneReader:
    """Decodes and augments: one draw of frames, crop and flip for a clip, keyed by (seed, epoch, video)."""

    videos: tuple[Video, ...]
    root: Path
    clip: ClipSection
    augment: AugmentSection
    seed: int
    drop_path_sites: int
    dropout_sites: int
    """Features before the head; 0 without dropout."""

    def __call__(self, request: BatchRequest) -> Batch:
        videos = [self.videos[row] for row in request.rows]
        batch = {
            "clips": torch.from_numpy(np.stack([self._clip(video, request.epoch) for video in videos])),
            "labels": torch.tensor([video.label for video in videos]),
            "drop_path": self._noise("drop_path", request.epoch, videos, self.drop_path_sites),
        }
        if self.dropout_sites:
            batch["dropout"] = self._noise("dropout", request.epoch, videos, self.dropout_sites)
        return batch

    def _noise(self, use: str, epoch: int, videos: Sequence[Video], sites: int) -> Tensor:
        draws = [KeyedStream(use, self.seed, epoch, video.video_id).uniforms(sites) for video in videos]
        return torch.from_numpy(np.stack(draws).astype(np.float32))

    def _clip(self, video: Video, epoch: int) -> NDArray[np.uint8]:
        stream = KeyedStream("augment", self.seed, epoch, video.video_id)
        if self.clip.sampling == "dense":
            indices = dense_train_indices(video.frames, stream, self.clip.frames, self.clip.stride)
        else:
            indices = uniform_train_indices(video.frames, stream, self.clip.frames)
        box = random_resized_crop_box(video.width, video.height, stream, self.augment.area, self.augment.aspect)
        view = clip_view(video, indices, box, flip=draw_flip(self.augment.flip, stream), group=epoch)
        return render(view, self.root, self.clip.image_size, resample="bilinear").pixels


class FinetuneTask:
    """Classification for the shared loop.

    Attributes:
        start: `scratch`, or the hash of the encoder's weights that the run starts from.
    """

    def __init__(self, recipe: FinetuneRecipe, rows: CatalogRows, init: Path | None) -> None:
        self.title = "finetune"
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
        self.start = "scratch" if init is None else _encoder_sha256(self.classifier)
        self.averages: Mapping[str, Average] = {}
        self.may_wait = False
        self.reader: Callable[[BatchRequest], Batch] = FinetuneReader(
            videos=rows.videos,
            root=rows.root,
            clip=recipe.clip,
            augment=recipe.augment,
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
        logits: Tensor = model(normalize(batch["clips"]), batch["drop_path"], batch.get("dropout"))
        loss = F.cross_entropy(logits.float(), batch["labels"], label_smoothing=self._recipe.label_smoothing)
        accuracy = (logits.detach().argmax(dim=1) == batch["labels"]).float().mean()
        return {"loss": loss, "accuracy": accuracy}

    def save(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        save_model(folder / CLASSIFIER_FILE, self.classifier, recipe=dump_recipe(self._recipe), state=state)


def _encoder_sha256(classifier: Classifier) -> str:
    encoder = classifier.state_dict().items()
    return weights_sha256((name, tensor) for name, tensor in encoder if not name.startswith(("fc_norm.", "head.")))
