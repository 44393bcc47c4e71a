"""Every recipe builds at full size, with the number of parameters that the published facts give."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from mvd_offline.losses import objectives_of
from mvd_offline.models.pretraining import MAEPretrainer, build_pretrainer
from mvd_offline.models.student import student_of
from mvd_offline.models.vit import ARCHS
from mvd_offline.recipe import DistillRecipe, TeacherName, load_distill, load_pretrain, shipped_recipes

DISTILL = [name for name in shipped_recipes() if name.startswith("distill/")]
PRETRAIN = [name for name in shipped_recipes() if name.startswith("pretrain/")]

# Of the classifiers for 400 classes: encoder, a norm, and the head. A student's encoder has a norm as well.
CLASSIFIERS = {"vit_small": 22_033_936, "vit_base": 86_534_800, "vit_large": 304_270_736, "vit_huge": 632_119_440}
# Of the released students with two decoders, by student and width of the teachers.
STUDENTS = {
    ("vit_small", 768): 29_865_600,
    ("vit_small", 1024): 30_062_720,
    ("vit_base", 768): 116_942_592,
    ("vit_base", 1024): 117_336_320,
    ("vit_large", 1024): 331_179_008,
    ("vit_huge", 1280): 713_657_600,
}
WIDTHS = {"small": 384, "base": 768, "large": 1024, "huge": 1280}


def encoder_parameters(arch: str, *, tubelet_size: int = 2, patch_size: int = 16) -> int:
    """With the final norm."""
    width = ARCHS[arch].width
    patches = 3 * width * (2 * 16 * 16 - tubelet_size * patch_size**2)
    return CLASSIFIERS[arch] - 400 * (width + 1) - patches


def decoder_parameters(arch: str, out_features: int) -> int:
    """Of one decoder of the released shape: half of what a student has beyond its encoder, with another head."""
    known = max(width for student, width in STUDENTS if student == arch)
    one = (STUDENTS[arch, known] - encoder_parameters(arch)) // 2
    width = {"vit_large": 512, "vit_huge": 640}.get(arch, ARCHS[arch].width)
    return one + (out_features - known) * (width + 1)


def teacher_widths(recipe: DistillRecipe) -> dict[TeacherName, int]:
    """Their weights are not at hand; their names tell."""
    return {
        name: WIDTHS[re.search("|".join(WIDTHS), recipe.teachers[name].weights).group()]  # type: ignore[union-attr]
        for name in recipe.active_teachers
    }


def expected_parameters(recipe: DistillRecipe) -> int:
    arch, view = recipe.student.arch, recipe.view
    encoder = encoder_parameters(arch, tubelet_size=view.tubelet_size, patch_size=view.patch_size)
    outputs = list(teacher_widths(recipe).values())
    if recipe.mask.kind == "none":  # two layers
        width = ARCHS[arch].width
        return encoder + sum(width * (width + 1) + out * (width + 1) for out in outputs)
    if recipe.pixels:
        outputs.append(view.tubelet_size * 16 * 16 * 3)
    if recipe.momentum:
        outputs.append(ARCHS[arch].width)
    return encoder + sum(decoder_parameters(arch, out) for out in outputs)


def trainable(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("name", DISTILL)
def test_the_student_of_a_recipe_has_as_many_parameters_as_published(name: str) -> None:
    recipe = load_distill(name)
    with torch.device("meta"):
        student = student_of(recipe, teacher_widths(recipe))

    assert all(parameter.is_meta for parameter in student.parameters())
    assert trainable(student) == expected_parameters(recipe)
    assert list(student.targets) == list(objectives_of(recipe))
    if "_from_vit_" in name:
        assert trainable(student) == STUDENTS[recipe.student.arch, teacher_widths(recipe)["video"]]


@pytest.mark.parametrize("name", PRETRAIN)
def test_the_model_of_a_pretraining_recipe_builds_around_the_published_encoder(name: str) -> None:
    recipe = load_pretrain(name)
    with torch.device("meta"):
        model = build_pretrainer(recipe.method, recipe.model, recipe.view, recipe.normalize_targets)

    arch, patch_size = recipe.model.arch, recipe.view.patch_size
    width, depth = ARCHS[arch].width, ARCHS[arch].depth
    if isinstance(model, MAEPretrainer):
        # A class token, and a bias for the keys of every block.
        encoder = encoder_parameters(arch, tubelet_size=1, patch_size=patch_size) + width + depth * width
        decoder = [model.decoder_embed, model.decoder_blocks, model.decoder_norm, model.decoder_pred]
        rest = sum(map(trainable, decoder)) + model.mask_token.numel()
        assert (len(model.decoder_blocks), model.decoder_norm.normalized_shape) == (8, (512,))
    else:
        encoder = encoder_parameters(arch, tubelet_size=recipe.view.tubelet_size, patch_size=patch_size)
        assert trainable(model.encoder) == encoder
        rest = sum(map(trainable, [model.encoder_to_decoder, model.decoder])) + model.mask_token.numel()
    assert trainable(model) == encoder + rest
