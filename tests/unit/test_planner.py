"""The planner's arithmetic agrees with published counts."""

from __future__ import annotations

import pytest

from mvd_offline.geometry import TokenGrid
from mvd_offline.planner import student_flops, teacher_flops
from mvd_offline.recipe import load_distill

GRID = TokenGrid(8, 14, 14)


@pytest.mark.parametrize(
    ("width", "depth", "published_gflops"), [(384, 12, 57), (768, 12, 180), (1024, 24, 597), (1280, 32, 1192)]
)
def test_a_video_teacher_costs_what_the_paper_says(width: int, depth: int, published_gflops: float) -> None:
    # The paper counts a multiplication and its addition once; head and patch embedding make up the difference.
    assert teacher_flops("video", GRID, width, depth) / 2e9 == pytest.approx(published_gflops, rel=0.02)


def test_an_image_teacher_sees_each_slice_by_itself() -> None:
    image, video = (teacher_flops(name, GRID, 1024, 24) for name in ("image", "video"))

    assert image / 2e9 == pytest.approx(493, rel=0.02)
    assert image < video


@pytest.mark.parametrize(("student", "gflops"), [("s", 130), ("b", 410)])
def test_a_student_costs_its_visible_tokens_and_its_decoders(student: str, gflops: float) -> None:
    recipe = load_distill(f"distill/vit_{student}_from_vit_b_k400")
    one_teacher = load_distill(f"distill/vit_{student}_from_vit_b_k400", ["loss.weights.video=0"])

    assert student_flops(recipe) / 1e9 == pytest.approx(gflops, rel=0.1)
    assert student_flops(one_teacher) < 0.7 * student_flops(recipe)
