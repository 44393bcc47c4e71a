"""What a training leaves for its reader at its end: examples and the page. A drawing that fails, fails nothing else."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from mvd_offline.examples.files import have_examples
from mvd_offline.report.run_page import write_run_report
from mvd_offline.training.run import PAGE_FILE


def leave_report(run: Path, write_examples: Callable[[], None], *, trained: bool) -> None:
    """Write a finished run's examples and its page; one process of a launch calls it.

    Args:
        trained: this launch did some of the run's steps: what is there is of an earlier state.
    """
    due = trained or not have_examples(run)
    if due:
        _try(write_examples, f"the example predictions of {run} are missing", "run the same command again")
    if due or not (run / PAGE_FILE).is_file():
        _write_page(run)


def refresh_report(run: Path) -> None:
    """Write the page of a run again where it has one: something came to it."""
    if (run / PAGE_FILE).is_file():
        _write_page(run)


def _write_page(run: Path) -> None:
    remedy = f"`mvd-offline analyze report {shlex.quote(str(run))}`"
    _try(lambda: write_run_report(run), f"{run / PAGE_FILE} could not be written", remedy)


def _try(draw: Callable[[], object], trouble: str, remedy: str) -> None:
    try:
        draw()
    except Exception as error:
        # The training is done and saved: whatever is wrong with its pictures must not look like its failure.
        reason = " ".join(str(error).split()) or type(error).__name__
        Console(stderr=True, soft_wrap=True, highlight=False).print(
            f"{trouble} ({type(error).__name__}: {reason}); all else of the run is there. To try again: {remedy}",
            markup=False,
        )
