"""Masked feature regression: a student learns, at the masked tokens of a clip, what its frozen teachers say there.

The student's view of a clip, its mask and its targets are the same whether the targets are read from a store
(`targets: cached`) or computed beside the student (`targets: online`), so the two runs are the same run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from mvd_offline.errors import PixelMismatchError
from mvd_offline.geometry import TokenGrid
from mvd_offline.local import resolve_root
from mvd_offline.losses import masked_feature_loss
from mvd_offline.models.inputs import normalize
from mvd_offline.models.saving import save_model
from mvd_offline.models.student import build_student
from mvd_offline.randomness import KeyedStream
from mvd_offline.recipe import DistillRecipe, MaskSection, dump_recipe
from mvd_offline.shards.schema import all_differences
from mvd_offline.shards.store import Store, open_store
from mvd_offline.targets import TargetReader, TargetSource, check_teachers, open_targets
from mvd_offline.training.loop import Batch, TrainingSummary, check_launch, train
from mvd_offline.training.optim import EXEMPT, MASK_TOKENS, parameter_groups
from mvd_offline.training.order import BatchRequest, epoch_order
from mvd_offline.training.run import open_run
from mvd_offline.training.state import RunIdentity
from mvd_offline.video.masking import draw_mask, masked_tokens
from mvd_offline.video.views import Plan, View, pixel_hash, render_sizes

STUDENT_FILE = "student.safetensors"


def distill(
    recipe: DistillRecipe,
    *,
    store_dir: Path,
    run: Path,
    root: Path | None = None,
    accelerator: Accelerator | None = None,
) -> TrainingSummary:
    """Train the recipe's student on a store; goes on if `run` holds a started run.

    Args:
        root: folder of the videos, when it is not the one that the store remembers.

    Raises:
        IdentityError: the store's views, teachers, codec or plan differ from the recipe's or the run's; it lists the
            fields.
        NotSealedError: cached targets from a store that `extract` has not finished.
    """
    accelerator = accelerator or Accelerator(mixed_precision=recipe.training.precision)
    store = _open(recipe, store_dir)
    check_store(recipe, store)
    source = open_targets(recipe, store, accelerator.device)
    task = DistillTask(recipe, store, source, resolve_root(store_dir, root))
    check_launch(task.samples_per_epoch(), recipe.optim, recipe.training, accelerator)
    open_run(run, recipe, task.names(), main=accelerator.is_main_process)
    accelerator.wait_for_everyone()
    return train(task, recipe.optim, recipe.training, run=run, accelerator=accelerator)


def _open(recipe: DistillRecipe, store_dir: Path) -> Store:
    """The store; for cached targets sealed in the recipe's columns, whatever becomes of others meanwhile."""
    store = open_store(store_dir, sealed=False)
    if recipe.targets == "cached":
        store.require_sealed(present_columns(recipe, store))
    return store


def present_columns(recipe: DistillRecipe, store: Store) -> list[str]:
    """The recipe's columns that the store has."""
    return [column for column in recipe.active_columns.values() if column in store.columns]


def check_store(recipe: DistillRecipe, store: Store) -> None:
    """Refuse a store that was not made for this recipe.

    Raises:
        IdentityError: lists the dotted path of every field that differs, and both values.
    """
    view = all_differences(recipe.view.model_dump(mode="json"), store.header.view)
    differences = [difference._replace(field=f"view.{difference.field}") for difference in view]
    wanted = recipe.store.model_dump(mode="json")
    names = present_columns(recipe, store)
    kept: dict[str, Any] = {}
    if recipe.targets == "online":
        # The order of samples follows the shards, whatever the targets.
        wanted = {"rows_per_shard": wanted["rows_per_shard"]}
    else:
        kept["max_relative_error"] = _kept_bound(store, names, recipe.store.max_relative_error)
    columns = [{**vars(store.header), **vars(store.header.columns[name]), **kept} for name in names]
    for stored in columns:
        for difference in all_differences(wanted, {key: stored[key] for key in wanted}):
            named = difference._replace(field=f"store.{difference.field}")
            # A column that was added later may be coded otherwise than the first: one of them is the recipe's.
            if named not in differences and all(column[difference.field] != difference.ours for column in columns):
                differences.append(named)
    check_teachers(recipe, store, differences)


