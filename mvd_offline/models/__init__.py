"""Students, teachers and classifiers. Importing this package loads no torch; using a function does."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mvd_offline.models.loading import load_classifier, load_student
    from mvd_offline.models.teachers import load_teacher

__all__ = ["load_classifier", "load_student", "load_teacher"]

_HOMES = {"load_classifier": "loading", "load_student": "loading", "load_teacher": "teachers"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
