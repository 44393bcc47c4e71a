"""The nearest-neighbour probe: which classes the training clips most like a test clip have (DINO's protocol)."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

NEIGHBOURS: Final = 20
TEMPERATURE: Final = 0.07
SIMILARITIES_AT_ONCE: Final = 1 << 27
"""Bounds the memory of a block of test rows against all training rows: half a gigabyte."""


def knn_scores(
    train: Tensor,
    labels: Tensor,
    test: Tensor,
    classes: int,
    *,
    neighbours: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> Tensor:
    """Votes (test rows, classes): each of the most similar training rows gives its class exp(cosine / temperature).

    Args:
        train, test: (rows, D) on one device; `labels`: (training rows,).
        neighbours: that vote; all training rows where there are fewer.
    """
    train, labels = F.normalize(train, dim=1), labels.to(train.device)
    votes = []
    for rows in F.normalize(test, dim=1).split(max(1, SIMILARITIES_AT_ONCE // len(train))):
        nearest = (rows @ train.T).topk(min(neighbours, len(train)), dim=1)
        weights = (nearest.values / temperature).exp()
        votes.append(weights.new_zeros(len(rows), classes).scatter_add_(1, labels[nearest.indices], weights))
    return torch.cat(votes)
