"""Operations of a whole pretraining, so that a row can be given as many as another one has."""

from __future__ import annotations

from pathlib import Path

from mvd_offline.costs.dry_run import DryRun, dry_run_distill, dry_run_pretrain
from mvd_offline.distillation.mixing import StoreShare
from mvd_offline.recipe import DistillRecipe, PretrainRecipe
from mvd_offline.shards.store import open_store


def student_flops(recipe: DistillRecipe, store: Path) -> int:
    """Of all steps of a student, and of the teachers that it learns from.

    Teachers see every clip of every step online, and every view of the store once where their targets are cached; what
    it took to train them is not in it, as it is not in the paper's epochs.
    """
    dry = dry_run_distill(recipe, stores=(StoreShare(store, 1.0),), samples=None, processes=1, tflops=1.0)
    views = len(open_store(store, sealed=False).view_ids) if recipe.targets == "cached" else _clips(dry)
    return _clips(dry) * dry.flops.training + views * sum(dry.flops.teachers.values())


def teacher_flops(recipe: PretrainRecipe, catalog: Path) -> int:
    """Of all steps of a masked autoencoder."""
    dry = dry_run_pretrain(recipe, catalog=catalog, samples=None, processes=1, tflops=1.0)
    return _clips(dry) * dry.flops.training


def _clips(dry: DryRun) -> int:
    assert dry.steps is not None  # the store or the catalog tells
    return dry.steps.stop * dry.launch.clips
