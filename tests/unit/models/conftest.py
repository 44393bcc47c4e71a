"""Small models of random weights, far from their initial values."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from mvd_offline.geometry import TokenGrid
from mvd_offline.models.classifier import Classifier
from mvd_offline.models.pretraining import MAEPretrainer, VideoMAEPretrainer
from mvd_offline.models.student import Student
from mvd_offline.models.vit import Arch

GRID = TokenGrid(2, 3, 3)
ENCODER, DECODER = Arch(48, 2, 3), Arch(32, 1, 2)


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture
def make_student() -> Callable[..., Student]:
    def make(**changes) -> Student:
        options = {"grid": GRID, "targets": {"image": 24, "video": 40}, "decoder": DECODER} | changes
        return randomised(Student(ENCODER, **options))

    return make


@pytest.fixture
def student(make_student) -> Student:
    return make_student()


@pytest.fixture
def classifier() -> Classifier:
    return randomised(Classifier(ENCODER, grid=GRID, classes=5))


@pytest.fixture
def videomae() -> VideoMAEPretrainer:
    return randomised(VideoMAEPretrainer(ENCODER, grid=GRID, patch_size=16, tubelet_size=2, decoder=DECODER))


@pytest.fixture
def mae() -> MAEPretrainer:
    return randomised(MAEPretrainer(ENCODER, image_size=48, patch_size=16, decoder=DECODER))


@pytest.fixture
def video() -> torch.Tensor:
    return torch.randn(2, 3, 4, 48, 48, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def mask() -> torch.Tensor:
    """12 of 18 tokens masked, other ones in each row."""
    scores = torch.rand(2, 18, generator=torch.Generator().manual_seed(2))
    return scores.argsort(dim=1) < 12
