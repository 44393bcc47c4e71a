"""Clips that a classifier was trained on, and what it says of them at the end of its training."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from mvd_offline.examples.files import Answer, Example, Film, write_examples
from mvd_offline.examples.reading import first_samples, frame_ticks, pictured
from mvd_offline.finetuning.erasing import erase
from mvd_offline.finetuning.task import CLASSIFIER_FILE, FinetuneTask
from mvd_offline.models.inputs import denormalize, normalize
from mvd_offline.models.loading import load_classifier
from mvd_offline.models.vit import encoder_arch
from mvd_offline.recipe import FinetuneRecipe
from mvd_offline.training.catalogs import CatalogRows

CLIPS, ANSWERS = 4, 5


def write_finetune_examples(
    run: Path, recipe: FinetuneRecipe, task: FinetuneTask, rows: CatalogRows, device: torch.device
) -> None:
    """The first clips of epoch 0, augmented as in training but not mixed, with the most probable classes of each."""
    chosen, batch = first_samples(task, CLIPS)
    repeats = recipe.augment.repeats
    video = normalize(batch["clips"])
    if "erasures" in batch:
        video = erase(video, batch["erasures"])
    # Of repeated views of a video, the first.
    video, labels = video[::repeats], batch["labels"][::repeats].tolist()
    frames = denormalize(video)
    probabilities = _probabilities(run, recipe, video, device)
    names = rows.classes or tuple(f"class {label}" for label in range(recipe.model.classes))
    shown = pictured(recipe.clip.frames, recipe.clip.tubelet_size)
    write_examples(
        run,
        "Clips of the first batch as the model saw them, augmented and not mixed, and its most probable classes at the "
        "end of the training. It was trained on them: this is no test.",
        [
            Example(
                title=rows.videos[row].video_id,
                note=f"true class: {names[label]}",
                ticks=frame_ticks(shown),
                films=(Film("as seen", pixels=clip[shown].numpy()),),
                answers=_answers(found, label, names),
            )
            for row, label, clip, found in zip(chosen, labels, frames, probabilities, strict=True)
        ],
    )


def _probabilities(run: Path, recipe: FinetuneRecipe, video: Tensor, device: torch.device) -> Tensor:
    """float32 (clips, classes) of the classifier as the run saved it: where it is sharded, no process has all of it."""
    # Its sizes are the recipe's; heads are in no tensor's shape.
    heads, clip = encoder_arch(recipe.model).heads, recipe.clip
    classifier = load_classifier(run / CLASSIFIER_FILE, heads, image_size=clip.image_size, frames=clip.frames)
    classifier.to(device)
    with torch.inference_mode():
        return torch.softmax(classifier(video.to(device)).float(), dim=1).cpu()


def _answers(probabilities: Tensor, label: int, names: tuple[str, ...]) -> tuple[Answer, ...]:
    """The most probable classes, and the true one after them where it is not among them."""
    best = probabilities.topk(min(ANSWERS, len(probabilities))).indices.tolist()
    shown = best if label in best else [*best, label]
    return tuple(Answer(names[one], float(probabilities[one]), one == label) for one in shown)
