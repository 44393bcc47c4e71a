"""Supervised training of a classifier, from a student's encoder or from scratch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from accelerate import Accelerator

from mvd_offline.accounting import begin_launch, write_report
from mvd_offline.errors import UsageError
from mvd_offline.examples.finetune import write_finetune_examples
from mvd_offline.finetuning.task import CLASSIFIER_FILE, EMA_FILE, SCRATCH, FinetuneTask
from mvd_offline.recipe import FinetuneRecipe
from mvd_offline.report.leaving import leave_report
from mvd_offline.training.catalogs import CatalogRows, require_files, say_left_out
from mvd_offline.training.launch import open_accelerator
from mvd_offline.training.loop import TrainingSummary, check_launch, train
from mvd_offline.training.order import BatchShape
from mvd_offline.training.run import IDENTITY_FILE, open_run, read_identity
from mvd_offline.training.state import Checkpoints

__all__ = ["CLASSES_FILE", "CLASSIFIER_FILE", "EMA_FILE", "finetune"]

CLASSES_FILE: Final = "classes.json"
_MIXED_TOGETHER = "mixed_together"


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
        init: a student, VideoMAE or fine-tuned checkpoint; None starts from scratch. It may be gone once the run has a
            checkpoint of its own.

    Raises:
        UsageError: labels that do not fit `model.classes`, videos that are gone, micro-batches that cannot be mixed as
            before or at all.
        CheckpointError: no such file as `init`, or a checkpoint of another size.
        IdentityError: the run was started on other videos, labels or weights.
    """
    accelerator = accelerator or open_accelerator(recipe.training)
    rows = CatalogRows(catalog_path)
    shape, _ = check_launch(len(rows.videos), recipe.optim, recipe.training, accelerator)
    rows.require_labels(recipe.model.classes)
    mixed = _mixed_together(recipe, shape, run)
    require_files(rows, catalog_path, accelerator)
    begun = _begun_from(run, init, recipe.training.keep_last)
    task = FinetuneTask(recipe, rows, run / CLASSIFIER_FILE, start=begun) if begun else FinetuneTask(recipe, rows, init)
    open_run(run, recipe, {"source": rows.source, "init": task.start, **mixed}, main=accelerator.is_main_process)
    if accelerator.is_main_process:
        say_left_out(rows)
        (run / CLASSES_FILE).write_text(json.dumps(list(rows.classes), indent=2) + "\n", encoding="utf-8")
        begin_launch(run, accelerator)
    accelerator.wait_for_everyone()
    summary = train(task, recipe.optim, recipe.training, run=run, accelerator=accelerator)
    if accelerator.is_main_process:
        write_report(run, recipe.optim.batch_size)
        leave_report(
            run,
            lambda: write_finetune_examples(run, recipe, task, rows, accelerator.device),
            trained=summary.steps > 0,
        )
    return summary


def _begun_from(run: Path, init: Path | None, keep_last: int) -> str | None:
    """`FinetuneTask.start` of a run with checkpoints whose `init` is gone; the run's classifier stands in for it."""
    if init is None or init.exists() or not (run / IDENTITY_FILE).is_file() or not Checkpoints(run, keep_last).exist():
        return None
    start = read_identity(run).get("init")
    return None if start == SCRATCH else start


def _mixed_together(recipe: FinetuneRecipe, shape: BatchShape, run: Path) -> dict[str, str]:
    """What names the micro-batches of a run that mixes them: other ones are another training.

    Raises:
        UsageError: the run was started with other ones, or they hold nothing to mix.
    """
    if recipe.mixing is None:
        return {}
    views = shape.micro * recipe.augment.repeats
    if views < 2:
        raise UsageError(
            "mixing needs two views in a micro-batch, and this launch has one: --set optim.micro_batch_size=2 or more "
            "(with fewer processes where a process has one video of a batch), augment.repeats=2, or mixing=null."
        )
    started = read_identity(run).get(_MIXED_TOGETHER) if (run / IDENTITY_FILE).is_file() else None
    if started is not None and int(started) != shape.micro:
        raise UsageError(
            f"{run} was started with micro-batches of {started} videos, whose views mixup and CutMix mix with each "
            f"other, and this launch has micro-batches of {shape.micro}. --set optim.micro_batch_size={started}, with "
            f"as many processes as leave each of them at least {started} videos of a batch of "
            f"{recipe.optim.batch_size}, or give another folder as --run."
        )
    return {_MIXED_TOGETHER: str(shape.micro)}
