"""RandAugment of clips: timm's operations, drawn from our keyed streams, once for all frames of a clip.

This is timm's `rand-mM-nN-mstdS-inc1`, which the MVD official code applies to clips. timm draws from Python's global
generator, anew in each call; here only its operations are used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mvd_offline.randomness import KeyedStream
from mvd_offline.recipe import RandAugmentSection

MOST: Final = 10.0
"""The greatest level of severity."""
FILL: Final = (128, 128, 128)
"""Colour of what a geometric operation uncovers."""

Arguments = tuple[float, ...]


def _moved(reach: float) -> Callable[[float, float], Arguments]:
    """Degrees, slopes or shares of the frame of a geometric operation: up to `reach` to either side."""
    return lambda level, sign: (sign * (level / MOST * reach),)


def _enhanced(level: float, sign: float) -> Arguments:
    return (max(0.1, 1.0 + sign * (level / MOST * 0.9)),)


def _nothing(level: float, sign: float) -> Arguments:
    return ()


ARGUMENTS: Final[Mapping[str, Callable[[float, float], Arguments]]] = {
    "AutoContrast": _nothing,
    "Equalize": _nothing,
    "Invert": _nothing,
    "Rotate": _moved(30.0),
    "PosterizeIncreasing": lambda level, sign: (4 - int(level / MOST * 4),),
    "SolarizeIncreasing": lambda level, sign: (256 - int(level / MOST * 256),),
    "SolarizeAdd": lambda level, sign: (int(level / MOST * 110),),
    "ColorIncreasing": _enhanced,
    "ContrastIncreasing": _enhanced,
    "BrightnessIncreasing": _enhanced,
    "SharpnessIncreasing": _enhanced,
    "ShearX": _moved(0.3),
    "ShearY": _moved(0.3),
    "TranslateXRel": _moved(0.45),
    "TranslateYRel": _moved(0.45),
}
"""timm's name of each operation to its arguments at a level in [0, 10] and a sign, +1 or -1."""
_NAMES: Final = tuple(ARGUMENTS)


@dataclass(frozen=True)
class Operation:
    """One of `ARGUMENTS` as it is applied to every frame of a clip."""

    name: str
    arguments: Arguments

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{value:.3g}" for value in self.arguments)])


def draw_operations(section: RandAugmentSection, stream: KeyedStream) -> tuple[Operation, ...]:
    """The operations that a clip goes through, in order; those that were drawn but are skipped are left out."""
    drawn = []
    for _ in range(section.operations):
        name = _NAMES[stream.below(len(_NAMES))]
        applied = stream.uniform() < section.probability
        level = min(max(stream.normal(section.magnitude, section.magnitude_std), 0.0), MOST)
        sign = -1.0 if stream.uniform() < 0.5 else 1.0
        if applied:
            drawn.append(Operation(name, ARGUMENTS[name](level, sign)))
    return tuple(drawn)


def apply_operations(frames: NDArray[np.uint8], operations: Sequence[Operation]) -> NDArray[np.uint8]:
    """Every frame through the same operations: uint8 (T, H, W, 3) RGB to the same shape."""
    if not operations:
        return frames
    out = np.empty_like(frames)
    for target, frame in zip(out, frames, strict=True):
        picture = Image.fromarray(frame)
        for operation in operations:
            picture = _changed(picture, operation)
        target[:] = np.asarray(picture)
    return out


def _changed(picture: Image.Image, operation: Operation) -> Image.Image:
    if operation.name == "PosterizeIncreasing" and operation.arguments[0] == 0:
        # No bit is left at the greatest level. Pillow, which used to give black, refuses that now.
        return Image.new("RGB", picture.size)
    function = timm_operations()[operation.name]
    changed: Image.Image = function(picture, *operation.arguments, fillcolor=FILL, resample=Image.Resampling.BICUBIC)
    return changed


@cache
def timm_operations() -> Mapping[str, Callable[..., Any]]:
    """timm's functions by name. A training loads them before it starts its loader processes."""
    # Importing timm takes seconds, which others who look at videos should not wait for.
    from timm.data.auto_augment import NAME_TO_OP

    return NAME_TO_OP
