"""The processes of a launch: one, several copies of the model (DDP), or one model in parts (FSDP2)."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedDataParallelKwargs, FullyShardedDataParallelPlugin
from torch import nn

from mvd_offline.errors import UsageError
from mvd_offline.processes import join_launch
from mvd_offline.recipe import TrainingSection

SHARDED_MODULE = "Block"
"""Class of `models.vit` whose weights FSDP gathers and frees as one."""


def open_accelerator(training: TrainingSection) -> Accelerator:
    """The accelerator of this launch, as `accelerate launch` describes it in the environment.

    Several processes keep copies of the model (DDP), or, with `--use_fsdp --fsdp_version 2`, parts of it.

    Raises:
        UsageError: another kind of sharding than FSDP2, or FSDP2 without GPUs.
    """
    sharding = sharding_of_launch()
    accelerator = join_launch(mixed_precision=training.precision, fsdp_plugin=sharding)
    if sharding is not None and not accelerator.is_fsdp2:
        # It would train copies of the whole model instead, without a word.
        raise UsageError(f"the launch asks for FSDP, which accelerate has for GPUs only; this is {accelerator.device}.")
    return accelerator


def prepare(
    model: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator, *, syncs_every_backward: bool
) -> tuple[nn.Module, AcceleratedOptimizer]:
    """Model and optimiser as this launch holds them.

    Args:
        syncs_every_backward: there is no gradient accumulation.
    """
    # Every step of a task uses the same parameters in the same way, which spares DDP to look for them. But with
    # gradient accumulation PyTorch (seen in 2.11) fails on a static graph, and where it does not, it stops to average
    # gradients without a word: https://github.com/pytorch/pytorch/pull/187732
    # The models' buffers are tables that never change. Gradients live in the buckets in which they are averaged.
    accelerator.ddp_handler = DistributedDataParallelKwargs(
        static_graph=syncs_every_backward, broadcast_buffers=False, gradient_as_bucket_view=True
    )
    prepared_model, prepared_optimizer = accelerator.prepare(model, optimizer)
    return prepared_model, prepared_optimizer


def sharding_of_launch() -> FullyShardedDataParallelPlugin | None:
    """How to shard, if the launch asks for it; `open_accelerator` uses it."""
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return None
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise UsageError(f"the launch asks for FSDP version {version}, and this program uses 2: add --fsdp_version 2.")
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=[SHARDED_MODULE],
        # Checkpoints are put back after sharding. Accelerate's own loading knows no buffers, which students have.
        cpu_ram_efficient_loading=False,
    )
