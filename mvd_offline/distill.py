"""Masked feature regression: a student learns, at the masked tokens of a clip, what its frozen teachers say there.

The student's view of a clip, its mask and its targets are the same whether the targets are read from a store
(`targets: cached`) or computed beside the student (`targets: online`), so the two runs are the same run.
"""

from __future__ import annotations

from pathlib import Path

from accelerate import Accelerator

from mvd_offline.distillation.checking import check_store, present_columns
from mvd_offline.distillation.task import DistillTask
from mvd_offline.local import resolve_root
from mvd_offline.recipe import DistillRecipe
from mvd_offline.shards.store import Store, open_store
from mvd_offline.targets import open_targets
from mvd_offline.training.loop import TrainingSummary, check_launch, train
from mvd_offline.training.run import open_run


def distill(
    recipe: DistillRecipe,
    *,
    store_dir: Path,
    run: Path,
    root: Path | None = None,
    accelerator: Accelerator | None = None,
) -> TrainingSummary:
    """Train the recipe's student on a store; goes on if `run` holds a started run.

    Args:
        root: folder of the videos, when it is not the one that the store remembers.

    Raises:
        IdentityError: the store's views, teachers, codec or plan differ from the recipe's or the run's; it lists the
            fields.
        NotSealedError: cached targets from a store that `extract` has not finished.
    """
    accelerator = accelerator or Accelerator(mixed_precision=recipe.training.precision)
    store = _open(recipe, store_dir)
    check_store(recipe, store)
    source = open_targets(recipe, store, accelerator.device)
    task = DistillTask(recipe, store, source, resolve_root(store_dir, root))
    check_launch(task.samples_per_epoch(), recipe.optim, recipe.training, accelerator)
    open_run(run, recipe, task.names(), main=accelerator.is_main_process)
    accelerator.wait_for_everyone()
    return train(task, recipe.optim, recipe.training, run=run, accelerator=accelerator)


def _open(recipe: DistillRecipe, store_dir: Path) -> Store:
    """The store; for cached targets sealed in the recipe's columns, whatever becomes of others meanwhile."""
    store = open_store(store_dir, sealed=False)
    if recipe.targets == "cached":
        store.require_sealed(present_columns(recipe, store))
    return store