def _kept_bound(store: Store, columns: Sequence[str], bound: float | None) -> float | None:
    """What coding may cost: the bound itself where every row keeps it, otherwise what the worst row cost."""
    worst = max((float(store.status(name).coding["relative_error"].max()) for name in columns), default=0.0)
    return bound if bound is None or worst <= bound else worst


# ---- reading -----------------------------------------------------------------------------------------------------


@dataclass
class DistillReader:
    """Reads micro-batches in loader processes: pixels, masks, stored targets."""

    plan: Plan
    root: Path
    store: Store
    targets: TargetReader
    grid: TokenGrid
    mask: MaskSection
    image_size: int
    seed: int
    check_fraction: float
    drop_path_sites: int
    checked: tuple[str, ...]
    """Columns whose recorded pixels must be those that are rendered."""

    def __call__(self, request: BatchRequest) -> Batch:
        views = [self.plan[row] for row in request.rows]
        masks = np.stack([self._mask(request.epoch, view) for view in views])
        masked = np.stack([np.flatnonzero(mask) for mask in masks])
        return {
            "clips": self._clips(request, views),
            "mask": torch.from_numpy(masks),
            "masked": torch.from_numpy(masked),
            "stored": self.targets.read(request.rows, masked),
            "drop_path": torch.from_numpy(self._drop_path(request)),
        }

    def _mask(self, epoch: int, view: View) -> NDArray[np.bool_]:
        stream = KeyedStream("mask", self.seed, epoch, view.view_id)
        return draw_mask(self.mask.kind, self.grid, self.mask.ratio, stream)

    def _drop_path(self, request: BatchRequest) -> NDArray[np.float32]:
        draws = [KeyedStream("drop_path", self.seed, request.epoch, row) for row in request.rows]
        return np.stack([stream.uniforms(self.drop_path_sites) for stream in draws]).astype(np.float32)

    def _clips(self, request: BatchRequest, views: Sequence[View]) -> dict[int, Tensor]:
        sizes = self.targets.sizes(self.image_size)
        rendered = [render_sizes(view, self.root, sizes) for view in views]
        for view, renderings in zip(views, rendered, strict=True):
            if self._is_checked(request, view):
                self._check(view, renderings[self.image_size].pixels, renderings[self.image_size].decoder)
        return {size: torch.from_numpy(np.stack([r[size].pixels for r in rendered])) for size in sizes}

    def _is_checked(self, request: BatchRequest, view: View) -> bool:
        if not self.checked:
            return False
        first = request.epoch == 0 and request.batch == 0
        stream = KeyedStream("pixel_check", self.seed, request.epoch, view.view_id)
        return first or stream.uniform() < self.check_fraction

    def _check(self, view: View, pixels: NDArray[np.uint8], decoder: str) -> None:
        recorded = self.store.pixels_of(view.view_id, self.checked)
        found = pixel_hash(pixels)
        if recorded.pixels != found:
            raise PixelMismatchError(
                f"view {view.view_id} of video {view.video_id} renders to other pixels than its teachers saw: hash "
                f"{found} with {decoder} here, {recorded.pixels} with {recorded.decoder} at extraction. The video "
                "file, the decoder or Pillow changed. Restore the file or the version, or extract the store again."
            )


# ---- the task ----------------------------------------------------------------------------------------------------


