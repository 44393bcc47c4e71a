"""`mvd-offline analyze`: what teachers and students learn, in pictures and numbers; one file a command."""

from __future__ import annotations

import typer

from mvd_offline.cli.analyze_compare import compare
from mvd_offline.cli.analyze_curves import curves
from mvd_offline.cli.analyze_features import features
from mvd_offline.cli.analyze_gradients import gradients
from mvd_offline.cli.analyze_predictions import predictions
from mvd_offline.cli.analyze_report import report
from mvd_offline.cli.analyze_similarity import similarity

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="See what teachers and students learn, and what runs did."
)
for command, summary in (
    (similarity, "How alike frames are to models (the paper's figures 3 to 5)."),
    (features, "A video's features in colours, as a film."),
    (predictions, "Where a student is wrong, before and after training."),
    (gradients, "What a codec's error does to loss and gradient."),
    (curves, "The curves of several runs in one figure."),
    (compare, "Runs side by side, in a table."),
    (report, "Write the page of a run again."),
):
    app.command(short_help=summary)(command)
