"""Learning rates and parameter groups are the official code's, number for number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mvd_offline.errors import RecipeError
from mvd_offline.models import load_classifier, load_student
from mvd_offline.recipe import OptimSection
from mvd_offline.training.optim import (
    EXEMPT,
    MASK_TOKENS,
    build_optimizer,
    layer_of,
    learning_rate,
    parameter_groups,
    set_learning_rate,
)

REFERENCE = Path(__file__).parents[2] / "reference" / "mvd_tiny"


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    return json.loads((REFERENCE / "facts.json").read_text())


def names_of(groups: list[dict[str, Any]], *, decayed: bool) -> set[str]:
    return {name for group in groups if bool(group["weight_decay"]) == decayed for name in group["names"]}


def test_the_learning_rate_of_every_step_is_the_official_one(facts: dict[str, Any]) -> None:
    schedule = facts["lr_schedule"]
    steps, warmup = (schedule[key] * schedule["steps_per_epoch"] for key in ("epochs", "warmup_epochs"))
    assert len(schedule["values"]) == steps

    for step, expected in enumerate(schedule["values"]):
        found = learning_rate(
            step, peak=schedule["base"], floor=schedule["min"], warmup_steps=warmup, total_steps=steps
        )
        assert found == pytest.approx(expected, rel=1e-12, abs=0.0), f"step {step}"


def test_a_schedule_without_warm_up_starts_at_the_peak() -> None:
    assert learning_rate(0, peak=1.0, floor=0.1, warmup_steps=0, total_steps=10) == 1.0


def test_a_schedule_that_is_over_stays_at_the_floor() -> None:
    assert learning_rate(12, peak=1.0, floor=0.1, warmup_steps=2, total_steps=10) == pytest.approx(0.1)


def test_the_students_groups_have_the_official_sizes(facts: dict[str, Any]) -> None:
    student = load_student(REFERENCE / "student_mvd.pth", heads=4)

    groups = parameter_groups(student.named_parameters(), weight_decay=0.05)

    found = {group["weight_decay"]: len(group["params"]) for group in groups}  # type: ignore[arg-type]
    assert found == {fact["weight_decay"]: fact["tensors"] for fact in facts["student_param_groups"]}
    assert found == {0.05: 35, 0.0: 74}


def test_mask_tokens_are_decayed_as_released_and_exempt_without_the_quirk() -> None:
    student = load_student(REFERENCE / "student_mvd.pth", heads=4)
    released = parameter_groups(student.named_parameters(), weight_decay=0.05, exempt=EXEMPT)
    meant = parameter_groups(student.named_parameters(), weight_decay=0.05, exempt=EXEMPT | MASK_TOKENS)

    assert names_of(released, decayed=True) - names_of(meant, decayed=True) == {"mask_token_img", "mask_token_vid"}
    assert names_of(meant, decayed=False) - names_of(released, decayed=False) == {"mask_token_img", "mask_token_vid"}


def test_layer_wise_decay_is_the_official_one_for_every_parameter(facts: dict[str, Any]) -> None:
    classifier = load_classifier(REFERENCE / "finetuned_mvd.pth", heads=4)
    rate, expected = facts["layer_decay"]["rate"], facts["layer_decay"]["parameters"]

    groups = parameter_groups(
        classifier.named_parameters(), weight_decay=0.05, layer_decay=rate, depth=classifier.arch.depth
    )

    found = {
        name: {"lr_scale": group["lr_scale"], "decay": bool(group["weight_decay"])}
        for group in groups
        for name in group["names"]  # type: ignore[attr-defined]
    }
    assert found == expected


def test_frozen_parameters_are_in_no_group() -> None:
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)

    assert [group["names"] for group in parameter_groups(model.named_parameters(), weight_decay=0.1)] == [["weight"]]


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("patch_embed.proj.weight", 0),
        ("cls_token", 0),
        ("blocks.0.norm1.weight", 1),
        ("blocks.11.mlp.fc2.bias", 12),
        ("fc_norm.weight", 13),
        ("head.bias", 13),
    ],
)
def test_layers_are_counted_from_the_embedding_to_the_head(name: str, layer: int) -> None:
    assert layer_of(name, depth=12) == layer


def test_the_optimiser_takes_the_recipes_constants_and_scales_each_groups_rate() -> None:
    section = OptimSection(betas=(0.8, 0.9), eps=1e-6)
    classifier = load_classifier(REFERENCE / "finetuned_mvd.pth", heads=4)
    groups = parameter_groups(classifier.named_parameters(), weight_decay=0.05, layer_decay=0.5, depth=3)
    optimizer = build_optimizer(groups, section, torch.device("cpu"))

    set_learning_rate(optimizer, 2.0)

    assert optimizer.defaults["betas"] == (0.8, 0.9)
    assert optimizer.defaults["eps"] == 1e-6
    assert {group["lr"] for group in optimizer.param_groups} == {2.0 * 0.5**power for power in range(5)}


# ---- Muon --------------------------------------------------------------------------------------------------------


def gradients_of(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_muon_trains_the_matrices_of_blocks_and_adamw_all_else_as_each_does_alone() -> None:
    ours, alone = (load_student(REFERENCE / "student_mvd.pth", heads=4) for _ in range(2))
    section = OptimSection(optimizer="muon", betas=(0.8, 0.9))
    optimizer = build_optimizer(
        parameter_groups(ours.named_parameters(), weight_decay=0.05), section, torch.device("cpu")
    )
    hidden = [p for n, p in alone.named_parameters() if "blocks" in n and n.endswith("weight") and p.ndim == 2]
    decayed = [p for n, p in alone.named_parameters() if p.ndim > 1 and not any(p is other for other in hidden)]
    flat = [p for p in alone.parameters() if p.ndim <= 1]
    muon = torch.optim.Muon(hidden, lr=0.01, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": flat, "weight_decay": 0.0}],
        lr=0.01, betas=(0.8, 0.9), eps=section.eps, fused=True,
    )  # fmt: skip

    for step in range(3):
        for model in (ours, alone):
            gradients_of(model, step)
        set_learning_rate(optimizer, 0.01)
        for one in (optimizer, muon, adamw):
            one.step()

    assert len(hidden) == 4 * (3 + 2 + 2), "encoder and both decoders"
    for (name, found), expected in zip(ours.named_parameters(), alone.parameters(), strict=True):
        assert torch.equal(found, expected), name


def test_layer_wise_decay_scales_muons_rates_too() -> None:
    classifier = load_classifier(REFERENCE / "finetuned_mvd.pth", heads=4)
    groups = parameter_groups(classifier.named_parameters(), weight_decay=0.05, layer_decay=0.5, depth=3)
    optimizer = build_optimizer(groups, OptimSection(optimizer="muon"), torch.device("cpu"))

    set_learning_rate(optimizer, 2.0)

    rates = {name: group["lr"] for group in optimizer.param_groups for name in group["names"]}
    assert rates.keys() == dict(classifier.named_parameters()).keys()
    assert (rates["blocks.0.attn.qkv.weight"], rates["blocks.0.norm1.bias"], rates["head.weight"]) == (
        0.25,
        0.25,
        2.0,
    )


def test_a_torch_without_muon_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon")
    groups = parameter_groups(nn.Linear(2, 2).named_parameters(), weight_decay=0.05)

    with pytest.raises(RecipeError, match=r"muon needs torch 2\.9 or newer"):
        build_optimizer(groups, OptimSection(optimizer="muon"), torch.device("cpu"))
