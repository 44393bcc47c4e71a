"""The nearest-neighbour probe against a loop over all pairs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mvd_offline.probing import knn
from mvd_offline.probing.knn import knn_scores

CLASSES = 5


def slow_votes(train: Tensor, labels: Tensor, test: Tensor, neighbours: int, temperature: float) -> Tensor:
    votes = torch.zeros(len(test), CLASSES, dtype=torch.float64)
    for row, one in enumerate(test.double()):
        cosines = [float(one @ other / (one.norm() * other.norm())) for other in train.double()]
        for place in sorted(range(len(train)), key=lambda place: -cosines[place])[:neighbours]:
            votes[row, labels[place]] += math.exp(cosines[place] / temperature)
    return votes


@pytest.mark.parametrize("at_once", [1, 1 << 20], ids=["row by row", "together"])
@pytest.mark.parametrize("neighbours", [1, 20, 1000])
def test_the_votes_are_those_of_all_pairs(neighbours: int, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "SIMILARITIES_AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(1)
    train, test = torch.randn(50, 6, generator=generator), torch.randn(9, 6, generator=generator)
    labels = torch.arange(50) % 4

    votes = knn_scores(train, labels, test, CLASSES, neighbours=neighbours, temperature=0.1)

    torch.testing.assert_close(votes.double(), slow_votes(train, labels, test, neighbours, 0.1), rtol=1e-4, atol=0)
    assert not votes[:, 4].any(), "nobody is of the last class"


def test_one_neighbour_that_is_like_the_clip_outvotes_many_that_are_not() -> None:
    train = torch.cat([torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.9]]).repeat(19, 1)])
    labels = torch.tensor([0] + [1] * 19)

    assert knn_scores(train, labels, torch.tensor([[2.0, 0.1]]), 2).argmax() == 0
    assert knn_scores(train, labels, torch.tensor([[2.0, 0.1]]), 2, temperature=10.0).argmax() == 1
