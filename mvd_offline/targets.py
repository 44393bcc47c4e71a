"""Where a distillation step gets its targets: from a store, or from teachers that run beside the student.

This is the only door through which training reaches teachers. Both sources answer the same two questions: what a
loader process must read for a micro-batch, and how the training process makes float32 targets of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvd_offline.errors import UsageError
from mvd_offline.models.inputs import normalize
from mvd_offline.models.teachers import Teacher, teacher_for
from mvd_offline.recipe import DistillRecipe, TeacherName
from mvd_offline.shards.codecs import INT8_SCALE_BYTES
from mvd_offline.shards.errors import IdentityError
from mvd_offline.shards.store import Store


class TargetReader(Protocol):
    """The part that runs in loader processes: holds no model."""

    def sizes(self, student_size: int) -> tuple[int, ...]:
        """Sides in pixels at which each view is rendered; the student's comes first."""

    def read(self, view_ids: Sequence[int], masked: NDArray[np.int64]) -> dict[str, Tensor]:
        """What is stored for the masked tokens; `masked` is (B, M) token indices."""


class TargetSource(Protocol):
    """Targets of a distillation run."""

    reader: TargetReader
    widths: dict[TeacherName, int]

    def targets(self, stored: Mapping[str, Tensor], clips: Mapping[int, Tensor], masked: Tensor) -> dict[str, Tensor]:
        """Float32 targets (B, M, D) by teacher, on the device.

        Args:
            stored: what `reader.read` gave, on the device.
            clips: uint8 (B, T, S, S, 3) by side in pixels, on the device.
            masked: (B, M) int64 token indices, on the device.
        """


# ---- cached ------------------------------------------------------------------------------------------------------


class CachedReader:
    def __init__(self, store: Store, names: Sequence[TeacherName]) -> None:
        self._store, self._names = store, names

    def sizes(self, student_size: int) -> tuple[int, ...]:
        return (student_size,)

    def read(self, view_ids: Sequence[int], masked: NDArray[np.int64]) -> dict[str, Tensor]:
        return {name: torch.from_numpy(self._store.read_tokens(name, view_ids, masked)) for name in self._names}


class CachedTargets:
    """Targets read from a store."""

    def __init__(self, store: Store, names: Sequence[TeacherName]) -> None:
        missing = [name for name in names if name not in store.columns]
        if missing:
            raise IdentityError(
                f"the recipe distils from teachers {', '.join(names)}, and {store.root} has columns "
                f"{', '.join(store.columns)}; set loss.weights of the missing ones to 0, or make a store with them."
            )
        self.reader: TargetReader = CachedReader(store, names)
        self.widths: dict[TeacherName, int] = {name: store.header.columns[name].width for name in names}
        self._codecs: dict[str, str] = {name: store.header.columns[name].codec for name in names}

    def targets(self, stored: Mapping[str, Tensor], clips: Mapping[int, Tensor], masked: Tensor) -> dict[str, Tensor]:
        return {name: decode(tensor, self._codecs[name]) for name, tensor in stored.items()}


def decode(coded: Tensor, codec: str) -> Tensor:
    """Coded tokens (B, M + extra rows, columns), as `Store.read_tokens` gives them, to float32 (B, M, D).

    The same values to the bit as the codec's own `decode`, on the tensor's device.
    """
    if codec == "bfloat16":
        # numpy has no bfloat16: the bits travel as uint16.
        return coded.view(torch.bfloat16).float()
    if codec == "int8":
        width = coded.shape[-1] - INT8_SCALE_BYTES
        scales = coded[:, :-1, width:].contiguous().view(torch.float32)
        levels = torch.ldexp(scales.new_ones(()), coded[:, -1:, :width].int())
        return coded[:, :-1, :width] * scales * levels
    return coded.float()


# ---- online ------------------------------------------------------------------------------------------------------


class OnlineReader:
    def __init__(self, teacher_sizes: Sequence[int]) -> None:
        self._teacher_sizes = tuple(teacher_sizes)

    def sizes(self, student_size: int) -> tuple[int, ...]:
        return tuple(dict.fromkeys((student_size, *self._teacher_sizes)))

    def read(self, view_ids: Sequence[int], masked: NDArray[np.int64]) -> dict[str, Tensor]:
        return {}


class OnlineTargets:
    """Targets computed by the teachers inside the training step: the oracle that cached targets must equal."""

    def __init__(self, teachers: Mapping[TeacherName, Teacher], device: torch.device) -> None:
        self._teachers = {name: teacher.to(device) for name, teacher in teachers.items()}
        self.widths: dict[TeacherName, int] = {name: teacher.width for name, teacher in teachers.items()}
        self.reader: TargetReader = OnlineReader([teacher.image_size for teacher in teachers.values()])

    def targets(self, stored: Mapping[str, Tensor], clips: Mapping[int, Tensor], masked: Tensor) -> dict[str, Tensor]:
        result: dict[str, Tensor] = {}
        for name, teacher in self._teachers.items():
            with torch.no_grad(), torch.autocast(masked.device.type, enabled=False):
                features = teacher(normalize(clips[teacher.image_size]))
            result[name] = torch.gather(features, 1, masked[..., None].expand(-1, -1, features.shape[-1]))
        return result


# ---- choosing, checking ------------------------------------------------------------------------------------------


def open_targets(recipe: DistillRecipe, store: Store, device: torch.device) -> TargetSource:
    """The recipe's source of targets, after checking it against the store's identity."""
    if recipe.targets == "cached":
        return CachedTargets(store, recipe.active_teachers)
    return OnlineTargets(
        {name: teacher_for(recipe.teachers[name], recipe.view, name) for name in recipe.active_teachers}, device
    )


def check_teachers(recipe: DistillRecipe, store: Store) -> None:
    """Refuse a store whose teachers are not the recipe's.

    Raises:
        IdentityError: names the field, the recipe's value and the store's.
        UsageError: neither the weights nor their pinned hash is at hand, so that nothing can be compared.
    """
    for name in recipe.active_teachers:
        if name not in store.columns:
            continue
        section, source = recipe.teachers[name], store.header.columns[name].source
        expected_hash = section.sha256 or _hash_of(recipe, name, str(source["weights_sha256"]))
        heads = source["architecture"]["heads"]
        found: dict[str, tuple[Any, Any]] = {
            "sha256": (expected_hash, source["weights_sha256"]),
            "heads": (section.heads or heads, heads),
            "image_size": (section.image_size or recipe.view.image_size, source["image_size"]),
            "precision": (section.precision, source["precision"]),
        }
        for field, (wanted, stored) in found.items():
            if wanted != stored:
                raise IdentityError(
                    f"teachers.{name}.{field}: the recipe has {wanted!r}, the store {store.root} was made with "
                    f"{stored!r}. Use the recipe that the store was planned with, or make a store for this one."
                )


def _hash_of(recipe: DistillRecipe, name: TeacherName, stored: str) -> str:
    weights = recipe.teachers[name].weights
    if not weights.startswith(("timm:", "random:")) and not Path(weights).exists():
        raise UsageError(
            f"teachers.{name}.weights: {weights} is not on this machine, so that nothing shows that it is the teacher "
            f"of this store. Give the file, or pin the store's hash with --set teachers.{name}.sha256={stored}"
        )
    return teacher_for(recipe.teachers[name], recipe.view, name).weights_sha256
