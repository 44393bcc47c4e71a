"""A distillation under FSDP2 on CPU processes: `accelerate launch ... sharded.py RECIPE STORE RUN [A.B=C ...]`.

Accelerate shards on GPUs only: on CPU processes it would keep copies, whatever the launch asks for. The sharding
itself works there, so this script asks for it where accelerate would have decided, and all else is the real thing.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor

from mvd_offline.distill import distill
from mvd_offline.recipe import load_distill
from mvd_offline.training.launch import sharding_of_launch


def main(recipe: str, store: str, run: str, *overrides: str) -> None:
    accelerator = Accelerator()
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    accelerator.state.fsdp_plugin = sharding_of_launch()
    accelerator.state.distributed_type = DistributedType.FSDP
    distill(load_distill(recipe, overrides), store_dir=Path(store), run=Path(run), accelerator=accelerator)
    (student,) = accelerator._models
    parameters = list(student.parameters())
    held = sum(parameter.to_local().numel() for parameter in parameters if isinstance(parameter, DTensor))
    total = sum(parameter.numel() for parameter in parameters)
    sys.stdout.write(f"holds {held / total:.2f} of the student\n")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
