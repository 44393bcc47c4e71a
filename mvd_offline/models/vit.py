"""The Vision Transformer that students, teachers, classifiers and pretrainers share.

Parameter names are those of the official checkpoints. Pre-norm blocks, MLP of four times the width, exact GELU,
LayerNorm eps 1e-6, no LayerScale, attention by `scaled_dot_product_attention`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mvd_offline.errors import UsageError
from mvd_offline.geometry import TokenGrid
from mvd_offline.models.positions import Positions, position_table
from mvd_offline.recipe import DecoderSection, EncoderSection

LAYER_NORM_EPS = 1e-6

LayerNorm = partial(nn.LayerNorm, eps=LAYER_NORM_EPS)

QkvBias: TypeAlias = Literal["split", "fused"]
"""`split`: parameters q_bias and v_bias, no key bias (VideoMAE, MVD). `fused`: qkv.bias (MAE, timm, teachers)."""


@dataclass(frozen=True)
class Arch:
    """Width D, number of blocks and of attention heads."""

    width: int
    depth: int
    heads: int


ARCHS: Mapping[str, Arch] = {
    "vit_tiny": Arch(192, 12, 3),
    "vit_small": Arch(384, 12, 6),
    "vit_base": Arch(768, 12, 12),
    "vit_large": Arch(1024, 24, 16),
    "vit_huge": Arch(1280, 32, 16),
}


def resolve_arch(name: str, width: int | None = None, depth: int | None = None, heads: int | None = None) -> Arch:
    """The named architecture with overrides. A new width needs heads, unless a known architecture has that width."""
    if name not in ARCHS:
        raise UsageError(f"unknown architecture {name!r}; known: {', '.join(ARCHS)}")
    base = ARCHS[name]
    if heads is None:
        heads = base.heads if width in (None, base.width) else heads_for_width(width or base.width)
    return Arch(width or base.width, depth or base.depth, heads)


def encoder_arch(section: EncoderSection) -> Arch:
    """The architecture of a recipe's encoder."""
    return resolve_arch(section.arch, section.width, section.depth, section.heads)


def decoder_arch(section: DecoderSection, encoder: Arch) -> Arch:
    """The architecture of a recipe's decoder; what it leaves open is the encoder's."""
    return Arch(section.width or encoder.width, section.depth, section.heads or encoder.heads)


def heads_for_width(width: int) -> int:
    """Attention heads of the known architectures, which weights do not record.

    Raises:
        UsageError: a width that is none of theirs.
    """
    for arch in ARCHS.values():
        if arch.width == width:
            return arch.heads
    known = ", ".join(f"{arch.width} ({name})" for name, arch in ARCHS.items())
    raise UsageError(
        f"the number of attention heads of width {width} is not known and weights do not record it; "
        f"known widths: {known}. Pass heads=..."
    )


