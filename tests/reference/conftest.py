"""Weights and numbers that the official MVD code computed at a tiny size, from random weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

TINY = Path(__file__).parent / "mvd_tiny"


@pytest.fixture(scope="session")
def tiny() -> Path:
    return TINY


@pytest.fixture(scope="session")
def facts() -> dict[str, Any]:
    return json.loads((TINY / "facts.json").read_text())


@pytest.fixture(scope="session")
def vectors() -> dict[str, torch.Tensor]:
    return load_file(TINY / "vectors.safetensors")


@pytest.fixture(scope="session")
def assert_same() -> Callable[[torch.Tensor, torch.Tensor], None]:
    """Equal to 1e-5 of the values' size."""

    def check(actual: torch.Tensor, expected: torch.Tensor) -> None:
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)

    return check
