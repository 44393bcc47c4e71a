"""A recipe as it can be measured on the machine at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from mvd_offline.costs.teachers import teacher_cost
from mvd_offline.models.vit import ARCHS
from mvd_offline.recipe import DistillRecipe, TeacherName


def on_this_machine(recipe: DistillRecipe) -> tuple[DistillRecipe, list[str]]:
    """The recipe as it can be run here: random weights for teachers that are missing, no float16 without a GPU."""
    notes: list[str] = []
    if not torch.cuda.is_available():
        halves = [name for name, teacher in recipe.teachers.items() if teacher.precision == "float16"]
        if recipe.training.precision == "fp16" or halves:
            notes.append("float16 needs a GPU: float32 in its place (--set training.precision=bf16 for bfloat16)")
        if recipe.training.precision == "fp16":
            recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update={"precision": "no"})})
        recipe = _with_teachers(recipe, {name: {"precision": "float32"} for name in halves})
    for name in recipe.active_teachers:
        cost = teacher_cost(recipe, name)
        if cost.known_from != "name":
            continue
        arch = next(known for known, size in ARCHS.items() if replace(size, heads=cost.arch.heads) == cost.arch)
        notes.append(f"{recipe.teachers[name].weights} is not on this machine: random weights of its size")
        changed = {"weights": f"random:{arch}:1", "heads": cost.arch.heads, "sha256": None}
        recipe = _with_teachers(recipe, {name: changed})
    return recipe, notes


def _with_teachers(recipe: DistillRecipe, changes: Mapping[TeacherName, Mapping[str, Any]]) -> DistillRecipe:
    changed = {name: recipe.teachers[name].model_copy(update=dict(fields)) for name, fields in changes.items()}
    return recipe.model_copy(update={"teachers": {**recipe.teachers, **changed}})
