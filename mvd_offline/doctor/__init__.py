"""Whether a machine is ready for this system: what is there, what is missing, and what to do about it."""

from __future__ import annotations

from pathlib import Path

from mvd_offline.doctor.findings import Finding

__all__ = ["Finding", "examine"]


def examine(store: Path, workers: int = 8) -> list[Finding]:
    """Look at this machine; a part that breaks is a finding, not an error.

    Args:
        store: folder where stores and runs will lie; it need not be there.
        workers: loader processes to plan for.
    """
    from mvd_offline.doctor import decoders, devices, packages, system

    return [
        *packages.findings(),
        *devices.findings(),
        *decoders.findings(),
        *system.findings(store, workers),
    ]
