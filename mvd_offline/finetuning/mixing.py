"""Mixup and CutMix of clips: every view of a micro-batch is mixed with its counterpart, view i with view B - 1 - i."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from mvd_offline.randomness import KeyedStream
from mvd_offline.recipe import MixingSection
from mvd_offline.video.crops import CropBox


@dataclass(frozen=True)
class Mix:
    """How a micro-batch is mixed: `share` is that of each view's own label.

    Of mixup it is the weight of its own pixels too; CutMix takes the pixels of `box`, in every frame, from the other
    view.
    """

    share: float
    box: CropBox | None = None


def draw_mix(section: MixingSection, image_size: int, stream: KeyedStream) -> Mix | None:
    """Whether, by which of the two ways, and how much a micro-batch is mixed (timm's `Mixup`, mode "batch")."""
    if stream.uniform() >= section.probability:
        return None
    cut = section.cutmix_alpha > 0.0 and (section.mixup_alpha == 0.0 or stream.uniform() < section.switch_probability)
    alpha = section.cutmix_alpha if cut else section.mixup_alpha
    share = stream.beta(alpha, alpha)
    if not cut:
        return Mix(share)
    box = draw_cut(image_size, share, stream)
    return Mix(1.0 - box.w * box.h / image_size**2, box)


def draw_cut(image_size: int, share: float, stream: KeyedStream) -> CropBox:
    """A square of `1 - share` of the frame around a uniform centre; what lies outside of the frame is cut off."""
    side = int(image_size * math.sqrt(1.0 - share))
    edges = []
    for _ in range(2):
        centre = stream.below(image_size)
        edges.append((max(0, centre - side // 2), min(image_size, centre + (side + 1) // 2)))
    (top, bottom), (left, right) = edges
    return CropBox(left, top, right - left, bottom - top)


def mix_clips(video: Tensor, mix: Mix, *, in_time: bool = False) -> Tensor:
    """Mixed clips, float (B, 3, T, H, W); CutMix writes into `video`.

    Args:
        in_time: cut the box out of axes T and H instead of H and W (`quirks.cutmix_in_time`).
    """
    other = video.flip(0)
    if mix.box is None:
        return video * mix.share + other.mul_(1.0 - mix.share)
    rows, columns = (slice(start, start + size) for start, size in ((mix.box.y, mix.box.h), (mix.box.x, mix.box.w)))
    place = (slice(None), slice(None), rows, columns) if in_time else (..., rows, columns)
    video[place] = other[place]
    return video


def mix_labels(labels: Tensor, classes: int, mix: Mix) -> Tensor:
    """Labels int64 (B,) as mixed probabilities (B, classes)."""
    own = F.one_hot(labels, classes).float()
    return own * mix.share + own.flip(0) * (1.0 - mix.share)
