"""What the processes of a step must agree on: its losses, the gradient's norm, and whether to go on."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import gather_object
from torch import Tensor, nn

from mvd_offline.errors import NonFiniteLossError
from mvd_offline.training.order import BatchRequest


class StepLosses:
    """The losses of a step's micro-batches, kept on the device until the step is complete."""

    def __init__(self) -> None:
        self._measured: list[tuple[BatchRequest, dict[str, Tensor]]] = []

    def add(self, parts: dict[str, Tensor], request: BatchRequest) -> None:
        self._measured.append((request, {name: value.detach().float() for name, value in parts.items()}))

    def agree(self, step: int, norm: Tensor, stop: bool, accelerator: Accelerator) -> tuple[dict[str, float], bool]:
        """Mean losses of the global batch and the gradient's norm; and whether any process wants to stop.

        One reduction for all of it, and the one place of a step that waits for the device. Leftovers of an epoch
        before are no part of the means.

        Raises:
            NonFiniteLossError: in all processes at once, if any micro-batch of any has a loss that is not finite.
        """
        own = [parts for request, parts in self._measured if not request.leftover]
        means = [torch.stack([parts[name] for parts in own]).mean() for name in own[0]]
        total = torch.stack([parts["loss"] for _, parts in self._measured]).sum()
        reduced = accelerator.reduce(torch.stack([*means, norm, total, torch.full_like(total, stop)]), reduction="mean")
        *values, all_losses, stopping = reduced.tolist()
        if not math.isfinite(all_losses):
            raise self._not_finite(step)
        self._measured.clear()
        return dict(zip([*own[0], "grad_norm"], values, strict=True)), stopping > 0

    def _not_finite(self, step: int) -> NonFiniteLossError:
        found = [
            (", ".join(f"{name} {float(value):g}" for name, value in parts.items()), request.rows)
            for request, parts in self._measured
            if not bool(torch.isfinite(parts["loss"]))
        ]
        guilty = gather_object(found)
        texts = "; ".join(text for text, _ in guilty)
        return NonFiniteLossError(
            f"the loss of step {step} is not finite ({texts}; rows of these micro-batches: "
            f"{', '.join(str(row) for _, bad in guilty for row in bad)}). No update was made. Look at the rows with "
            "`mvd-offline shards show`; with fp16, try training.precision bf16; or lower optim.base_lr. "
            "The run goes on from its last checkpoint."
        )


def gradient_norm(accelerator: Accelerator, optimizer: AcceleratedOptimizer, model: nn.Module) -> Tensor:
    """Norm of all gradients, a scalar on the device; a gradient scaler's factor is taken out of them first."""
    accelerator.unscale_gradients(optimizer)
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    whole: Callable[[], Tensor] | None = getattr(norm, "full_tensor", None)  # a DTensor, whose import takes a second
    return whole() if whole else norm


def clip_gradients(model: nn.Module, norm: Tensor, limit: float | None) -> None:
    """Scale gradients of this norm down to `limit`, if there is one."""
    if limit is not None:
        torch.nn.utils.clip_grads_with_norm_([p for p in model.parameters() if p.grad is not None], limit, norm)