class DistillTask:
    """Distillation for the shared loop."""

    def __init__(self, recipe: DistillRecipe, store: Store, source: TargetSource, root: Path) -> None:
        self.title = "distill"
        self._recipe, self._store, self._source = recipe, store, source
        self._plan = Plan.read(store.plan_path)
        self._ok = self._usable_rows()
        seed = recipe.training.seed
        self.identity = RunIdentity(store.store_id, seed, recipe.optim.batch_size)
        torch.manual_seed(KeyedStream("init", seed).torch_seed())
        self.student = build_student(
            recipe.student, recipe.view, {str(name): width for name, width in source.widths.items()}
        )
        if recipe.student.compile:
            self.student.compile()
        self.model: nn.Module = self.student
        self._masked = masked_tokens(recipe.mask.kind, recipe.view.grid, recipe.mask.ratio)
        self.reader: Callable[[BatchRequest], Batch] = DistillReader(
            plan=self._plan,
            root=root,
            store=store,
            targets=source.reader,
            grid=recipe.view.grid,
            mask=recipe.mask,
            image_size=recipe.view.image_size,
            seed=seed,
            check_fraction=recipe.training.pixel_check_fraction,
            drop_path_sites=self.student.drop_path_sites,
            checked=tuple(filter(store.is_indexed, present_columns(recipe, store))),
        )

    def names(self) -> dict[str, str]:
        """What names the data of a run: another store, plan, teacher or set of usable rows is another run."""
        header = self._store.header
        columns = [header.columns[name] for name in present_columns(self._recipe, self._store)]
        return {
            "plan_sha256": header.plan_sha256,
            "store_id": self._store.store_id,
            "usable_rows": hashlib.sha256(np.packbits(self._ok).tobytes()).hexdigest(),
            **{f"column_{column.name}": column.column_id for column in columns},
        }

    def _usable_rows(self) -> NDArray[np.bool_]:
        """For each row of the store's table, whether a student can learn from it."""
        columns = present_columns(self._recipe, self._store)
        if columns and all(map(self._store.is_indexed, columns)):
            rows = self._store.ok_rows(columns)
        else:
            rows = np.array([view.view_id for view in self._plan if view.status == "ok"], np.int64)
        usable = np.zeros(self._plan.rows, bool)
        usable[rows] = True
        return usable

    def _shards(self, epoch: int) -> list[NDArray[np.int64]]:
        group = epoch % self._plan.groups
        per_shard = [self._plan.shard_view_ids(shard) for shard in self._plan.shards(group)]
        usable = [rows[self._ok[rows]] for rows in per_shard]
        return [rows for rows in usable if len(rows)]

    def order(self, epoch: int) -> NDArray[np.int64]:
        training = self._recipe.training
        return epoch_order(
            self._shards(epoch),
            source=self._store.store_id,
            seed=training.seed,
            epoch=epoch,
            window=training.shuffle_window_shards,
        )

    def samples_per_epoch(self) -> int:
        return min(sum(map(len, self._shards(group))) for group in range(self._plan.groups))

    def groups(self) -> list[dict[str, object]]:
        exempt = EXEMPT if self._recipe.quirks.decay_mask_tokens else EXEMPT | MASK_TOKENS
        return parameter_groups(
            self.model.named_parameters(), weight_decay=self._recipe.optim.weight_decay, exempt=exempt
        )

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        section = self._recipe.loss
        video = normalize(batch["clips"][self._recipe.view.image_size])
        predictions: dict[str, Tensor] = model(video, batch["mask"], self._masked, batch["drop_path"])
        targets = self._source.targets(batch["stored"], batch["clips"], batch["masked"])
        losses: dict[str, Any] = {
            f"loss_{name}": masked_feature_loss(
                predictions[name], targets[name], section.kind, section.beta, section.normalize_targets
            )
            for name in self._recipe.active_teachers
        }
        total = sum(section.weights[name] * losses[f"loss_{name}"] for name in self._recipe.active_teachers)
        return {"loss": torch.as_tensor(total), **losses}

    def save(self, folder: Path) -> None:
        save_model(folder / STUDENT_FILE, self.student, recipe=dump_recipe(self._recipe))
