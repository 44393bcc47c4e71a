"""Token grids: the counts that everything else is built on."""

import pytest

from mvd_offline.errors import UsageError
from mvd_offline.geometry import TokenGrid


def test_a_clip_of_the_paper_has_1568_tokens() -> None:
    grid = TokenGrid.of_clip(frames=16, image_size=224, tubelet_size=2, patch_size=16)

    assert grid == TokenGrid(t=8, h=14, w=14)
    assert grid.num_tokens == 1568
    assert grid.tokens_per_slice == 196
    assert str(grid) == "8 x 14 x 14"


def test_mae_h14_at_196_pixels_has_the_same_grid_as_16_pixel_patches_at_224() -> None:
    of_h14 = TokenGrid.of_clip(frames=16, image_size=196, tubelet_size=2, patch_size=14)

    assert of_h14 == TokenGrid.of_clip(frames=16, image_size=224, tubelet_size=2, patch_size=16)


@pytest.mark.parametrize(
    ("frames", "image_size", "tubelet_size", "patch_size", "message"),
    [
        (15, 224, 2, 16, r"frames \(15\) is not a multiple of tubelet_size \(2\)"),
        (16, 224, 2, 15, r"image_size \(224\) is not a multiple of patch_size \(15\)"),
    ],
)
def test_sizes_that_do_not_divide_are_refused_by_name(
    frames: int, image_size: int, tubelet_size: int, patch_size: int, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        TokenGrid.of_clip(frames=frames, image_size=image_size, tubelet_size=tubelet_size, patch_size=patch_size)


def test_an_empty_grid_is_refused() -> None:
    with pytest.raises(UsageError, match="at least one token"):
        TokenGrid(0, 14, 14)