class Attention(nn.Module):
    """Multi-head self-attention over (B, N, D)."""

    def __init__(self, width: int, heads: int, qkv_bias: QkvBias) -> None:
        super().__init__()
        if width % heads:
            raise UsageError(f"width {width} is not a multiple of the number of attention heads, {heads}")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias == "fused")
        if qkv_bias == "split":
            self.q_bias = nn.Parameter(torch.zeros(width))
            self.v_bias = nn.Parameter(torch.zeros(width))
        self.split = qkv_bias == "split"
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, last: int | None = None) -> Tensor:
        """(B, N, D) to (B, N, D), or to (B, last, D): what the last tokens alone get from all of them."""
        batch, _, width = x.shape
        q, k, v = self._heads(x)
        if last is not None:
            q = q[:, -last:]
        x = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return self.proj(x.transpose(1, 2).reshape(batch, -1, width))

    def weights(self, x: Tensor, queries: Tensor) -> Tensor:
        """How much some tokens look at every one: softmax of q k / sqrt(d), float32 (B, heads, Q, N).

        Args:
            x: (B, N, D), as `forward` takes it.
            queries: int64 (Q,), numbers of tokens.
        """
        q, k, _ = self._heads(x)
        scores = q[:, queries].transpose(1, 2) @ k.permute(0, 2, 3, 1)
        return (scores.float() / q.shape[-1] ** 0.5).softmax(dim=-1)

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (B, N, heads, D / heads) each."""
        batch, tokens, width = x.shape
        if self.split:
            bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
            qkv = F.linear(x, self.qkv.weight, bias)
        else:
            qkv = self.qkv(x)
        # Taken apart where they lie, so that the backward pass puts their gradients together there, in one copy.
        q, k, v = qkv.view(batch, tokens, 3, self.heads, width // self.heads).unbind(2)
        return q, k, v


class Mlp(nn.Module):
    """Two linear layers with exact GELU between them; (B, N, D) to (B, N, D)."""

    def __init__(self, width: int, hidden: int) -> None:
        # timm's would do, but importing it takes seconds of every command (it brings torchvision and dynamo along).
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), each dropped as a whole with probability `drop_path` a sample."""

    def __init__(self, width: int, heads: int, qkv_bias: QkvBias, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width)
        self.attn = Attention(width, heads, qkv_bias)
        self.norm2 = LayerNorm(width)
        self.mlp = Mlp(width, 4 * width)
        self.drop_path = drop_path

    def forward(self, x: Tensor, drop_noise: Tensor | None = None, last: int | None = None) -> Tensor:
        """(B, N, D) to (B, N, D), or to (B, last, D): the last tokens alone, of which no other is computed.

        `drop_noise` is (B, 2), uniform in [0, 1), drawn here when None.
        """
        attended = self.attn(self.norm1(x), last)
        if last is not None:
            x = x[:, -last:]
        if not self.training or self.drop_path == 0.0:
            x = x + attended
            return x + self.mlp(self.norm2(x))
        if drop_noise is None:
            drop_noise = torch.rand(x.shape[0], 2, device=x.device)
        keep = (drop_noise >= self.drop_path).to(x.dtype) / (1.0 - self.drop_path)
        x = x + keep[:, 0, None, None] * attended
        return x + keep[:, 1, None, None] * self.mlp(self.norm2(x))


def make_blocks(arch: Arch, qkv_bias: QkvBias, drop_path: float = 0.0) -> nn.ModuleList:
    """Blocks whose drop-path rate grows linearly from 0 to `drop_path`."""
    rates = [drop_path * i / max(arch.depth - 1, 1) for i in range(arch.depth)]
    return nn.ModuleList(Block(arch.width, arch.heads, qkv_bias, rate) for rate in rates)


def run_blocks(
    blocks: nn.ModuleList,
    x: Tensor,
    checkpoint_activations: bool = False,
    drop_noise: Tensor | None = None,
    last: int | None = None,
) -> Tensor:
    """Apply the blocks; with checkpointing, the backward pass recomputes each block (with the same random draws).

    Args:
        drop_noise: (B, 2 * len(blocks)), uniform in [0, 1): decides which branches are dropped. Drawn by the loader
            from a sample's identity, it makes drop path independent of how samples are shared out over processes.
        last: how many tokens, at the end, are wanted of the last block; all when None.
    """
    for i, block in enumerate(blocks):
        noise = None if drop_noise is None else drop_noise[:, 2 * i : 2 * i + 2]
        wanted = last if i == len(blocks) - 1 else None
        if checkpoint_activations and torch.is_grad_enabled():
            x = checkpoint(block, x, noise, wanted, use_reentrant=False)
        else:
            x = block(x, noise, wanted)
    return x


# ---- patches -----------------------------------------------------------------------------------------------------


