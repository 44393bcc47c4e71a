"""The state of a training as whole tensors by name, however the launch holds it: on one process, on many, in parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mvd_offline.training.averages import Average


@dataclass(frozen=True)
class Snapshot:
    """What a run needs to go on, besides its position.

    Attributes:
        model: parameters and buffers.
        optimizer: `parameter/key` to tensor, such as `blocks.0.norm1.bias/exp_avg`.
        averages: parameters and buffers of each average.
        scaler: the gradient scaler's numbers, with fp16.
    """

    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    averages: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    scaler: Mapping[str, Any] | None = None


def take_snapshot(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    averages: Mapping[str, Average],
    scaler: Mapping[str, Any] | None,
) -> Snapshot:
    """Gather the state. All processes call it; only the first has the tensors of model and optimiser afterwards."""
    from torch.distributed.checkpoint import state_dict  # a second to load, which who does not train need not wait for

    # Gathered on the first process only, in its main memory.
    whole = state_dict.StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights: Any = state_dict.get_model_state_dict(model, options=whole)
    states: Any = state_dict.get_optimizer_state_dict(model, optimizer, options=whole).get("state", {})
    return Snapshot(
        model=weights,
        optimizer={f"{name}/{key}": value for name, state in states.items() for key, value in state.items()},
        averages={name: average.module.state_dict() for name, average in averages.items()},
        scaler=scaler,
    )


def put_back(
    snapshot: Snapshot, model: nn.Module, optimizer: torch.optim.Optimizer, averages: Mapping[str, Average]
) -> None:
    """The inverse of `take_snapshot` (but for the scaler), on any launch. All processes call it, with all tensors."""
    from torch.distributed.checkpoint import state_dict

    options = state_dict.StateDictOptions(full_state_dict=True)
    states: dict[str, Any] = {}
    for path, value in snapshot.optimizer.items():
        name, _, key = path.rpartition("/")
        states.setdefault(name, {})[key] = value
    # Rates, decays and the like are the recipe's, which a run shares with the one that it goes on from.
    groups = state_dict.get_optimizer_state_dict(model, optimizer)["param_groups"]
    state_dict.set_optimizer_state_dict(model, optimizer, {"state": states, "param_groups": groups}, options=options)
    # After the optimiser, whose state PyTorch sets up by a step that changes nothing.
    state_dict.set_model_state_dict(model, dict(snapshot.model), options=options)
    for name, average in averages.items():
        average.module.load_state_dict(snapshot.averages[name])
