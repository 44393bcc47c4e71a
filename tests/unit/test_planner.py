"""What a clip costs agrees with the paper's counts, and what `plan` says of a store with the store."""

from __future__ import annotations

from typing import Any

import pytest

from mvd_offline.costs.models import momentum_flops
from mvd_offline.costs.teachers import teacher_cost
from mvd_offline.planner import student_flops
from mvd_offline.recipe import DistillRecipe, TeacherName, load_distill

BASE: dict[TeacherName, int] = {"image": 768, "video": 768}


def recipe(**changes: Any) -> DistillRecipe:
    return load_distill({"kind": "distill", "name": "x", **changes})


@pytest.mark.parametrize(
    ("arch", "published_gflops"), [("vit_small", 57), ("vit_base", 180), ("vit_large", 597), ("vit_huge", 1192)]
)
def test_a_video_teacher_costs_what_the_paper_says(arch: str, published_gflops: float) -> None:
    cost = teacher_cost(recipe(teachers={"video": {"weights": f"random:{arch}"}}), "video")

    # The paper counts a multiplication and its addition once, torch twice.
    assert cost.flops / 2e9 == pytest.approx(published_gflops, rel=0.02)


def test_an_image_teacher_sees_each_slice_by_itself() -> None:
    cost = teacher_cost(recipe(teachers={"image": {"weights": "random:vit_large"}}), "image")

    assert cost.flops / 2e9 == pytest.approx(493, rel=0.02)
    assert (cost.arch.depth, cost.patch_size, cost.known_from) == (24, 16, "recipe")


@pytest.mark.parametrize(("student", "gflops"), [("s", 130), ("b", 410)])
def test_a_student_costs_its_visible_tokens_and_its_decoders(student: str, gflops: float) -> None:
    both = student_flops(load_distill(f"distill/vit_{student}_from_vit_b_k400"), BASE)

    # Here both operations of a multiply-add count. Fused attention computes its scores again in the backward pass,
    # which these numbers of the design do not have.
    assert both / 1e9 == pytest.approx(gflops, rel=0.15)


def test_objectives_and_masks_are_paid_for() -> None:
    one: dict[TeacherName, int] = {"image": 192}
    small = {"view": {"frames": 4, "image_size": 64}, "student": {"width": 48, "depth": 3, "heads": 3}}
    teacher = {"teachers": {"image": {"weights": "random:vit_tiny"}}}
    plain = student_flops(recipe(**small, **teacher), one)
    momentum = recipe(**small, momentum={}, targets="online")

    assert 1.5 * plain < student_flops(recipe(**small, **teacher, pixels={}), one) < 3 * plain
    assert student_flops(recipe(**small, **teacher, mask={"decoded": 0.5}), one) < plain
    assert student_flops(recipe(**small, **teacher, mask={"kind": "none"}), one) > 0
    assert student_flops(momentum, {}) > momentum_flops(momentum, {}) > 0
