"""Random erasing of normalised clips, on the device that trains."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mvd_offline.finetuning.drawing import Erasure


def erase(video: Tensor, erasures: Sequence[Erasure | None]) -> Tensor:
    """Put normal noise into the box of each clip that has one, in place (MVD official code, "cube" and "pixel").

    The box is the same in all frames; the noise is independent in every pixel, channel and frame, and each clip's own,
    so that it does not depend on how clips are shared out.

    Args:
        video: float (B, 3, T, H, W), normalised.
        erasures: one for each clip, or None.
    """
    for clip, erasure in zip(video, erasures, strict=True):
        if erasure is None:
            continue
        x, y, w, h = erasure.box.x, erasure.box.y, erasure.box.w, erasure.box.h
        generator = torch.Generator(video.device).manual_seed(erasure.seed)
        # Drawn beside the clip: a slice of it would take its numbers in an order that depends on its strides.
        noise = torch.empty(*clip.shape[:2], h, w, dtype=video.dtype, device=video.device)
        clip[:, :, y : y + h, x : x + w] = noise.normal_(generator=generator)
    return video
