"""An estimate of the memory of one training process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mvd_offline.costs.counting import Activations, StepCost
from mvd_offline.recipe import OptimSection, TrainingSection

LEFT_OUT: Final = (
    "the allocator's fragments, temporary results within an operation, DDP's buckets (about the gradients once more), "
    "the CUDA context, and batches that are read ahead"
)
_FLOAT32: Final = 4


@dataclass(frozen=True)
class Memory:
    """Bytes of one process at the end of the forward pass of an accumulated micro-batch, where they are most.

    Weights, gradients and the optimiser's states (AdamW's two, Muon's one) are float32 whatever the precision; what
    autocast keeps of weights in 16 bits counts as activations. Sharding (FSDP) divides the first three by the
    processes; these are not divided.
    """

    weights: int
    gradients: int
    optimizer: int
    frozen: int
    """Weights that are not trained: averages of the student, teachers that run beside it."""
    clips: int
    """The micro-batch itself, as pixels and as float32."""
    activations: dict[str, Activations]
    """By precision, `float32` or `16-bit`, each without and with activation checkpointing."""
    precision: str
    """The recipe's."""
    checkpointed: bool
    """Whether the recipe asks for activation checkpointing."""
    total: int
    """As the recipe is."""
    left_out: str = LEFT_OUT


def memory_of(
    step: StepCost,
    optim: OptimSection,
    training: TrainingSection,
    *,
    checkpointed: bool,
    clip_values: int,
    frozen: int = 0,
) -> Memory:
    """The memory of a process that runs `step`.

    Args:
        checkpointed: whether with activation checkpointing.
        clip_values: of a micro-batch: clips x frames x height x width x 3.
        frozen: weights beside the trained ones.
    """
    weights = step.parameter_count * _FLOAT32
    states = 2 * weights - (step.hidden_matrices * _FLOAT32 if optim.optimizer == "muon" else 0)
    precision = "float32" if training.precision == "no" else "16-bit"
    activations = step.activations[precision]
    clips = clip_values * (_FLOAT32 + 1)
    held = activations.checkpointed if checkpointed else activations.plain
    return Memory(
        weights=weights,
        gradients=weights,
        optimizer=states,
        frozen=frozen * _FLOAT32,
        clips=clips,
        activations=step.activations,
        precision=precision,
        checkpointed=checkpointed,
        total=2 * weights + states + frozen * _FLOAT32 + clips + held,
    )
