"""What a test found, counted: every video once, whatever the number of views and processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mvd_offline.evaluation.videos import Unreadable

_VIDEOS_AT_A_TIME = 256


@dataclass(frozen=True)
class Predictions:
    """Mean probabilities of each video; those that count as wrong answers have none.

    Attributes:
        labels: int64 (V,).
        probabilities: float64 (V, classes).
        wrong: videos that could not be read, and count.
        names: of the classes; empty where nobody named them.
    """

    video_ids: tuple[str, ...]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    wrong: tuple[Unreadable, ...] = ()
    names: tuple[str, ...] = ()

    @property
    def classes(self) -> int:
        return self.probabilities.shape[1]

    def name(self, label: int) -> str:
        return self.names[label] if self.names else str(label)

    def answers(self) -> NDArray[np.int64]:
        """The most probable class of each video (V,)."""
        return ranked(self.probabilities, 1)[:, 0]


@dataclass(frozen=True)
class ClassResult:
    """Videos of one class, and how many of them were right."""

    label: int
    name: str
    videos: int
    top1: int
    top5: int


@dataclass(frozen=True)
class Scores:
    """Accuracies are shares of `videos`. The mean over classes counts every class that has a video alike."""

    top1: float
    top5: float
    mean_class_accuracy: float
    videos: int
    classes: tuple[ClassResult, ...]


def mean_probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """The softmax of each view, averaged over views: (V, views, classes) -> float64 (V, classes) (paper's protocol)."""
    means = np.empty((logits.shape[0], logits.shape[2]))
    for first in range(0, len(logits), _VIDEOS_AT_A_TIME):
        part = logits[first : first + _VIDEOS_AT_A_TIME].astype(np.float64)
        part = np.exp(part - part.max(axis=2, keepdims=True))
        means[first : first + len(part)] = (part / part.sum(axis=2, keepdims=True)).mean(axis=1)
    return means


def ranked(probabilities: NDArray[np.float64], best: int) -> NDArray[np.int64]:
    """The `best` most probable classes of each video; ties go to the lower class, so that no sort decides."""
    return np.argsort(-probabilities, axis=1, kind="stable")[:, :best]


def score(predictions: Predictions) -> Scores:
    """Top-1, top-5 and mean class accuracy."""
    first_five = ranked(predictions.probabilities, 5)
    right = first_five == predictions.labels[:, None]
    labels = np.concatenate([predictions.labels, _labels(predictions.wrong)])
    unread = np.zeros(len(predictions.wrong), bool)
    top1, top5 = (np.concatenate([hits, unread]) for hits in (right[:, 0], right.any(axis=1)))
    classes = []
    for label in map(int, np.unique(labels)):
        videos = labels == label
        counts = (int(hits.sum()) for hits in (videos, top1[videos], top5[videos]))
        classes.append(ClassResult(label, predictions.name(label), *counts))
    return Scores(
        top1=int(top1.sum()) / len(labels),
        top5=int(top5.sum()) / len(labels),
        mean_class_accuracy=sum(c.top1 / c.videos for c in classes) / len(classes),
        videos=len(labels),
        classes=tuple(classes),
    )


def confusion(predictions: Predictions) -> NDArray[np.int64]:
    """Videos by label and answer: (classes, classes + 1). The last column counts the unreadable ones."""
    classes = predictions.classes
    table = np.zeros((classes, classes + 1), np.int64)
    np.add.at(table, (predictions.labels, predictions.answers()), 1)
    np.add.at(table, (_labels(predictions.wrong), np.int64(classes)), 1)
    return table


def _labels(videos: Sequence[Unreadable]) -> NDArray[np.int64]:
    return np.array([video.label for video in videos], np.int64)
