"""How large a recipe's teachers are, and what one clip costs them, without loading their weights."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mvd_offline.costs.counting import forward_flops
from mvd_offline.errors import UsageError
from mvd_offline.models.checkpoints import read_checkpoint
from mvd_offline.models.teachers import empty_teacher, released_patch_size
from mvd_offline.models.vit import ARCHS, Arch
from mvd_offline.recipe import DistillRecipe, TeacherName, TeacherSection
from mvd_offline.shards.store import Store


@dataclass(frozen=True)
class TeacherCost:
    """A frozen teacher's size, and the operations of its forward pass over one clip."""

    arch: Arch
    patch_size: int
    known_from: str
    """`store`, `recipe`, `weights`; or `name`: assumed, because the weights' name says so."""
    parameters: int
    flops: int


def teacher_cost(recipe: DistillRecipe, name: TeacherName, store: Store | None = None) -> TeacherCost:
    """The cost of a recipe's teacher; its sizes are the store's where it has the column.

    Raises:
        UsageError: nothing tells the size. RecipeError: its token grid is not the view's.
    """
    section, view = recipe.teachers[name], recipe.view
    arch, patch_size, known_from = _size(section, name, _stored(recipe, name, store))
    teacher = empty_teacher(section, view, name, arch, patch_size)
    parameters = sum(parameter.numel() for parameter in teacher.parameters())
    flops = forward_flops(
        teacher, lambda model: model(torch.empty(1, 3, view.frames, teacher.image_size, teacher.image_size))
    )
    return TeacherCost(arch, patch_size, known_from, parameters, flops)


def _stored(recipe: DistillRecipe, name: TeacherName, store: Store | None) -> dict[str, Any] | None:
    """The architecture that a store's column records."""
    column = recipe.column(name)
    if store is None or column not in store.columns:
        return None
    architecture: dict[str, Any] = store.header.columns[column].source["architecture"]
    return architecture


def _size(section: TeacherSection, name: TeacherName, stored: dict[str, Any] | None) -> tuple[Arch, int, str]:
    if stored is not None:
        return Arch(stored["width"], stored["depth"], stored["heads"]), stored["patch"], "store"
    weights = section.weights
    if Path(weights).exists():
        # Fake tensors are not read from the file; .safetensors are mapped, and not read either.
        with contextlib.nullcontext() if Path(weights).suffix == ".safetensors" else FakeTensorMode():
            checkpoint = read_checkpoint(weights)
            return checkpoint.arch(section.heads), checkpoint.patch_size, "weights"
    found = re.search("|".join(ARCHS), weights)
    if found is None:
        raise UsageError(
            f"teachers.{name}.weights: {weights} is not on this machine, and its name has none of {', '.join(ARCHS)}, "
            f"so that nothing tells its size. Give --store, or the file, or --set teachers.{name}.weights=random:ARCH."
        )
    arch = ARCHS[found[0]]
    heads = section.heads or arch.heads
    known_from = "recipe" if weights.startswith("random:") else "name"
    return Arch(arch.width, arch.depth, heads), released_patch_size(name, found[0]), known_from
