"""The processes of one launch: how they are joined, and left."""

from __future__ import annotations

import atexit
import faulthandler
import gc
from datetime import timedelta
from typing import Any, Final

from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import distributed

LEAVING_SECONDS: Final = 120.0
"""How long a process that ends waits for an operation that it began together with others."""


def join_launch(patience: timedelta | None = None, **options: Any) -> Accelerator:
    """The accelerator of this process, as `accelerate launch` or Slurm describes the launch in the environment.

    Args:
        patience: how long a process waits for the others where they do not work in step; PyTorch's default when None.
        options: of `Accelerator`.
    """
    if distributed.is_available():
        # Its functions take the group of all processes as their default, for good, if it is there when they are made.
        # Collectives of objects import it; imported before there is a group, it keeps none alive.
        import torch.distributed.nn  # noqa: F401
    handlers = [] if patience is None else [InitProcessGroupKwargs(timeout=patience)]
    accelerator = Accelerator(kwargs_handlers=handlers, **options)
    atexit.unregister(_leave)
    atexit.register(_leave)
    return accelerator


def _leave() -> None:
    """End the threads of the process group while Python still runs.

    A thread of gloo may let go of a tensor when Python is at its end, which aborts a process that was done
    (https://github.com/pytorch/pytorch/issues/190489). They end with the group's last reference.
    """
    if distributed.is_available() and distributed.is_initialized():
        # What an error left half done, such as the averaging of a gradient, may wait for others that never come.
        faulthandler.dump_traceback_later(LEAVING_SECONDS, exit=True, file=2)
        distributed.destroy_process_group()
        gc.collect()  # models under DDP refer to the group, and to themselves
        faulthandler.cancel_dump_traceback_later()
