"""What a student predicts of the tokens that it does not see, beside what its teachers say there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from mvd_offline.distillation.data import DistillData, open_store_data
from mvd_offline.distillation.mixing import StoreShare
from mvd_offline.distillation.task import STUDENT_FILE, DistillTask
from mvd_offline.errors import UsageError
from mvd_offline.losses import TARGET_NORM_EPS, objectives_of
from mvd_offline.models.inputs import normalize
from mvd_offline.models.loading import load_student
from mvd_offline.models.pretraining import videomae_targets
from mvd_offline.models.student import PerTokenStudent, Student
from mvd_offline.recipe import DistillRecipe
from mvd_offline.targets import TargetSource
from mvd_offline.training.order import BatchRequest

BEFORE: Final = "before training"
AFTER: Final = "after training"


@dataclass(frozen=True)
class PredictedClip:
    """A clip, its mask, and how far predictions are from their targets.

    Attributes:
        view_id: number of the view in the run's order; the store's own where a run has one store.
        frames: uint8 (t, S, S, 3): the front frame of each slice.
        visible: bool (t, h, w): the tokens that the student sees.
        errors: by target and by `BEFORE` or `AFTER`: 1 - cosine, float32 (t, h, w); NaN where nothing is predicted.
    """

    view_id: int
    frames: NDArray[np.uint8]
    visible: NDArray[np.bool_]
    errors: Mapping[str, Mapping[str, NDArray[np.float32]]]

    def means(self) -> dict[str, dict[str, float]]:
        """Over the tokens that are predicted."""
        return {
            target: {when: float(np.nanmean(error)) for when, error in each.items()}
            for target, each in self.errors.items()
        }

    def to_json(self) -> dict[str, Any]:
        return {"view_id": self.view_id, "visible": int(self.visible.sum()), "cosine_error": self.means()}


def predict_store(
    recipe: DistillRecipe,
    run: Path,
    store_dir: Path,
    *,
    views: Sequence[int] | None = None,
    clips: int = 2,
    root: Path | None = None,
) -> list[PredictedClip]:
    """A finished run's predictions on views of a store, under the masks of its first epoch.

    Args:
        recipe: of the run.
        run: folder of the run, which has a student.
        views: which ones; the first `clips` of the first epoch when None.

    Raises:
        UsageError: the run has no student yet, or the store has no such view to learn from.
        IdentityError: the store was not made for the recipe.
    """
    student = run / STUDENT_FILE
    if not student.is_file():
        raise UsageError(f"{run} has no {STUDENT_FILE} yet: finish the run, or give the folder of a finished one.")
    recipe = recipe.model_copy(update={"targets": "cached" if recipe.active_teachers else recipe.targets})
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data, source = open_store_data(recipe, StoreShare(store_dir, root=root), device)
    usable = set(data.samples.order(0).tolist()) if views is None else _usable(data, recipe)
    if missing := [view for view in views or () if view not in usable]:
        raise UsageError(f"{store_dir} has no view {missing[0]} that this run learns from.")
    return predict(recipe, data, source, student, device, rows=views, clips=clips)


def _usable(data: DistillData, recipe: DistillRecipe) -> set[int]:
    """Views of all epochs' groups."""
    return {row for epoch in range(recipe.view.groups) for row in data.samples.order(epoch).tolist()}


def predict(
    recipe: DistillRecipe,
    data: DistillData,
    source: TargetSource,
    student: Path,
    device: torch.device,
    *,
    rows: Sequence[int] | None = None,
    clips: int = 2,
) -> list[PredictedClip]:
    """Predictions of a trained student, and of the one that its training began with.

    The latter is drawn by the recipe's seed; where `student.init` names weights that are gone, it is left out. Targets
    of a momentum teacher are left out: it is not kept.

    Args:
        data, source: of the run, as its trainer opened them.
        student: weights.
        rows: numbers of the clips in the run's data; the first `clips` of its first epoch when None.
    """
    recipe = _plain(recipe)
    init = recipe.student.init
    has_start = init is None or Path(init).exists() or init.startswith("timm:")
    task = DistillTask(recipe, data, source, init_sha256=None if has_start else "gone")
    wanted = tuple(task.order(0)[:clips].tolist() if rows is None else rows)
    batch = task.reader(BatchRequest(0, 0, 0, True, wanted))
    pixels = batch["clips"]
    shown = {side: tensor.to(device) for side, tensor in pixels.items()}
    video, mask = normalize(shown[recipe.view.image_size]), batch["mask"].to(device)
    tokens = None if batch["tokens"] is None else batch["tokens"].to(device)
    targets = _targets(recipe, source, {n: t.to(device) for n, t in batch["stored"].items()}, shown, video, tokens)
    students = {BEFORE: task.student} if has_start else {}
    students[AFTER] = load_student(student)
    errors = {when: _errors(one.to(device).eval(), video, mask, tokens, targets) for when, one in students.items()}
    grid, tubelet = recipe.view.grid, recipe.view.tubelet_size
    shape = (grid.t, grid.h, grid.w)
    front = pixels[recipe.view.image_size].numpy()[:, ::tubelet]
    visible = ~batch["mask"].numpy()
    found = []
    for place, row in enumerate(wanted):
        own = None if batch["tokens"] is None else batch["tokens"][place].numpy()
        maps = {
            name: {when: _on_grid(error[name][place], own, shape) for when, error in errors.items()} for name in targets
        }
        found.append(PredictedClip(row, front[place], visible[place].reshape(shape), maps))
    return found


def _plain(recipe: DistillRecipe) -> DistillRecipe:
    """The recipe for one forward pass: what only makes training fast or small is left out."""
    student = recipe.student.model_copy(update={"compile": False, "checkpoint_activations": False})
    return recipe.model_copy(update={"student": student, "momentum": None, "ema": None, "unpack_clips": "loader"})


def _targets(
    recipe: DistillRecipe,
    source: TargetSource,
    stored: Mapping[str, Tensor],
    clips: Mapping[int, Tensor],
    video: Tensor,
    tokens: Tensor | None,
) -> dict[str, Tensor]:
    """What the loss compares predictions with: (B, K, D) by target."""
    objectives, view = objectives_of(recipe), recipe.view
    found = {
        name: F.layer_norm(features, features.shape[-1:], eps=TARGET_NORM_EPS)
        if objectives[name].normalize_targets
        else features
        for name, features in source.targets(stored, clips, tokens).items()
    }
    if pixels := recipe.pixels:
        found["pixels"] = videomae_targets(video, view.tubelet_size, view.patch_size, pixels.normalize_targets, tokens)
    return found


@torch.no_grad()
def _errors(
    student: Student | PerTokenStudent,
    video: Tensor,
    mask: Tensor,
    tokens: Tensor | None,
    targets: Mapping[str, Tensor],
) -> dict[str, NDArray[np.float32]]:
    """1 - cosine at the predicted tokens: (B, K) by target."""
    predictions = student(video) if isinstance(student, PerTokenStudent) else student(video, mask, decoded=tokens)
    return {
        name: (1.0 - F.cosine_similarity(predictions[name].float(), target, dim=2)).cpu().numpy()
        for name, target in targets.items()
    }


def _on_grid(
    errors: NDArray[np.float32], tokens: NDArray[np.int64] | None, shape: tuple[int, int, int]
) -> NDArray[np.float32]:
    """Errors (K,) at their places in the token grid."""
    if tokens is None:
        return errors.reshape(shape)
    found = np.full(int(np.prod(shape)), np.nan, np.float32)
    found[tokens] = errors
    return found.reshape(shape)
