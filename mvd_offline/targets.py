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

from mvd_offline.coding import decode
from mvd_offline.errors import UsageError
from mvd_offline.models.inputs import normalize
from mvd_offline.models.teachers import Teacher, declared_identity, teacher_for
from mvd_offline.models.vit import gather_tokens
from mvd_offline.recipe import DistillRecipe, TeacherName
from mvd_offline.shards.codecs import get_codec
from mvd_offline.shards.errors import IdentityError
from mvd_offline.shards.schema import Difference, all_differences, list_differences
from mvd_offline.shards.store import Store
from mvd_offline.training.memory import batch_memory


class TargetReader(Protocol):
    """The part that runs in loader processes: holds no model."""

    def sizes(self, student_size: int) -> tuple[int, ...]:
        """Sides in pixels at which each view is rendered; the student's comes first."""

    def read(self, view_ids: Sequence[int], tokens: NDArray[np.int64] | None) -> dict[str, Tensor]:
        """What is stored for these tokens, (B, M) indices; for all of them, which is the cheaper read, when None."""


class TargetSource(Protocol):
    """Targets of a distillation run."""

    @property
    def reader(self) -> TargetReader:
        """What loader processes read."""

    widths: dict[TeacherName, int]

    def targets(
        self, stored: Mapping[str, Tensor], clips: Mapping[int, Tensor], tokens: Tensor | None
    ) -> dict[str, Tensor]:
        """Float32 targets (B, M, D) by teacher, on the device.

        Args:
            stored: what `reader.read` gave, on the device.
            clips: uint8 (B, T, S, S, 3) by side in pixels, on the device.
            tokens: (B, M) int64 token indices, on the device; None for all N.
        """


# ---- cached ------------------------------------------------------------------------------------------------------


class CachedReader:
    def __init__(self, store: Store, columns: Mapping[TeacherName, str]) -> None:
        self._store, self._columns = store, columns

    def sizes(self, student_size: int) -> tuple[int, ...]:
        return (student_size,)

    def read(self, view_ids: Sequence[int], tokens: NDArray[np.int64] | None) -> dict[str, Tensor]:
        batch, arrays = self.memory(len(view_ids), tokens)
        self.fill(arrays, view_ids, tokens)
        return batch

    def memory(
        self, rows: int, tokens: NDArray[np.int64] | None
    ) -> tuple[dict[str, Tensor], dict[TeacherName, NDArray[Any]]]:
        """A micro-batch of so many rows, and the arrays over its memory, which `fill` fills."""
        made = {name: self._memory(column, rows, tokens) for name, column in self._columns.items()}
        return {name: batch for name, (batch, _) in made.items()}, {name: array for name, (_, array) in made.items()}

    def fill(
        self, arrays: Mapping[TeacherName, NDArray[Any]], view_ids: Sequence[int], tokens: NDArray[np.int64] | None
    ) -> None:
        """Read views into the arrays, of as many rows."""
        for name, column in self._columns.items():
            if tokens is None:
                self._store.read_coded(column, view_ids, out=arrays[name])
            else:
                self._store.read_tokens(column, view_ids, tokens, out=arrays[name])

    def _memory(self, column: str, rows: int, tokens: NDArray[np.int64] | None) -> tuple[Tensor, NDArray[Any]]:
        spec = self._store.header.columns[column]
        codec = get_codec(spec.codec)
        values = codec.shape(spec.tokens, spec.width)[1]
        count = spec.tokens if tokens is None else tokens.shape[1]
        return batch_memory((rows, count + codec.extra_rows, values), codec.dtype)


class CachedTargets:
    """Targets read from a store: each teacher's from its column."""

    def __init__(self, store: Store, columns: Mapping[TeacherName, str]) -> None:
        missing = [column for column in columns.values() if column not in store.columns]
        if missing:
            raise IdentityError(
                f"the recipe distils from columns {', '.join(columns.values())}, and {store.root} has columns "
                f"{', '.join(store.columns)}; add the missing ones with `mvd-offline extract {store.root} "
                f"--teacher {missing[0]}=PATH`, set their teachers' loss.weights to 0, or make a store with them."
            )
        self.reader = CachedReader(store, columns)
        specs = {name: store.header.columns[column] for name, column in columns.items()}
        self.widths: dict[TeacherName, int] = {name: spec.width for name, spec in specs.items()}
        self._codecs: dict[str, str] = {name: spec.codec for name, spec in specs.items()}

    def targets(
        self, stored: Mapping[str, Tensor], clips: Mapping[int, Tensor], tokens: Tensor | None
    ) -> dict[str, Tensor]:
        return {name: decode(tensor, self._codecs[name]) for name, tensor in stored.items()}


