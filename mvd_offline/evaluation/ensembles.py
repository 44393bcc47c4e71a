"""Several classifiers as one: the softmax of each, averaged over its views and then over the classifiers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mvd_offline.errors import UsageError
from mvd_offline.evaluation.logits import LOGITS_FILE, ViewLogits
from mvd_offline.evaluation.results import RESULT_FILE
from mvd_offline.evaluation.scoring import Predictions, Scores, score

ENSEMBLE_FILE = "ensemble.json"


def ensemble(sources: Sequence[Path]) -> tuple[Predictions, dict[str, Scores]]:
    """The mean of several tests' probabilities, and the scores of each test alone, by its file.

    Args:
        sources: Parquet files that `evaluate` wrote, or the folders that hold them; views may differ.

    Raises:
        UsageError: fewer than two, one given twice, or tests of other videos, labels or classes.
    """
    files = [source / LOGITS_FILE if source.is_dir() else source for source in sources]
    if len(set(files)) < max(2, len(files)):
        raise UsageError(
            f"an ensemble has at least two members, each given once, and these are {len(files)}: "
            f"{', '.join(map(str, files)) or 'none'}. Give several {LOGITS_FILE}, or the folders that hold them."
        )
    members = {str(file): ViewLogits.read(file).predictions() for file in files}
    _check_same_videos(members)
    first = next(iter(members.values()))
    mean = np.mean([member.probabilities for member in members.values()], axis=0)
    return replace(first, probabilities=mean), {name: score(member) for name, member in members.items()}


def check_folder(out: Path) -> None:
    """Refuse to write an ensemble's tables over those of a test.

    Raises:
        UsageError: `out` holds a test.
    """
    if (out / RESULT_FILE).is_file():
        raise UsageError(
            f"--out {out} holds a test ({RESULT_FILE}), whose tables an ensemble's would replace; give another folder."
        )


def _check_same_videos(members: Mapping[str, Predictions]) -> None:
    (name, first), *others = members.items()
    for other_name, other in others:
        if other.classes != first.classes or (first.names and other.names and first.names != other.names):
            raise UsageError(
                f"{other_name} is a test of other classes ({other.classes}) than {name} ({first.classes})."
            )
        known, found = _labels(first), _labels(other)
        if different := sorted(known.items() ^ found.items()):
            raise UsageError(
                f"{other_name} and {name} are tests of different videos: {different[0][0]} is not in both, or has "
                "another label, or could be read in one of them only. Test both on the same catalog."
            )


def _labels(predictions: Predictions) -> dict[str, tuple[int, bool]]:
    """Label of each video, and whether it was read."""
    read = {v: (int(label), True) for v, label in zip(predictions.video_ids, predictions.labels, strict=True)}
    return read | {video.video_id: (video.label, False) for video in predictions.wrong}