class PatchEmbed(nn.Module):
    """Non-overlapping patches through one linear map, which is held as a convolution as in the official files.

    A clip's weight is (D, 3, tubelet, patch, patch), an image's (D, 3, patch, patch). Only the patches that are asked
    for are read and multiplied.
    """

    def __init__(self, width: int, patch_size: int, tubelet_size: int | None) -> None:
        """`tubelet_size` None makes an image embedding (a Conv2d weight, one frame a token)."""
        super().__init__()
        self.patch_size, self.tubelet_size = patch_size, tubelet_size or 1
        if tubelet_size is None:
            self.proj: nn.Conv2d | nn.Conv3d = nn.Conv2d(3, width, patch_size, patch_size)
        else:
            kernel = (tubelet_size, patch_size, patch_size)
            self.proj = nn.Conv3d(3, width, kernel, kernel)

    def grid_of(self, video: Tensor) -> TokenGrid:
        """Token grid of (B, 3, T, H, W)."""
        _, channels, frames, height, width = video.shape
        if channels != 3 or frames % self.tubelet_size or height % self.patch_size or width % self.patch_size:
            raise UsageError(
                f"a video is (B, 3, T, H, W) with T a multiple of {self.tubelet_size} and H, W multiples of "
                f"{self.patch_size}, not {tuple(video.shape)}"
            )
        return TokenGrid(frames // self.tubelet_size, height // self.patch_size, width // self.patch_size)

    def forward(self, video: Tensor, index: Tensor | None = None) -> Tensor:
        """Embed patches of (B, 3, T, H, W).

        Args:
            index: int64 (B, V), flat token indices in t, h, w order; None embeds all.

        Returns:
            (B, V, D), or (B, N, D) without `index`.
        """
        patches = patches_of(video, self.tubelet_size, self.patch_size, index)
        return F.linear(patches.flatten(2), self.proj.weight.flatten(1), self.proj.bias)


def patches_of(video: Tensor, tubelet_size: int, patch_size: int, index: Tensor | None = None) -> Tensor:
    """Cut (B, 3, T, H, W) into patches (B, V, 3, tubelet, patch, patch); `index` (B, V) gathers only those."""
    batch, channels, frames, height, width = video.shape
    t, h, w = frames // tubelet_size, height // patch_size, width // patch_size
    cubes = video.reshape(batch, channels, t, tubelet_size, h, patch_size, w, patch_size)
    cubes = cubes.permute(0, 2, 4, 6, 1, 3, 5, 7)
    if index is None:
        return cubes.reshape(batch, t * h * w, channels, tubelet_size, patch_size, patch_size)
    rows = torch.arange(batch, device=video.device)[:, None]
    return cubes[rows, index // (h * w), index // w % h, index % w]


# ---- masks -------------------------------------------------------------------------------------------------------


def split_mask(mask: Tensor, masked_tokens: int | None = None) -> tuple[Tensor, Tensor]:
    """Token indices of a mask, each in raster order.

    Args:
        mask: bool (B, N), True = masked, the same number of masked tokens in every row.
        masked_tokens: that number M, when it is known: then the device is never waited for, and rows are not checked.

    Returns:
        int64 visible (B, N - M) and masked (B, M).

    Raises:
        UsageError: rows with different numbers of masked tokens, or nothing masked, or everything.
    """
    if masked_tokens is None:
        low, high = (int(v) for v in torch.aminmax(mask.sum(dim=1)))
        if low != high or not 0 < low < mask.shape[1]:
            raise UsageError(
                f"a mask is bool (B, N) with the same number of masked tokens in each row, at least 1 and at most "
                f"{mask.shape[1] - 1}; this one of shape {tuple(mask.shape)} has {low} to {high}"
            )
        masked_tokens = low
    order = mask.to(torch.uint8).argsort(dim=1, stable=True)
    visible = mask.shape[1] - masked_tokens
    return order[:, :visible], order[:, visible:]


def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """The tokens of (B, N, D), or of a table (1, N, D) that all samples share, at int64 (B, V): (B, V, D)."""
    x = x.expand(index.shape[0], -1, -1)
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))


# ---- encoder -----------------------------------------------------------------------------------------------------