# ---- online ------------------------------------------------------------------------------------------------------


class OnlineReader:
    def __init__(self, teacher_sizes: Sequence[int]) -> None:
        self._teacher_sizes = tuple(teacher_sizes)

    def sizes(self, student_size: int) -> tuple[int, ...]:
        return tuple(dict.fromkeys((student_size, *self._teacher_sizes)))

    def read(self, view_ids: Sequence[int], tokens: NDArray[np.int64] | None) -> dict[str, Tensor]:
        return {}


class OnlineTargets:
    """Targets computed by the teachers inside the training step: the oracle that cached targets must equal."""

    def __init__(self, teachers: Mapping[TeacherName, Teacher], device: torch.device) -> None:
        self._teachers = {name: teacher.to(device) for name, teacher in teachers.items()}
        self.widths: dict[TeacherName, int] = {name: teacher.width for name, teacher in teachers.items()}
        self.reader = OnlineReader([teacher.image_size for teacher in teachers.values()])

    def targets(
        self, stored: Mapping[str, Tensor], clips: Mapping[int, Tensor], tokens: Tensor | None
    ) -> dict[str, Tensor]:
        result: dict[str, Tensor] = {}
        for name, teacher in self._teachers.items():
            video = normalize(clips[teacher.image_size])
            with torch.no_grad(), torch.autocast(video.device.type, enabled=False):
                features = teacher(video)
            result[name] = features if tokens is None else gather_tokens(features, tokens)
        return result


# ---- choosing, checking ------------------------------------------------------------------------------------------


def open_targets(recipe: DistillRecipe, store: Store, device: torch.device) -> TargetSource:
    """The recipe's source of targets, after checking it against the store's identity."""
    if recipe.targets == "cached":
        return CachedTargets(store, recipe.active_columns)
    return OnlineTargets(
        {name: teacher_for(recipe.teachers[name], recipe.view, name) for name in recipe.active_teachers}, device
    )


def check_teachers(recipe: DistillRecipe, store: Store, found: Sequence[Difference] = ()) -> None:
    """Refuse a store whose teachers are not the recipe's.

    Compared is the whole identity of each teacher where its weights are at hand, and otherwise what the recipe says.

    Args:
        found: differences known already; they are told together with the teachers'.

    Raises:
        IdentityError: lists every field that differs, with the recipe's value and the store's.
        UsageError: neither the weights nor their pinned hash is at hand, so that nothing shows which they are.
    """
    names = [name for name, column in recipe.active_columns.items() if column in store.columns]
    if differences := [*found, *(d for name in names for d in _teacher_differences(recipe, store, name))]:
        raise IdentityError(
            f"{store.root} was not made for this recipe:{list_differences(differences, 'recipe', 'store')}\n"
            "Use the recipe and the --set that the store was planned with, or --set these fields to the store's "
            "values, or plan another store."
        )
    for name in names:
        section, stored = recipe.teachers[name], store.header.columns[recipe.column(name)].source["weights_sha256"]
        if section.sha256 is None and not _is_at_hand(section.weights):
            raise UsageError(
                f"teachers.{name}.weights: {section.weights} is not on this machine, so that nothing shows that it is "
                f"the teacher of this store. Give the file, or pin the store's hash with "
                f"--set teachers.{name}.sha256={stored}"
            )


_RECIPE_KEYS = {"weights_sha256": "sha256", "architecture.heads": "heads"}
"""Fields of an identity that a recipe calls otherwise."""


def _teacher_differences(recipe: DistillRecipe, store: Store, name: TeacherName) -> list[Difference]:
    section, source = recipe.teachers[name], store.header.columns[recipe.column(name)].source
    if section.sha256 is None and _is_at_hand(section.weights):
        wanted = teacher_for(section, recipe.view, name).identity()
    else:
        wanted = declared_identity(section, recipe.view, name)
    return [
        difference._replace(field=f"teachers.{name}.{_RECIPE_KEYS.get(difference.field, difference.field)}")
        for difference in all_differences(wanted, _common(source, wanted))
    ]


def _common(value: Any, like: Any) -> Any:
    """`value` without the fields that `like` does not have."""
    if not (isinstance(value, Mapping) and isinstance(like, Mapping)):
        return value
    return {key: _common(value[key], like[key]) for key in like if key in value}


def _is_at_hand(weights: str) -> bool:
    return weights.startswith(("timm:", "random:")) or Path(weights).exists()
