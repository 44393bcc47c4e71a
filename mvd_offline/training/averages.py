"""Moving averages of weights: a slow copy of a model that follows it, step by step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Average:
    """The exponential moving average of a module's parameters; buffers are copied.

    It starts at the weights that `source` has when it is made. After each optimiser step the loop calls `update`, and
    it saves and restores `module` with the checkpoint, under the average's name in `Task.averages`.

    Attributes:
        module: what holds the average: in eval mode, without gradients, whole in every process.
    """

    def __init__(self, source: nn.Module, decay: Callable[[float], float], *, module: nn.Module | None = None) -> None:
        """Average `source`, or the part of it whose names `module` has.

        Args:
            decay: epochs done before the step (a fraction within an epoch) to the decay of that step, in [0, 1]:
                average = decay * average + (1 - decay) * weights.
            module: holds the average where a copy of all of `source` is too much; its parameters and buffers bear the
                names of `source`'s.
        """
        self._source, self._decay = source, decay
        self.module = copy.deepcopy(source) if module is None else module
        self.module.eval().requires_grad_(False)
        if module is not None:
            self._follow(0.0)

    def update(self, epoch: float) -> None:
        """Follow the source by one step, the `epoch` of which is counted in epochs done before it."""
        self._follow(self._decay(epoch))

    @torch.no_grad()
    def _follow(self, decay: float) -> None:
        parameters, buffers = dict(self._source.named_parameters()), dict(self._source.named_buffers())
        ours = dict(self.module.named_parameters())
        get_ema_multi_avg_fn(decay)(list(ours.values()), [_whole(parameters[name]) for name in ours], 0)
        for name, buffer in self.module.named_buffers():
            buffer.copy_(_whole(buffers[name]))


@torch.no_grad()
def copy_weights(source: nn.Module, module: nn.Module) -> None:
    """Give `module` the parameters and buffers of the same names in `source`, which FSDP may hold in parts.

    All processes call it; `module` is whole in each.
    """
    tensors = dict([*source.named_parameters(), *source.named_buffers()])
    for name, ours in [*module.named_parameters(), *module.named_buffers()]:
        ours.copy_(_whole(tensors[name]))


def constant(decay: float) -> Callable[[float], float]:
    """The same decay in every step."""
    return lambda epoch: decay


def piecewise_linear(points: tuple[tuple[float, float], ...]) -> Callable[[float], float]:
    """(epoch, decay) points with ascending epochs: linear in between, constant outside."""

    def decay(epoch: float) -> float:
        for (start, low), (end, high) in pairwise(points):
            if epoch < end:
                return low + (high - low) * max(0.0, epoch - start) / (end - start)
        return points[-1][1]

    return decay


def _whole(tensor: Tensor) -> Tensor:
    """All of a tensor of which FSDP leaves each process a part: every process takes part in the call."""
    whole: Callable[[], Tensor] | None = getattr(tensor, "full_tensor", None)  # a DTensor, whose import takes a second
    return whole() if whole else tensor.detach()