class VideoEncoder(nn.Module):
    """Patch embedding, fixed positions and blocks over a clip; the base of students, classifiers and video teachers.

    Attributes:
        arch, grid, patch_size, tubelet_size, positions: its sizes; `grid` is the nominal token grid.
    """

    pos_embed: Tensor

    def __init__(
        self,
        arch: Arch,
        *,
        grid: TokenGrid,
        patch_size: int,
        tubelet_size: int,
        positions: Positions,
        qkv_bias: QkvBias,
        drop_path: float = 0.0,
        checkpoint_activations: bool = False,
        save_positions: bool = False,
    ) -> None:
        """`save_positions` puts the table into the state dict, as the official student does."""
        super().__init__()
        self.arch, self.grid, self.positions = arch, grid, positions
        self.patch_size, self.tubelet_size = patch_size, tubelet_size
        self.checkpoint_activations = checkpoint_activations
        table = position_table(positions, arch.width, grid).clone()
        self.register_buffer("pos_embed", table, persistent=save_positions)
        self.patch_embed = PatchEmbed(arch.width, patch_size, tubelet_size)
        self.blocks = make_blocks(arch, qkv_bias, drop_path)

    @property
    def frames(self) -> int:
        return self.grid.t * self.tubelet_size

    @property
    def image_size(self) -> int:
        return self.grid.h * self.patch_size

    def encode_tokens(self, video: Tensor, index: Tensor | None = None, drop_noise: Tensor | None = None) -> Tensor:
        """Residual stream after the last block: (B, V, D) for the tokens of `index`, or all."""
        table = self._table(video)
        x = self.patch_embed(video, index)
        # Under autocast the float32 table keeps the residual stream in float32, where bfloat16 would round it.
        x = x + (table if index is None else gather_tokens(table, index))
        return run_blocks(self.blocks, x, self.checkpoint_activations, drop_noise)

    def _table(self, video: Tensor) -> Tensor:
        grid = self.patch_embed.grid_of(video)
        if grid == self.grid:
            return self.pos_embed
        self._check_other_grid(grid, video)
        return position_table(self.positions, self.arch.width, grid).to(video.device)

    def _check_other_grid(self, grid: TokenGrid, video: Tensor) -> None:
        """Positions are a formula, so any clip size is possible; subclasses with a fixed grid refuse here."""


class Decoder(nn.Module):
    """Blocks over visible and mask tokens, then LayerNorm and a linear head on the last (masked) ones only."""

    def __init__(self, arch: Arch, out_features: int, *, drop_path: float = 0.0, checkpoint_activations: bool = False):
        super().__init__()
        self.arch, self.checkpoint_activations = arch, checkpoint_activations
        self.blocks = make_blocks(arch, "split", drop_path)
        self.norm = LayerNorm(arch.width)
        self.head = nn.Linear(arch.width, out_features)

    def forward(self, x: Tensor, masked_tokens: int, drop_noise: Tensor | None = None) -> Tensor:
        """(B, V + M, width) to (B, M, out_features)."""
        x = run_blocks(self.blocks, x, self.checkpoint_activations, drop_noise, last=masked_tokens)
        return self.head(self.norm(x))


def with_mask_tokens(x: Tensor, mask_token: Tensor, table: Tensor, visible: Tensor, masked: Tensor) -> Tensor:
    """A decoder's input: visible tokens and then mask tokens, both with their positions: (B, V + M, D)."""
    hidden = mask_token + gather_tokens(table, masked)
    return torch.cat([x + gather_tokens(table, visible), hidden], dim=1)


# ---- initialisation ----------------------------------------------------------------------------------------------


def init_for_pretraining(module: nn.Module) -> None:
    """Official pretraining initialisation: Xavier-uniform Linear, zero bias, LayerNorm 1 and 0; convolutions stay."""
    for child in module.modules():
        if isinstance(child, nn.Linear):
            nn.init.xavier_uniform_(child.weight)
            if child.bias is not None:
                nn.init.zeros_(child.bias)


def init_for_finetuning(module: nn.Module) -> None:
    """Official fine-tuning initialisation: Linear from a normal of std 0.02 cut at 2 (that is, uncut), zero bias."""
    for child in module.modules():
        if isinstance(child, nn.Linear):
            nn.init.trunc_normal_(child.weight, std=0.02)
            if child.bias is not None:
                nn.init.zeros_(child.bias)


def init_mask_tokens(tokens: Sequence[Tensor]) -> None:
    """Normal of std 0.02 cut at one standard deviation: the official code passes absolute bounds."""
    for token in tokens:
        nn.init.trunc_normal_(token, std=0.02, a=-0.02, b=0.02)
