"""The linear probe: how much of a label a weighted sum of an encoder's mean token gives away."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

PENALTY: Final = 1e-3
"""Of the squared weights."""
ITERATIONS: Final = 200
ROWS_AT_ONCE: Final = 65536
"""Rows whose loss is computed at a time: bounds the memory that logits take."""


def standardise(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Both (rows, D), each channel with the training rows' mean taken out, in units of their deviation."""
    mean, deviation = train.mean(dim=0), train.std(dim=0) + 1e-6
    return (train - mean) / deviation, (test - mean) / deviation


def fit_linear(
    features: Tensor, labels: Tensor, classes: int, *, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression by L-BFGS: weight (D, classes) and bias (classes,) of (rows, D) and (rows,).

    Args:
        device: where to compute; the features' own when None. Features that do not fit there stay where they are and
            are brought there in parts: loss and gradient are always those of all rows.
    """
    device = device or features.device
    weight = torch.zeros(features.shape[1], classes, device=device, requires_grad=True)
    bias = torch.zeros(classes, device=device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=ITERATIONS, line_search_fn="strong_wolfe")
    parts = list(zip(features.split(ROWS_AT_ONCE), labels.to(device).split(ROWS_AT_ONCE), strict=True))

    def loss() -> float:
        optimizer.zero_grad()
        total = torch.zeros((), device=device)
        for rows, wanted in parts:
            value = F.cross_entropy(rows.to(device) @ weight + bias, wanted) * (len(rows) / len(features))
            value.backward()
            total += value.detach()
        penalty = PENALTY * weight.square().sum()
        penalty.backward()
        return float(total + penalty.detach())

    optimizer.step(loss)
    return weight.detach(), bias.detach()
