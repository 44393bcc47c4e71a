"""The result of a test and the files that it leaves."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mvd_offline.evaluation.logits import LOGITS_FILE, PREDICTIONS_FILE, ViewLogits, write_predictions
from mvd_offline.evaluation.pictures import draw_confusion
from mvd_offline.evaluation.scoring import ClassResult, Predictions, Scores, confusion
from mvd_offline.evaluation.videos import Unreadable, Unreadables
from mvd_offline.models.saving import write_whole
from mvd_offline.training.run import EVALUATION_FILE

RESULT_FILE = EVALUATION_FILE
PER_CLASS_FILE = "per_class.csv"
CONFUSION_TABLE = "confusion.csv"
CONFUSION_PICTURE = "confusion.png"


@dataclass(frozen=True)
class Timing:
    """Where a test's time went.

    Attributes:
        seconds: from the first decode to the last answer.
        decode_wait_share: share of its processes' time that they waited for decoded views.
    """

    seconds: float
    decode_wait_share: float
    videos_per_second: float
    processes: int


@dataclass(frozen=True)
class Evaluation(Scores):
    """Accuracies of a test; each video counts once, whatever the number of processes.

    Attributes:
        unreadables: what was done with unreadable videos: `wrong` ones are among `videos`, excluded ones are not.
        on_training_videos: the classifier saw these very videos in training, so that this is no test.
        settings: what the result depends on: weights, videos, clip, precision, positions.
        step: of its run, after which the classifier had these weights; None where nobody recorded it.
        timing: None for a result that was read, not measured; no part of the file, which is the same on any machine.
    """

    segments: int
    crops: int
    unreadables: Unreadables
    unreadable: tuple[Unreadable, ...]
    on_training_videos: bool
    settings: dict[str, Any]
    step: int | None = None
    timing: Timing | None = field(default=None, compare=False)

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "timing"}

    @classmethod
    def read(cls, folder: Path) -> Evaluation | None:
        """The result in a folder; None where there is none, or none of this version's form."""
        try:
            data = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
            classes = tuple(ClassResult(**row) for row in data.pop("classes"))
            unreadable = tuple(Unreadable(**row) for row in data.pop("unreadable"))
            return cls(classes=classes, unreadable=unreadable, **data)
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None


def write_result(folder: Path, result: Evaluation, logits: ViewLogits, predictions: Predictions) -> None:
    """Leave everything that is known of a test in `folder`; `evaluation.json` comes last."""
    (folder / RESULT_FILE).unlink(missing_ok=True)
    logits.write(folder / LOGITS_FILE)
    write_tables(folder, predictions, result)
    write_json(folder / RESULT_FILE, result.to_json())


def write_tables(folder: Path, predictions: Predictions, scores: Scores) -> None:
    """Per class, confusion and predictions: what a test and an ensemble have in common."""
    write_predictions(predictions, folder / PREDICTIONS_FILE)
    _write_csv(folder / PER_CLASS_FILE, [_PER_CLASS, *map(_class_row, scores.classes)])
    names = [predictions.name(label) for label in range(predictions.classes)]
    table = confusion(predictions)
    unread = ["unreadable"] * bool(predictions.wrong)
    header = ["label", "name", *names, *unread]
    rows = [[k, name, *map(int, table[k, : len(names) + len(unread)])] for k, name in enumerate(names)]
    _write_csv(folder / CONFUSION_TABLE, [header, *rows])
    draw_confusion(table, names, folder / CONFUSION_PICTURE)


def write_json(path: Path, data: Any) -> None:
    write_whole(path, (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode())


_PER_CLASS = ("label", "name", "videos", "top1", "top5", "top1_accuracy", "top5_accuracy")


def _class_row(row: ClassResult) -> list[Any]:
    shares = [f"{right / row.videos:.4f}" for right in (row.top1, row.top5)]
    return [row.label, row.name, row.videos, row.top1, row.top5, *shares]


def _write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_whole(path, text.getvalue().encode())
