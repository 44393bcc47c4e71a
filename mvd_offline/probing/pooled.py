"""The probes of mean tokens: from features and labels of training clips to scores of test clips."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from mvd_offline.probing.knn import knn_scores
from mvd_offline.probing.linear import fit_linear, standardise

PooledKind: TypeAlias = Literal["linear", "knn"]
POOLED_KINDS: Final[tuple[PooledKind, ...]] = get_args(PooledKind)
COPIES: Final = 3
"""Of the features, that fitting keeps at a time."""


def pooled_scores(
    kind: PooledKind, train: Tensor, labels: Tensor, test: Tensor, classes: int, device: torch.device
) -> Tensor:
    """Scores (test rows, classes) of a probe that was fitted on the training rows.

    Args:
        train, test: mean tokens, float32 (rows, D); they are standardised by the training rows first.
        labels: of the training rows, int64 (rows,).
        device: where to compute; features that are too large for it stay in main memory.
    """
    if _fits(train.nbytes + test.nbytes, device):
        train, test = train.to(device), test.to(device)
    train, test = standardise(train, test)
    if kind == "knn":
        return knn_scores(train, labels, test, classes)
    weight, bias = fit_linear(train, labels, classes, device=device)
    return test @ weight.to(test.device) + bias.to(test.device)


def _fits(nbytes: int, device: torch.device) -> bool:
    return device.type != "cuda" or COPIES * nbytes < torch.cuda.mem_get_info(device)[0]
