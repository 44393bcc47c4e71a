"""From pixels to a model's input."""

from __future__ import annotations

import pytest
import torch

from mvd_offline.errors import UsageError
from mvd_offline.models.inputs import front_frames, normalize


def test_pixels_are_scaled_and_normalised_with_the_imagenet_constants():
    pixels = torch.tensor([0, 128, 255], dtype=torch.uint8).expand(2, 4, 6, 5, 3)
    video = normalize(pixels)
    assert video.shape == (2, 3, 4, 6, 5)
    assert video.is_contiguous()
    expected = [(0 - 0.485) / 0.229, (128 / 255 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    assert video[1, :, 2, 3, 4].tolist() == pytest.approx(expected, abs=1e-6)


def test_anything_but_uint8_frames_is_refused():
    with pytest.raises(UsageError, match=r"uint8 \(B, T, H, W, 3\), not torch.float32"):
        normalize(torch.zeros(1, 2, 4, 4, 3))
    with pytest.raises(UsageError, match=r"\(1, 3, 2, 4, 4\)"):
        normalize(torch.zeros(1, 3, 2, 4, 4, dtype=torch.uint8))


def test_front_frames_are_the_first_of_each_tubelet():
    video = torch.arange(8.0).view(1, 1, 8, 1, 1)
    assert front_frames(video, 2).flatten().tolist() == [0, 2, 4, 6]
