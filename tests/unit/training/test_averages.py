"""Moving averages: the formula, what they follow, and schedules of their decay."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mvd_offline.training.averages import Average, constant, piecewise_linear


def model_with_buffer() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    model.register_buffer("seen", torch.zeros(1))
    return model


def move(model: nn.Module, by: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += by
        model.get_buffer("seen").add_(1)


def test_an_average_starts_at_the_weights_and_follows_them_by_its_decay() -> None:
    model = model_with_buffer()
    start = [parameter.detach().clone() for parameter in model.parameters()]
    average = Average(model, constant(0.75))

    move(model, 1.0)
    average.update(0.0)
    move(model, 1.0)
    average.update(0.0)

    expected = 0.75 * (0.25 * 1.0) + 0.25 * 2.0
    for found, first in zip(average.module.parameters(), start, strict=True):
        torch.testing.assert_close(found.detach(), first + expected)
    assert float(average.module.get_buffer("seen")) == 2.0, "buffers are copied"
    assert not any(parameter.requires_grad for parameter in average.module.parameters())
    assert not average.module.training


def test_an_average_may_hold_a_part_of_the_model_only() -> None:
    model, part = model_with_buffer(), nn.Sequential(nn.Linear(2, 2))
    average = Average(model, lambda epoch: epoch, module=part)
    assert torch.equal(part[0].weight, model[0].weight), "it starts at the weights of its source"  # type: ignore[index]
    before = part[0].weight.detach().clone()

    move(model, 1.0)
    average.update(1.0)
    assert torch.equal(part[0].weight, before), "decay 1 keeps it where it is"
    average.update(0.0)

    assert torch.equal(part[0].weight, model[0].weight), "decay 0 copies"  # type: ignore[index]
    assert average.module is part


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [(0, 0.999), (50, 0.99945), (100, 0.9999), (250, 0.999945), (400, 0.99999), (800, 0.99999)],
)
def test_the_decay_may_grow_with_the_epochs(epoch: float, expected: float) -> None:
    schedule = piecewise_linear(((0, 0.999), (100, 0.9999), (400, 0.99999)))

    assert schedule(epoch) == pytest.approx(expected, abs=1e-12)
