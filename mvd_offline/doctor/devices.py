"""GPUs: the driver, what torch makes of them, and whether they really compute."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator

from mvd_offline.doctor.findings import Finding, guarded

_CPU = "Training at full size needs one; the demo and the smoke recipes run on the CPU."


def findings() -> list[Finding]:
    found = guarded("driver", _driver, "warning", "Ask the machine's administrator about nvidia-smi.")
    return found + guarded("GPU", _devices, "warning", "Mend torch first: nothing can be said about GPUs without it.")


def _driver() -> Iterator[Finding]:
    """The driver as nvidia-smi knows it, whatever torch says."""
    if shutil.which("nvidia-smi") is None:
        return
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=30)
    if answer.returncode:
        reason = " ".join((answer.stdout + answer.stderr).split())[:200]
        yield Finding("driver", "warning", f"nvidia-smi fails: {reason}", "Restart the machine or mend its driver.")
        return
    gpus = [line.split(", ") for line in answer.stdout.strip().splitlines()]
    yield Finding("driver", "ok", f"{gpus[0][-1]}, {len(gpus)} GPU{'s' if len(gpus) != 1 else ''}")


def _devices() -> Iterator[Finding]:
    import torch

    built = torch.version.cuda
    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi") is None:
            yield Finding("GPU", "warning", f"none; torch is built for {f'CUDA {built}' if built else 'the CPU'}", _CPU)
        elif built is None:
            yield Finding("GPU", "warning", "torch is built for the CPU alone", "Install a torch built for CUDA.")
        else:
            do = f"The driver may be too old for CUDA {built}, or CUDA_VISIBLE_DEVICES hides the GPUs."
            yield Finding("GPU", "warning", f"torch is built for CUDA {built} and sees none", do)
        return
    for index in range(torch.cuda.device_count()):
        yield from guarded(
            f"GPU {index}",
            lambda index=index: _device(index),  # type: ignore[misc]
            "missing",
            f"Install a torch that is built for this GPU and its driver; this one is built for CUDA {built}.",
        )


def _device(index: int) -> Iterator[Finding]:
    import torch

    facts = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    ones = torch.ones(8, 8, device=f"cuda:{index}")
    if float((ones @ ones).sum()) != 512.0:
        yield Finding(f"GPU {index}", "missing", f"{facts.name} computes 8 x 8 ones wrongly", "Do not use this GPU.")
        return
    bf16 = "bfloat16 in hardware" if facts.major >= 8 else "no bfloat16: use precision fp16"
    words = (
        f"{facts.name}, {total / 1e9:.0f} GB ({free / 1e9:.0f} free), compute capability {facts.major}.{facts.minor}, "
        f"{bf16}; torch is built for CUDA {torch.version.cuda}"
    )
    if free < 0.5 * total:
        do = "Other processes hold the rest; see nvidia-smi."
        yield Finding(f"GPU {index}", "warning", words, do)
    else:
        yield Finding(f"GPU {index}", "ok", words)
