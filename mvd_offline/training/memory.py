"""Memory for the batches that loader processes read."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info


def batch_memory(shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[Tensor, NDArray[Any]]:
    """An array to fill, not initialised, and the tensor over the same memory.

    In a loader process it is memory that the training process shares: handing the tensor over copies nothing.
    """
    kind = torch.from_numpy(np.empty(0, dtype)).dtype
    if get_worker_info() is None:
        tensor = torch.empty(shape, dtype=kind)
    else:
        storage = torch.UntypedStorage._new_shared(math.prod(shape) * dtype.itemsize)
        tensor = torch.empty(0, dtype=kind).set_(storage).view(shape)
    return tensor, tensor.numpy()
