"""What other targets make of a student's loss and of its gradient: the same clips, under the same masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvd_offline.distillation.data import open_store_data
from mvd_offline.distillation.mixing import StoreShare
from mvd_offline.distillation.task import DistillTask
from mvd_offline.errors import UsageError
from mvd_offline.losses import Objective, objectives_of
from mvd_offline.models.inputs import normalize
from mvd_offline.models.loading import load_student
from mvd_offline.models.student import PerTokenStudent, Student
from mvd_offline.models.vit import gather_tokens
from mvd_offline.recipe import DistillRecipe, TeacherName
from mvd_offline.training.order import BatchRequest

AnyStudent = Student | PerTokenStudent


@dataclass(frozen=True)
class LossEffect:
    """Of other targets in place of the exact ones. The gradient is that of all of the student's parameters."""

    loss: float
    """With the exact targets."""
    change: float
    """Of the loss, relative to that."""
    gradient_cosine: float
    gradient_difference: float
    """L2 norm of the difference of the gradients over that of the exact one."""


@dataclass(frozen=True)
class Shown:
    """What a student sees of some clips, and what it is asked for.

    Attributes:
        pixels: uint8 (B, T, S, S, 3).
        mask: bool (B, N), True = masked.
        tokens: int64 (B, M), which it predicts; all of them when None, as a per-token student.
    """

    pixels: Tensor
    mask: Tensor
    tokens: Tensor | None

    def part(self, start: int, rows: int) -> Shown:
        some = slice(start, start + rows)
        return Shown(self.pixels[some], self.mask[some], None if self.tokens is None else self.tokens[some])


class TargetComparison:
    """One term of a student's loss with a teacher's exact features, to be compared with the same term with others.

    The student is in evaluation mode, so that drop path draws nothing.
    """

    def __init__(
        self,
        student: AnyStudent,
        name: TeacherName,
        objective: Objective,
        shown: Shown,
        exact: Tensor,
        *,
        micro_batch_size: int = 8,
    ) -> None:
        """`exact`: float32 (B, N, D), of all tokens."""
        self._student, self._name, self._objective, self._shown = student.eval(), name, objective, shown
        self._rows = micro_batch_size
        self._loss, self._gradient = self._backward(exact)

    def effect(self, targets: Tensor) -> LossEffect:
        """Of targets (B, N, D) in place of the exact ones."""
        loss, gradient = self._backward(targets)
        before, after, moved = (
            float(torch.linalg.vector_norm(vector, dtype=torch.float64))
            for vector in (self._gradient, gradient, gradient - self._gradient)
        )
        tiny = np.finfo(np.float64).tiny
        # 1 - cos = (|e|^2 - (|b| - |a|)^2) / (2 |a| |b|), which keeps its digits where the two are nearly the same.
        missing = (moved**2 - (after - before) ** 2) / max(2 * before * after, tiny)
        return LossEffect(self._loss, loss / self._loss - 1, 1 - missing, moved / max(before, tiny))

    def _backward(self, targets: Tensor) -> tuple[float, Tensor]:
        """The loss, and its gradient as one vector."""
        student, device = self._student, next(self._student.parameters()).device
        student.zero_grad(set_to_none=True)
        total = 0.0
        for start in range(0, len(targets), self._rows):
            shown = self._shown.part(start, self._rows)
            wanted = targets[start : start + self._rows].to(device)
            if shown.tokens is not None:
                wanted = gather_tokens(wanted, shown.tokens.to(device))
            prediction = _predict(student, shown, device)[self._name]
            loss = self._objective(prediction, wanted) * (len(wanted) / len(targets))
            loss.backward()
            total += float(loss.detach())
        gradients = [p.grad.flatten() for p in student.parameters() if p.grad is not None]
        student.zero_grad(set_to_none=True)
        return total, torch.cat(gradients)


def _predict(student: AnyStudent, shown: Shown, device: torch.device) -> dict[str, Tensor]:
    video = normalize(shown.pixels.to(device))
    if isinstance(student, PerTokenStudent):
        return student(video)
    decoded = None if shown.tokens is None else shown.tokens.to(device)
    return student(video, shown.mask.to(device), decoded=decoded)


class StoreLosses:
    """A recipe's student before a store that was made for the recipe: clips and masks as in its first epoch.

    Attributes:
        columns: of the store, which the recipe learns from.
        clips: of each column, on which losses are computed.
        student: which it is, in words.
    """

    def __init__(
        self, recipe: DistillRecipe, store_dir: Path, *, student: Path | None, clips: int, root: Path | None = None
    ) -> None:
        """`student`: weights of one that was trained by such a recipe; the recipe's own, as it begins, when None.

        Raises:
            IdentityError: the store was not made for the recipe; it lists the fields.
            UsageError: the recipe has no teacher, or the student is none of such a recipe.
        """
        recipe = recipe.model_copy(
            update={"targets": "cached", "student": recipe.student.model_copy(update={"compile": False})}
        )
        if not recipe.active_columns:
            raise UsageError(f"recipe {recipe.name} learns from no teacher, so that codecs do not change its loss.")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._recipe = recipe
        self._task = DistillTask(recipe, *open_store_data(recipe, StoreShare(store_dir, root=root), device))
        self._student = (self._task.student if student is None else _load(student, self._task.student)).to(device)
        self._names = {column: name for name, column in recipe.active_columns.items()}
        self.columns, self.clips = tuple(self._names), clips
        self.student = f"the untrained one of {recipe.name}" if student is None else str(student)

    def compare(self, column: str, view_ids: Sequence[int], exact: Tensor) -> TargetComparison:
        """A column's term of the loss on these views; `exact` is float32 (B, N, D).

        Raises:
            UsageError: the recipe does not learn from that column.
            VideoError, PixelMismatchError: a view cannot be read as its teachers saw it.
        """
        if column not in self._names:
            raise UsageError(
                f"recipe {self._recipe.name} does not learn from column {column}, but from {', '.join(self.columns)}: "
                "give one of these as --column, or another recipe."
            )
        # The first batch: its pixels are checked against the store's hashes.
        batch = self._task.reader(BatchRequest(0, 0, 0, True, tuple(view_ids)))
        shown = Shown(batch["clips"][self._recipe.view.image_size], batch["mask"], batch["tokens"])
        name = self._names[column]
        return TargetComparison(
            self._student,
            name,
            objectives_of(self._recipe)[name],
            shown,
            exact,
            micro_batch_size=self._recipe.optim.micro_batch_size,
        )


def _load(path: Path, wanted: AnyStudent) -> AnyStudent:
    """A trained student that predicts at least what `wanted` does, of clips of the same size."""
    found = load_student(path)
    sizes = {
        "kind": (_kind(found), _kind(wanted)),
        "token grid": (found.grid, wanted.grid),
        "patch_size": (found.patch_size, wanted.patch_size),
        "tubelet_size": (found.tubelet_size, wanted.tubelet_size),
        **{f"width of {name}": (found.targets.get(name), width) for name, width in wanted.targets.items()},
    }
    if differing := [f"{name} {has} (the recipe: {needs})" for name, (has, needs) in sizes.items() if has != needs]:
        raise UsageError(
            f"{path} is no student of this recipe: it has {', '.join(differing)}. Give the student.safetensors of a "
            "run of the recipe, or the recipe of its run."
        )
    return found


def _kind(student: AnyStudent) -> str:
    return "per token" if isinstance(student, PerTokenStudent) else "masked"


def as_targets(rows: Sequence[NDArray[np.float32]]) -> Tensor:
    """Rows (N, D) as one tensor (B, N, D)."""
    return torch.from_numpy(np.stack(rows))
