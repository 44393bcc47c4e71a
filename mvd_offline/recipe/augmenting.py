"""How fine-tuning changes the clips that it trains on: the sections `augment` and `mixing`."""

from __future__ import annotations

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from mvd_offline.recipe.sections import Fraction, Positive, Section

Probability: TypeAlias = Annotated[float, Field(ge=0.0, le=1.0)]


class RandAugmentSection(Section):
    """timm's RandAugment with increasing severity, `rand-m7-n4-mstd0.5-inc1`: one draw for all frames of a clip."""

    magnitude: Annotated[float, Field(ge=0.0, le=10.0)] = 7.0
    """Mean severity of an operation, m."""
    operations: Positive = 4
    """Operations that are drawn for a clip, with replacement, n."""
    magnitude_std: Annotated[float, Field(ge=0.0)] = 0.5
    """Spread of the severity, mstd."""
    probability: Probability = 0.5
    """With which each drawn operation is applied."""


class ErasingSection(Section):
    """Random erasing of a box, the same in all frames of a clip, with normal noise of its own in each pixel."""

    probability: Probability = 0.25
    area: tuple[float, float] = (0.02, 1 / 3)
    """Share of the frame that the box covers."""
    aspect: tuple[float, float] = (0.3, 1 / 0.3)
    """Height over width of the box, log-uniform."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_shares("area", self.area)
        _check_aspect(self.aspect)
        return self


class AugmentSection(Section):
    """Training augmentation of fine-tuning, in the order of its fields; one draw for all frames of a clip."""

    repeats: Positive = 1
    """Views of each video, all of the same frames, from one decode. `optim.batch_size` counts videos, not views."""
    rand_augment: RandAugmentSection | None = None
    """Of whole frames at the video's own size."""
    area: tuple[float, float] = (0.08, 1.0)
    """Share of the frame that a random resized crop covers."""
    aspect: tuple[float, float] = (0.75, 4 / 3)
    flip: Fraction | Literal[1] = 0.5
    """Probability of a horizontal flip; 0 for Something-Something."""
    erasing: ErasingSection | None = None
    """Of the normalised clip."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_shares("area", self.area)
        _check_aspect(self.aspect)
        return self


class MixingSection(Section):
    """Mixup and CutMix: one draw for a micro-batch, whose view i is mixed with its view B - 1 - i."""

    mixup_alpha: Annotated[float, Field(ge=0.0, le=2.0)] = 0.8
    """Of the symmetric beta distribution that the share of the first view comes from; 0 turns mixup off."""
    cutmix_alpha: Annotated[float, Field(ge=0.0, le=2.0)] = 1.0
    """The same for CutMix, where the other view's share is the area of a box; 0 turns CutMix off."""
    probability: Probability = 1.0
    """With which a micro-batch is mixed."""
    switch_probability: Probability = 0.5
    """With which that is CutMix, where both are on."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not (self.mixup_alpha or self.cutmix_alpha):
            raise ValueError("mixup_alpha and cutmix_alpha are both 0, so that nothing is mixed: leave mixing out")
        return self


def _check_shares(name: str, shares: tuple[float, float]) -> None:
    if not 0.0 < shares[0] <= shares[1] <= 1.0:
        raise ValueError(f"{name} must be a smallest and a largest share in (0, 1], not {shares}")


def _check_aspect(aspect: tuple[float, float]) -> None:
    if not 0.0 < aspect[0] <= aspect[1]:
        raise ValueError(f"aspect must be a smallest and a largest ratio above 0, not {aspect}")
