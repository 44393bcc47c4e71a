"""Muon for the matrices of transformer blocks and AdamW for all else, as one optimiser."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from mvd_offline.errors import RecipeError

OLDEST_TORCH = "2.9"

_IN_BLOCK = re.compile(r"(^|\.)(decoder_)?blocks\.\d+\.")


def is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon trains a parameter: the 2-D weights of blocks; not embeddings, tokens, heads and the like.

    Queries, keys and values are one matrix, as the models have them.
    """
    return parameter.ndim == 2 and _IN_BLOCK.search(name) is not None


class MuonWithAdamW(Optimizer):
    """Each group belongs to one of torch's own two optimisers, which keep their states in this one's.

    Muon's steps are scaled to the size of AdamW's (`match_rms_adamw`), so that one learning rate and one weight decay
    serve both (Liu et al. 2025, "Muon is Scalable for LLM Training", section 2.2).

    Args:
        groups: as `parameter_groups` makes them, with blocks among them; a group with both kinds becomes two.

    Raises:
        RecipeError: torch is too old to have Muon.
    """

    def __init__(self, groups: list[dict[str, Any]], *, betas: tuple[float, float], eps: float, fused: bool) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise RecipeError(
                f"optim.optimizer: muon needs torch {OLDEST_TORCH} or newer, and this is {torch.__version__}. Upgrade "
                "torch, or take adamw."
            )
        hidden, others = (_groups_of(groups, muon=muon) for muon in (True, False))
        self._muon = torch.optim.Muon(hidden, lr=0.0, adjust_lr_fn="match_rms_adamw")
        self._adamw = AdamW(others, lr=0.0, betas=betas, eps=eps, fused=fused)
        super().__init__([*self._muon.param_groups, *self._adamw.param_groups], {})

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One of each; no closure, which would have to be called for both at once."""
        assert closure is None
        for optimizer, muon in ((self._muon, True), (self._adamw, False)):
            # Given anew in every step: loading a state, or sharding, replaces groups and states.
            optimizer.param_groups = [group for group in self.param_groups if group["muon"] is muon]
            optimizer.state = self.state
            optimizer.step()


def _groups_of(groups: list[dict[str, Any]], *, muon: bool) -> list[dict[str, Any]]:
    """The groups with only the parameters of one of the two, without those that have none."""
    found = []
    for group in groups:
        named = zip(group["names"], group["params"], strict=True)
        kept = [(name, parameter) for name, parameter in named if is_hidden_matrix(name, parameter) is muon]
        if kept:
            names, parameters = map(list, zip(*kept, strict=True))
            found.append({**group, "names": names, "params": parameters, "muon": muon})
    return found
