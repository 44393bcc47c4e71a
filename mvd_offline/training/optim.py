"""The optimiser's parameter groups and the learning rate of each step."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import torch
from torch import nn

from mvd_offline.recipe import OptimSection
from mvd_offline.training.muon import MuonWithAdamW

# Names that the official code exempts from weight decay besides biases and 1-D tensors.
EXEMPT = frozenset({"pos_embed", "cls_token", "mask_token"})
MASK_TOKENS = frozenset({"mask_token_img", "mask_token_vid", "mask_token_pix", "mask_token_mom"})


def learning_rate(step: int, *, peak: float, floor: float, warmup_steps: int, total_steps: int) -> float:
    """Learning rate of optimiser step `step` (from 0).

    `warmup_steps` points go linearly from 0 to `peak`, both ends included; then a half cosine falls from `peak`
    towards `floor`, which it would reach at `total_steps` (MVD official code; VideoMAE uses the same table).
    """
    if step < warmup_steps:
        return peak * step / max(1, warmup_steps - 1)
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return floor + 0.5 * (peak - floor) * (1.0 + math.cos(math.pi * min(1.0, progress)))


def layer_of(name: str, depth: int) -> int:
    """Layer of a parameter for layer-wise decay: 0 is the embedding, block k is k + 1, all after is depth + 1."""
    if name in {"cls_token", "pos_embed", "mask_token"} or name.startswith("patch_embed"):
        return 0
    block = re.match(r"blocks\.(\d+)\.", name)
    return int(block.group(1)) + 1 if block else depth + 1


def decays(name: str, parameter: nn.Parameter, *, exempt: frozenset[str] = EXEMPT) -> bool:
    """Whether weight decay applies to a parameter."""
    return not (parameter.ndim <= 1 or name.endswith(".bias") or name in exempt)


def parameter_groups(
    parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    weight_decay: float,
    exempt: frozenset[str] = EXEMPT,
    layer_decay: float | None = None,
    depth: int = 0,
) -> list[dict[str, object]]:
    """Groups for an optimiser: one for each (learning-rate scale, decayed or not), in order of first appearance.

    Each group has `params`, `names`, `weight_decay` and `lr_scale` (layer_decay ** (depth + 1 - layer)).
    """
    groups: dict[tuple[float, bool], dict[str, object]] = {}
    for name, parameter in parameters:
        if not parameter.requires_grad:
            continue
        scale = 1.0 if layer_decay is None else layer_decay ** (depth + 1 - layer_of(name, depth))
        decayed = decays(name, parameter, exempt=exempt)
        group = groups.setdefault(
            (scale, decayed),
            {"params": [], "names": [], "weight_decay": weight_decay if decayed else 0.0, "lr_scale": scale},
        )
        for key, value in (("params", parameter), ("names", name)):
            members = group[key]
            assert isinstance(members, list)
            members.append(value)
    return list(groups.values())


def build_optimizer(
    groups: list[dict[str, object]], section: OptimSection, device: torch.device
) -> torch.optim.Optimizer:
    """The recipe's optimiser, AdamW in one fused kernel where the device has it; the learning rate is set before every
    step.

    Raises:
        RecipeError: this torch does not have it.
    """
    fused = device.type in ("cuda", "cpu")
    if section.optimizer == "muon":
        return MuonWithAdamW(groups, betas=section.betas, eps=section.eps, fused=fused)
    return torch.optim.AdamW(groups, lr=0.0, betas=section.betas, eps=section.eps, fused=fused)


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = value * group["lr_scale"]
