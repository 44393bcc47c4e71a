"""Masked feature losses against numbers computed by hand."""

from __future__ import annotations

import pytest
import torch

from mvd_offline.errors import UsageError
from mvd_offline.losses import Objective, masked_feature_loss, objectives_of
from mvd_offline.recipe import load_distill

PREDICTION = torch.tensor([[[0.0, 0.0], [3.0, -1.0]]])
TARGET = torch.tensor([[[0.5, -2.0], [3.0, 1.0]]])  # differences 0.5, 2, 0, 2


@pytest.mark.parametrize(
    ("kind", "beta", "expected"),
    [
        ("smooth_l1", 1.0, (0.125 + 1.5 + 0 + 1.5) / 4),
        ("smooth_l1", 2.0, (0.0625 + 1.0 + 0 + 1.0) / 4),
        ("l1", 1.0, 4.5 / 4),
        ("l2", 1.0, 8.25 / 4),
    ],
)
def test_losses_are_means_over_tokens_and_channels(kind, beta, expected):
    assert masked_feature_loss(PREDICTION, TARGET, kind, beta).item() == pytest.approx(expected)


def test_only_targets_are_normalised():
    # Each target token becomes (1, -1) or its negative, up to an eps of 1e-6 on the variance.
    loss = masked_feature_loss(PREDICTION, TARGET, "l1", normalize_targets=True)
    assert loss.item() == pytest.approx((1 + 1 + 2 + 0) / 4, abs=1e-5)


def test_the_loss_is_float32_even_under_autocast_and_from_half_precision():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = masked_feature_loss(PREDICTION.bfloat16(), TARGET.half(), "l2")
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(8.25 / 4)


def test_shapes_that_differ_are_refused_instead_of_broadcast():
    with pytest.raises(UsageError, match=r"prediction \(1, 2, 2\) and target \(1, 1, 2\)"):
        masked_feature_loss(PREDICTION, TARGET[:, :1])


def test_an_unknown_loss_lists_the_known():
    with pytest.raises(UsageError, match="known: smooth_l1, l1, l2"):
        masked_feature_loss(PREDICTION, TARGET, "huber")


def test_the_terms_of_a_loss_are_what_the_recipe_says_in_the_order_of_the_students_decoders():
    recipe = load_distill(
        {
            "kind": "distill",
            "name": "x",
            "targets": "online",
            "teachers": {"video": {"weights": "random:vit_tiny"}, "image": {"weights": "random:vit_tiny"}},
            "loss": {"kind": "smooth_l1", "beta": 2.0, "weights": {"video": 0.5, "image": 0.25}},
            "pixels": {"weight": 0.1},
            "momentum": {"weight": 3.0},
        }
    )
    assert list(objectives_of(recipe).items()) == [
        ("image", Objective(0.25, "smooth_l1", 2.0, normalize_targets=False)),
        ("video", Objective(0.5, "smooth_l1", 2.0, normalize_targets=False)),
        ("pixels", Objective(0.1, "l2")),
        ("momentum", Objective(3.0, "smooth_l1", 2.0, normalize_targets=True)),
    ]


def test_a_term_measures_and_does_not_weigh():
    assert Objective(7.0, "l1", normalize_targets=True)(PREDICTION, TARGET) == masked_feature_loss(
        PREDICTION, TARGET, "l1", normalize_targets=True
    )
