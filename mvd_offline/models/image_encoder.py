"""MAE's image encoder: class token, 2-D positions and blocks; the body of image teachers and of MAE pretraining."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn

from mvd_offline.models.positions import sincos_2d
from mvd_offline.models.vit import Arch, PatchEmbed, gather_tokens, make_blocks, run_blocks


@lru_cache(maxsize=16)
def image_position_table(dim: int, h: int, w: int) -> Tensor:
    """MAE's table, class token first, shared between callers: only read it. float32 (1, 1 + h * w, D), CPU."""
    return sincos_2d(dim, h, w, cls=True)[None]


class ImageEncoder(nn.Module):
    """Square images (B, 3, S, S) to tokens; official MAE parameter names, fused qkv bias."""

    pos_embed: Tensor

    def __init__(
        self, arch: Arch, *, image_size: int, patch_size: int, drop_path: float = 0.0, save_positions: bool = False
    ) -> None:
        """`save_positions` puts the table into the state dict, as the official MAE does."""
        super().__init__()
        self.arch, self.image_size, self.patch_size = arch, image_size, patch_size
        side = image_size // patch_size
        self.side = side
        self.cls_token = nn.Parameter(torch.zeros(1, 1, arch.width))
        table = image_position_table(arch.width, side, side).clone()
        self.register_buffer("pos_embed", table, persistent=save_positions)
        self.patch_embed = PatchEmbed(arch.width, patch_size, None)
        self.blocks = make_blocks(arch, "fused", drop_path)

    def encode_tokens(self, images: Tensor, index: Tensor | None = None) -> Tensor:
        """Residual stream after the last block, class token first: (B, 1 + V, D) for the patches of `index`, or all."""
        frames = images[:, :, None]
        grid = self.patch_embed.grid_of(frames)
        table = self.pos_embed
        if (grid.h, grid.w) != (self.side, self.side):
            # Positions are recomputed for the grid at hand, never interpolated, as MVD does for MAE H/14 at 196.
            table = image_position_table(self.arch.width, grid.h, grid.w).to(images.device)
        patches = table[:, 1:]
        x = self.patch_embed(frames, index)
        x = x + (patches if index is None else gather_tokens(patches, index))
        cls = (self.cls_token + table[:, :1]).expand(x.shape[0], -1, -1)
        return run_blocks(self.blocks, torch.cat([cls.to(x.dtype), x], dim=1))


def init_for_mae(module: nn.Module) -> None:
    """What official MAE adds to `init_for_pretraining`: Xavier on flattened patches, tokens from N(0, 0.02)."""
    for name, parameter in module.named_parameters():
        if name == "patch_embed.proj.weight":
            nn.init.xavier_uniform_(parameter.data.view(parameter.shape[0], -1))
        elif name in ("cls_token", "mask_token"):
            nn.init.normal_(parameter, std=0.02)
