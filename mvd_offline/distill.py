"""Masked feature regression: a student learns, at the masked tokens of a clip, what its frozen teachers say there.

The student's view of a clip, its mask and its targets are the same whether the targets are read from a store
(`targets: cached`) or computed beside the student (`targets: online`), so the two runs are the same run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from accelerate import Accelerator

from mvd_offline.accounting import begin_launch, write_distill_report
from mvd_offline.distillation.agreement import from_main
from mvd_offline.distillation.data import DistillData, open_followed_data, open_mixed_data, open_store_data
from mvd_offline.distillation.following import Follow, StoppedWaitingError
from mvd_offline.distillation.mixing import StoreShare
from mvd_offline.distillation.task import INIT, DistillTask
from mvd_offline.errors import UsageError
from mvd_offline.examples.distill import write_distill_examples
from mvd_offline.probing.interlude import ProbeInterlude
from mvd_offline.recipe import DistillRecipe
from mvd_offline.report.leaving import leave_report
from mvd_offline.targets import TargetSource
from mvd_offline.training.launch import open_accelerator
from mvd_offline.training.loop import TrainingSummary, check_launch, train
from mvd_offline.training.run import IDENTITY_FILE, open_run, read_identity
from mvd_offline.training.state import Checkpoints
from mvd_offline.training.stopping import StopRequested, StopSignals


def distill(
    recipe: DistillRecipe,
    *,
    store_dir: Path | Sequence[StoreShare],
    run: Path,
    root: Path | None = None,
    follow: Follow | None = None,
    accelerator: Accelerator | None = None,
) -> TrainingSummary:
    """Train the recipe's student on a store, or on several; goes on if `run` holds a started run.

    Args:
        store_dir: the store's folder; or several stores, each with its share of an epoch, in any order.
        root: folder of the videos of one store, when it is not the one that the store remembers.
        follow: train on a store while `extract` still fills it.

    Raises:
        IdentityError: the store's views, teachers, codec or plan differ from the recipe's or the run's; it lists the
            fields. Or the run has no checkpoint yet, and was to start from other weights than `student.init` has.
        NotSealedError: cached targets from a store that `extract` has not finished, without `follow`.
    """
    accelerator = accelerator or open_accelerator(recipe.training)
    shares = [StoreShare(store_dir, root=root)] if isinstance(store_dir, Path) else list(store_dir)
    _check_way(run, follow)
    if follow:
        return _follow(recipe, shares, follow, run, accelerator)
    if len(shares) == 1 and shares[0].weight == 1:
        data, source = open_store_data(recipe, shares[0], accelerator.device)
    else:
        data, source = open_mixed_data(recipe, shares, accelerator.device)
    return _train(recipe, data, source, shares, run, accelerator)


def _follow(
    recipe: DistillRecipe, shares: Sequence[StoreShare], follow: Follow, run: Path, accelerator: Accelerator
) -> TrainingSummary:
    """`distill` on a store that is still being filled: what an epoch is is fixed by what is there at the start."""
    if len(shares) > 1 or shares[0].weight != 1:
        raise UsageError(
            f"--follow takes one store and no --mix ({len(shares)} stores are given): train on several stores once "
            "they are finished."
        )
    main = accelerator.is_main_process
    samples, data, source = open_followed_data(recipe, shares[0], follow, run, accelerator.device, main=main)
    with StopSignals(speak=False) as signals:
        try:
            samples.begin()
        except StopRequested:
            raise StoppedWaitingError(run, signals.names) from None
    return _train(recipe, data, source, shares, run, accelerator, begin=samples.record)


def _check_way(run: Path, follow: Follow | None) -> None:
    """A started run goes on in the way in which it was started: what names its data depends on that."""
    if not (run / IDENTITY_FILE).is_file():
        return
    started, wanted = read_identity(run).get("follow"), follow.mode if follow else None
    if started != wanted:
        raise UsageError(
            f"{run} was started {_way(started)}, and now is to go on {_way(wanted)}; go on as it was started, or give "
            "another folder as --run."
        )


def _way(mode: str | None) -> str:
    return f"with --follow {mode}" if mode else "without --follow"


def _started_from(run: Path, keep_last: int) -> str | None:
    """Hash of the weights from which a run with checkpoints was started, and which need not be read again."""
    begun = (run / IDENTITY_FILE).is_file() and Checkpoints(run, keep_last).exist()
    return read_identity(run).get(INIT) if begun else None


def _train(
    recipe: DistillRecipe,
    data: DistillData,
    source: TargetSource,
    shares: Sequence[StoreShare],
    run: Path,
    accelerator: Accelerator,
    begin: Callable[[], None] = lambda: None,
) -> TrainingSummary:
    """Begin the run's folder, or go on in it; `begin` is called in it by all processes."""
    started_from = from_main(lambda: _started_from(run, recipe.training.keep_last))
    task = DistillTask(recipe, data, source, init_sha256=started_from)
    check_launch(task.samples_per_epoch(), recipe.optim, recipe.training, accelerator, recipe.quirks)
    probe = ProbeInterlude(recipe.probe, recipe, task.student) if recipe.probe else None
    open_run(run, recipe, task.names(), main=accelerator.is_main_process)
    begin()
    if accelerator.is_main_process:
        begin_launch(run, accelerator)
    accelerator.wait_for_everyone()
    summary = train(
        task,
        recipe.optim,
        recipe.training,
        run=run,
        accelerator=accelerator,
        quirks=recipe.quirks,
        interlude=probe,
    )
    if accelerator.is_main_process:
        write_distill_report(run, recipe, [share.folder for share in shares])
        leave_report(
            run,
            lambda: write_distill_examples(run, recipe, data, source, accelerator.device),
            trained=summary.steps > 0,
        )
    return summary
