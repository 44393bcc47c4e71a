"""Token grids and clip arithmetic: pure integers, no arrays."""

from __future__ import annotations

from dataclasses import dataclass

from mvd_offline.errors import UsageError


@dataclass(frozen=True)
class TokenGrid:
    """Tokens of a clip: `t` slices of `h` rows of `w` columns, flattened in t, h, w order.

    >>> TokenGrid.of_clip(frames=16, image_size=224, tubelet_size=2, patch_size=16)
    TokenGrid(t=8, h=14, w=14)
    """

    t: int
    h: int
    w: int

    def __post_init__(self) -> None:
        if min(self.t, self.h, self.w) < 1:
            raise UsageError(f"a token grid has at least one token along each axis, not {self}")

    @classmethod
    def of_clip(cls, *, frames: int, image_size: int, tubelet_size: int, patch_size: int) -> TokenGrid:
        """Grid of a square clip; sizes in frames and pixels must divide evenly."""
        if frames % tubelet_size:
            raise UsageError(
                f"frames ({frames}) is not a multiple of tubelet_size ({tubelet_size}); "
                f"choose {_multiples_beside(frames, tubelet_size)} frames, or another tubelet_size"
            )
        if image_size % patch_size:
            raise UsageError(
                f"image_size ({image_size}) is not a multiple of patch_size ({patch_size}); "
                f"choose {_multiples_beside(image_size, patch_size)} pixels, or another patch_size"
            )
        side = image_size // patch_size
        return cls(frames // tubelet_size, side, side)

    @property
    def tokens_per_slice(self) -> int:
        return self.h * self.w

    @property
    def num_tokens(self) -> int:
        return self.t * self.h * self.w

    def __str__(self) -> str:
        return f"{self.t} x {self.h} x {self.w}"


def _multiples_beside(value: int, divisor: int) -> str:
    """The multiples around a value.

    >>> _multiples_beside(100, 16)
    '96 or 112'
    """
    below = value // divisor * divisor
    return f"{below} or {below + divisor}" if below else str(divisor)
