"""The step of each kind of training, as its own loss runs it, on the model that its recipe builds."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mvd_offline.costs.counting import StepCost, forward_flops, step_cost
from mvd_offline.geometry import TokenGrid
from mvd_offline.losses import objectives_of
from mvd_offline.models.classifier import build_classifier
from mvd_offline.models.pretraining import build_pretrainer
from mvd_offline.models.student import PerTokenStudent, Student, student_of
from mvd_offline.recipe import DistillRecipe, FinetuneRecipe, PretrainRecipe, TeacherName
from mvd_offline.video.masking import decoded_tokens, masked_tokens


def distill_step(recipe: DistillRecipe, widths: Mapping[TeacherName, int], clips: int) -> StepCost:
    """A micro-batch of distillation on targets that are there already.

    Args:
        widths: of the active teachers' features.
    """
    view, mask = recipe.view, recipe.mask
    objectives = objectives_of(recipe)
    masked = masked_tokens(mask.kind, view.grid, mask.ratio)
    decoded = decoded_tokens(masked, mask.decoded)

    def loss(student: nn.Module, clips: int) -> Tensor:
        video = torch.empty(clips, 3, view.frames, view.image_size, view.image_size)
        noise = torch.empty(clips, sites)
        if masked:
            hidden = None if decoded == masked else torch.empty(clips, decoded, dtype=torch.long)
            predictions = student(
                video, torch.empty(clips, view.grid.num_tokens, dtype=torch.bool), masked, noise, hidden
            )
        else:
            predictions = student(video, drop_noise=noise)
        terms = [term(predictions[name], torch.empty_like(predictions[name])) for name, term in objectives.items()]
        return torch.stack(terms).sum()

    student = _student(recipe, widths)
    sites = student.drop_path_sites
    return step_cost(student, loss, clips=clips)


def momentum_flops(recipe: DistillRecipe, widths: Mapping[TeacherName, int]) -> int:
    """Operations of a momentum teacher over one clip: the student's encoder, which sees all of it."""
    view = recipe.view
    with torch.device("meta"):
        encoder = _student(recipe, widths).new_encoder()
    video = torch.empty(1, 3, view.frames, view.image_size, view.image_size, device="meta")
    return forward_flops(encoder, lambda model: encoder.encode_tokens(torch.empty_like(video, device="cpu")))


def pretrain_step(recipe: PretrainRecipe, clips: int) -> StepCost:
    """A micro-batch of masked pixel regression."""
    view = recipe.view
    images = recipe.method == "mae"
    grid = pretrain_grid(recipe)
    masked = masked_tokens(recipe.mask.kind, grid, recipe.mask.ratio)

    def loss(model: nn.Module, clips: int) -> Tensor:
        shape = (3, view.image_size, view.image_size) if images else (3, view.frames, view.image_size, view.image_size)
        mask = torch.empty(clips, grid.num_tokens, dtype=torch.bool)
        value: Tensor = model(torch.empty(clips, *shape), mask, masked)
        return value

    with torch.device("meta"):
        model = build_pretrainer(recipe.method, recipe.model, view, recipe.normalize_targets)
    return step_cost(model, loss, clips=clips)


def finetune_step(recipe: FinetuneRecipe, clips: int) -> StepCost:
    """A micro-batch of classification; `clips` counts repeated views."""
    clip = recipe.clip
    # What checkpointing changes follows from the blocks of a model that keeps all activations.
    section = recipe.model.model_copy(update={"checkpoint_activations": False})

    def loss(model: nn.Module, clips: int) -> Tensor:
        video = torch.empty(clips, 3, clip.frames, clip.image_size, clip.image_size)
        logits: Tensor = model(video, torch.empty(clips, sites))
        return F.cross_entropy(logits.float(), torch.empty(clips, dtype=torch.long))

    with torch.device("meta"):
        model = build_classifier(section, clip)
    sites = model.drop_path_sites
    return step_cost(model, loss, clips=clips)


def _student(recipe: DistillRecipe, widths: Mapping[TeacherName, int]) -> Student | PerTokenStudent:
    """The student, which keeps all activations: what checkpointing changes follows from its blocks."""
    section = recipe.student.model_copy(update={"checkpoint_activations": False})
    with torch.device("meta"):
        return student_of(recipe.model_copy(update={"student": section}), widths)


def pretrain_grid(recipe: PretrainRecipe) -> TokenGrid:
    """Tokens that a pretraining model sees: MAE's those of one frame."""
    grid = recipe.view.grid
    return TokenGrid(1, grid.h, grid.w) if recipe.method == "mae" else grid
