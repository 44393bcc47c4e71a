"""What other targets make of a student's loss and gradient, against the same by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mvd_offline.analysis.target_effects import Shown, TargetComparison
from mvd_offline.geometry import TokenGrid
from mvd_offline.losses import Objective
from mvd_offline.models.inputs import normalize
from mvd_offline.models.student import Student
from mvd_offline.models.vit import Arch, gather_tokens

ROWS, TOKENS, HIDDEN, WIDTH = 5, 8, 6, 12


@pytest.fixture
def student() -> Student:
    torch.manual_seed(0)
    arch = Arch(width=32, depth=1, heads=2)
    # Drop path would make two passes differ.
    return Student(arch, decoder=arch, grid=TokenGrid(2, 2, 2), targets={"image": WIDTH, "video": WIDTH}, drop_path=0.5)


@pytest.fixture
def shown() -> Shown:
    torch.manual_seed(1)
    tokens = torch.stack([torch.randperm(TOKENS)[:HIDDEN].sort().values for _ in range(ROWS)])
    mask = torch.zeros(ROWS, TOKENS, dtype=torch.bool).scatter(1, tokens, True)
    return Shown(torch.randint(0, 256, (ROWS, 4, 32, 32, 3), dtype=torch.uint8), mask, tokens)


def drawn(seed: int) -> Tensor:
    return torch.randn(ROWS, TOKENS, WIDTH, generator=torch.Generator().manual_seed(seed))


def by_hand(student: Student, shown: Shown, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of all rows at once, and its gradient."""
    assert shown.tokens is not None
    prediction = student.eval()(normalize(shown.pixels), shown.mask)["video"]
    loss = F.smooth_l1_loss(prediction, gather_tokens(targets, shown.tokens))
    gradients = torch.autograd.grad(loss, list(student.parameters()), allow_unused=True)
    return loss.detach(), torch.cat([g.flatten() for g in gradients if g is not None])


@pytest.mark.parametrize("micro", [2, 8])
def test_it_is_what_the_loss_and_gradient_of_the_whole_batch_say(student: Student, shown: Shown, micro: int) -> None:
    exact, other = drawn(2), drawn(2) + 0.3 * drawn(3)
    comparison = TargetComparison(student, "video", Objective(1.0), shown, exact, micro_batch_size=micro)

    effect = comparison.effect(other)

    (loss, gradient), (changed, moved) = by_hand(student, shown, exact), by_hand(student, shown, other)
    assert effect.loss == pytest.approx(float(loss), rel=1e-5)
    assert effect.change == pytest.approx(float(changed / loss) - 1, rel=1e-4)
    assert effect.gradient_cosine == pytest.approx(float(F.cosine_similarity(gradient, moved, dim=0)), abs=1e-5)
    assert effect.gradient_difference == pytest.approx(float((moved - gradient).norm() / gradient.norm()), rel=1e-4)
    assert all(parameter.grad is None for parameter in student.parameters())


def test_the_same_targets_change_nothing(student: Student, shown: Shown) -> None:
    comparison = TargetComparison(student, "video", Objective(1.0), shown, drawn(2))

    effect = comparison.effect(drawn(2))

    assert dataclasses.astuple(effect)[1:] == (0.0, 1.0, 0.0)


def test_what_the_student_is_not_asked_for_does_not_count(student: Student, shown: Shown) -> None:
    comparison = TargetComparison(student, "video", Objective(1.0), shown, drawn(2))
    others = torch.where(shown.mask[..., None], drawn(2), drawn(3))

    assert comparison.effect(others).gradient_difference == 0
