"""How a test is counted: ties, five best, classes, unreadable videos."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mvd_offline.evaluation.scoring import Predictions, confusion, mean_probabilities, score
from mvd_offline.evaluation.videos import Unreadable


def predictions(labels: list[int], *rows: list[float], wrong: tuple[int, ...] = (), names: str = "") -> Predictions:
    return Predictions(
        video_ids=tuple(f"{i}/same_name.mp4" for i in range(len(labels))),
        labels=np.array(labels, np.int64),
        probabilities=np.array(rows),
        wrong=tuple(Unreadable(f"gone/{i}.mp4", label, "no such file") for i, label in enumerate(wrong)),
        names=tuple(names),
    )


def test_top1_and_top5_by_hand() -> None:
    descending = [0.4, 0.2, 0.15, 0.1, 0.08, 0.05, 0.02]
    result = score(predictions([0, 4, 5, 6], *[descending] * 4, names="abcdefg"))
    assert (result.top1, result.top5, result.videos) == (1 / 4, 2 / 4, 4)
    assert [(c.label, c.name, c.videos, c.top1, c.top5) for c in result.classes] == [
        (0, "a", 1, 1, 1),
        (4, "e", 1, 0, 1),
        (5, "f", 1, 0, 0),
        (6, "g", 1, 0, 0),
    ]


def test_a_tie_goes_to_the_lower_class() -> None:
    tied = [0.1, 0.3, 0.3, 0.3]
    assert score(predictions([1], tied)).top1 == 1.0
    assert score(predictions([2], tied)).top1 == 0.0
    six_alike = [0.15, 0.17, 0.17, 0.17, 0.17, 0.17]
    assert [score(predictions([k], six_alike)).top5 for k in (5, 0)] == [1.0, 0.0]
    seven_alike = [1 / 7] * 7
    assert [score(predictions([k], seven_alike)).top5 for k in (4, 5)] == [1.0, 0.0]


def test_fewer_than_five_classes_are_all_among_the_first_five() -> None:
    result = score(predictions([0, 1], [0.9, 0.1], [0.9, 0.1]))
    assert (result.top1, result.top5) == (0.5, 1.0)


def test_the_mean_over_classes_counts_a_rare_class_like_a_frequent_one() -> None:
    first, second = [0.9, 0.1, 0.0], [0.1, 0.9, 0.0]
    result = score(predictions([0, 0, 0, 1], first, first, first, first))
    assert (result.top1, result.mean_class_accuracy) == (3 / 4, 1 / 2)
    # The third class has no video, and no say.
    assert score(predictions([0, 1], first, second)).mean_class_accuracy == 1.0


def test_an_unreadable_video_that_counts_is_a_wrong_answer_of_its_class() -> None:
    result = score(predictions([0], [0.9, 0.1], wrong=(0, 1, 1)))
    assert (result.top1, result.top5, result.videos) == (1 / 4, 1 / 4, 4)
    assert result.mean_class_accuracy == (1 / 2 + 0) / 2
    assert [(c.label, c.videos, c.top1, c.top5) for c in result.classes] == [(0, 2, 1, 1), (1, 2, 0, 0)]


def test_the_confusion_matrix_has_a_column_for_unreadable_videos() -> None:
    table = confusion(predictions([0, 0, 1], [0.9, 0.1], [0.2, 0.8], [0.1, 0.9], wrong=(1, 1)))
    assert table.tolist() == [[1, 1, 0], [0, 1, 2]]


def test_the_softmax_of_the_views_is_averaged_not_their_logits() -> None:
    views = np.array([[[4.0, 0.0], [-2.0, 0.0]]], np.float32)
    mean = mean_probabilities(views)
    assert mean[0, 0] == pytest.approx(sum(1 / (1 + math.exp(-x)) for x in (4, -2)) / 2, rel=1e-15)
    assert mean.dtype == np.float64
    # Logits beyond what exp can take, and more videos than are done at a time.
    assert mean_probabilities(np.full((300, 1, 2), 1e4, np.float32)).tolist() == [[0.5, 0.5]] * 300
