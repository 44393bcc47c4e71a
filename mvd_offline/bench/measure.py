"""What every measurement carries: its spread, and the machine it was taken on."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mvd_offline.recipe import Precision


@dataclass(frozen=True)
class Spread:
    """Of repeated measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


def machine(device: torch.device | None = None) -> dict[str, Any]:
    """What a measurement was taken on; without `device`, on the processor."""
    name = torch.cuda.get_device_name(device) if device is not None and device.type == "cuda" else _processor()
    return {
        "device": name,
        "cpus": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "torch_threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def wait_for(device: torch.device) -> None:
    """Until the device has done all that it was told to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_tflops(device: torch.device, precision: Precision) -> float:
    """What the device can do: 1e12 operations a second of the best of five products of large square matrices."""
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision, torch.float32)
    size, seconds = 8192 if device.type == "cuda" else 2048, []
    one, other = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    for _ in range(6):
        wait_for(device)
        began = time.perf_counter()
        one @ other
        wait_for(device)
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds[1:]) / 1e12


def _processor() -> str:
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
