"""The linear probe against the minimum that Newton's method finds in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvd_offline.probing import linear
from mvd_offline.probing.linear import PENALTY, fit_linear, standardise

ROWS, WIDTH, CLASSES = 60, 3, 3
Matrix = NDArray[np.float64]


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    """Overlapping clusters: no plane parts them, so that the minimum lies at moderate weights."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(ROWS) % CLASSES
    return torch.randn(ROWS, WIDTH, generator=generator) + 1.5 * torch.eye(CLASSES)[labels], labels


def newton(features: Tensor, labels: Tensor) -> Matrix:
    """Weights (WIDTH + 1, CLASSES), the bias last, at the minimum of mean cross-entropy + PENALTY * weights^2."""
    inputs = np.concatenate([features.double().numpy(), np.ones((len(features), 1))], axis=1)
    wanted = np.eye(CLASSES)[labels.numpy()]
    found = np.zeros((WIDTH + 1, CLASSES))
    penalty = np.diag([2 * PENALTY] * WIDTH + [0.0])
    for _ in range(50):
        logits = inputs @ found
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        gradient = inputs.T @ (shares - wanted) / len(inputs) + penalty @ found
        curvature = np.zeros((CLASSES, WIDTH + 1, CLASSES, WIDTH + 1))
        for one in range(CLASSES):
            for other in range(CLASSES):
                weights = shares[:, one] * ((one == other) - shares[:, other]) / len(inputs)
                curvature[one, :, other] = (inputs * weights[:, None]).T @ inputs + (one == other) * penalty
        size = CLASSES * (WIDTH + 1)
        # The biases have a common part that changes nothing: the shortest step leaves it at 0.
        step = np.linalg.lstsq(curvature.reshape(size, size), gradient.T.reshape(size), rcond=1e-10)[0]
        found -= step.reshape(CLASSES, WIDTH + 1).T
    return found


def test_the_fit_is_the_minimum_of_its_loss(data: tuple[Tensor, Tensor]) -> None:
    features, labels = data
    expected = newton(features, labels)

    weight, bias = fit_linear(features, labels, CLASSES)

    np.testing.assert_allclose(weight.numpy(), expected[:WIDTH], atol=2e-3)
    np.testing.assert_allclose((bias - bias.mean()).numpy(), expected[WIDTH] - expected[WIDTH].mean(), atol=2e-3)


def test_rows_that_come_in_parts_give_the_same_fit(
    data: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit_linear(*data, CLASSES)
    monkeypatch.setattr(linear, "ROWS_AT_ONCE", 7)
    parts = fit_linear(*data, CLASSES, device=torch.device("cpu"))

    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, atol=2e-3, rtol=0)


def test_a_class_without_a_training_row_is_never_the_answer(data: tuple[Tensor, Tensor]) -> None:
    features, labels = data
    weight, bias = fit_linear(features, labels, CLASSES + 1)

    assert weight.shape == (WIDTH, CLASSES + 1)
    assert int((features @ weight + bias).argmax(dim=1).max()) < CLASSES


def test_features_are_standardised_by_the_training_rows() -> None:
    train, test = torch.tensor([[0.0, 5.0], [2.0, 5.0]]), torch.tensor([[3.0, 5.0]])

    ours, theirs = standardise(train, test)

    # The deviation of 0 and 2, with n - 1, is the root of 2; a channel that is constant stays finite.
    torch.testing.assert_close(ours, torch.tensor([[-1.0, 0.0], [1.0, 0.0]]) / 2**0.5, atol=1e-5, rtol=0)
    torch.testing.assert_close(theirs, torch.tensor([[2.0, 0.0]]) / 2**0.5, atol=1e-5, rtol=0)
