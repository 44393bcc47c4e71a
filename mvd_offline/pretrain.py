"""Teachers from scratch by masked pixel regression: MAE on images or frames of videos, VideoMAE on clips."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from mvd_offline.accounting import begin_launch, write_report
from mvd_offline.examples.pretrain import write_pretrain_examples
from mvd_offline.geometry import TokenGrid
from mvd_offline.models.inputs import normalize
from mvd_offline.models.pretraining import build_pretrainer
from mvd_offline.models.saving import save_model
from mvd_offline.randomness import KeyedStream
from mvd_offline.recipe import MaskSection, PretrainRecipe, ViewSection, dump_recipe
from mvd_offline.report.leaving import leave_report
from mvd_offline.training.averages import Average
from mvd_offline.training.catalogs import CatalogRows, say_left_out
from mvd_offline.training.launch import open_accelerator
from mvd_offline.training.loop import Batch, TrainingSummary, check_launch, train
from mvd_offline.training.optim import parameter_groups
from mvd_offline.training.order import BatchRequest
from mvd_offline.training.run import open_run
from mvd_offline.training.state import RunIdentity
from mvd_offline.video.catalog import Video
from mvd_offline.video.masking import draw_mask, masked_tokens
from mvd_offline.video.render import Resample, View, render
from mvd_offline.video.views import draw_view

TEACHER_FILE = "teacher.safetensors"


def pretrain(
    recipe: PretrainRecipe, *, catalog_path: Path, run: Path, accelerator: Accelerator | None = None
) -> TrainingSummary:
    """Train a teacher on the videos of a catalog; goes on if `run` holds a started run.

    Raises:
        UsageError: no such catalog, or a run folder of another recipe.
        IdentityError: the run was started on other videos.
    """
    accelerator = accelerator or open_accelerator(recipe.training)
    rows = CatalogRows(catalog_path)
    check_launch(len(rows.videos) * recipe.view.num_sample, recipe.optim, recipe.training, accelerator)
    open_run(run, recipe, {"source": rows.source}, main=accelerator.is_main_process)
    if accelerator.is_main_process:
        say_left_out(rows)
        begin_launch(run, accelerator)
    accelerator.wait_for_everyone()
    task = PretrainTask(recipe, rows)
    summary = train(task, recipe.optim, recipe.training, run=run, accelerator=accelerator)
    if accelerator.is_main_process:
        write_report(run, recipe.optim.batch_size)
        leave_report(
            run,
            lambda: write_pretrain_examples(run, run / TEACHER_FILE, recipe, task, task.name_of, accelerator.device),
            trained=summary.steps > 0,
        )
    return summary


@dataclass
class PretrainReader:
    """Renders new views of each video in each epoch, drawn as those of a store whose group is the epoch.

    Row r is clip r mod `section.num_sample` of video r // `section.num_sample`. The draws are keyed by the view
    section's seed, the masks by `seed`.
    """

    videos: tuple[Video, ...]
    root: Path
    section: ViewSection
    resample: Resample
    mask: MaskSection
    grid: TokenGrid
    seed: int

    def __call__(self, request: BatchRequest) -> Batch:
        clips = [self._clip(row, request.epoch) for row in request.rows]
        masks = [self._mask(row, request.epoch) for row in request.rows]
        return {"clips": torch.from_numpy(np.stack(clips)), "mask": torch.from_numpy(np.stack(masks))}

    def _clip(self, row: int, epoch: int) -> NDArray[np.uint8]:
        video, segment = self._place(row)
        view = View(view_id=0, shard=0, **draw_view(video, self.section, epoch, segment))
        return render(view, self.root, self.section.image_size, resample=self.resample).pixels

    def _mask(self, row: int, epoch: int) -> NDArray[np.bool_]:
        video, segment = self._place(row)
        key = (video.video_id, segment) if self.section.num_sample > 1 else (video.video_id,)
        return draw_mask(self.mask.kind, self.grid, self.mask.ratio, KeyedStream("mask", self.seed, epoch, *key))

    def _place(self, row: int) -> tuple[Video, int]:
        position, segment = divmod(row, self.section.num_sample)
        return self.videos[position], segment


class PretrainTask:
    """Masked pixel regression for the shared loop."""

    def __init__(self, recipe: PretrainRecipe, rows: CatalogRows) -> None:
        self.title: str = recipe.method
        self.unit = "clips"
        self._recipe, self._rows = recipe, rows
        seed = recipe.training.seed
        self.identity = RunIdentity(rows.source, seed, recipe.optim.batch_size)
        torch.manual_seed(KeyedStream("init", seed).torch_seed())
        self.pretrainer = build_pretrainer(recipe.method, recipe.model, recipe.view, recipe.normalize_targets)
        self.model: nn.Module = self.pretrainer
        section = _section(recipe)
        self._grid = section.grid
        self._masked = masked_tokens(recipe.mask.kind, self._grid, recipe.mask.ratio)
        self.averages: Mapping[str, Average] = {}
        self.may_wait = False
        self.reader: Callable[[BatchRequest], Batch] = PretrainReader(
            videos=rows.videos,
            root=rows.root,
            section=section,
            # As torchvision's RandomResizedCrop in MAE's official code; clips as everywhere else.
            resample="bicubic_antialias" if recipe.method == "mae" else "bilinear_antialias",
            mask=recipe.mask,
            grid=self._grid,
            seed=seed,
        )

    def groups(self) -> list[dict[str, object]]:
        # Both exempt 1-D tensors and biases, VideoMAE's official code its mask token too; MAE's decays its tokens.
        exempt = frozenset({"mask_token"}) if self._recipe.method == "videomae" else frozenset[str]()
        return parameter_groups(
            self.model.named_parameters(), weight_decay=self._recipe.optim.weight_decay, exempt=exempt
        )

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The videos shuffled; the clips of one stay together."""
        clips = self._recipe.view.num_sample
        videos = self._rows.order(self._recipe.training.seed, epoch)
        return (videos[:, None] * clips + np.arange(clips)).reshape(-1)

    def samples_per_epoch(self) -> int:
        return len(self._rows.videos) * self._recipe.view.num_sample

    def name_of(self, row: int) -> str:
        """The video of a row."""
        return self._rows.videos[row // self._recipe.view.num_sample].video_id

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        video = normalize(batch["clips"])
        if self._recipe.method == "mae":
            video = video[:, :, 0]
        return {"loss": model(video, batch["mask"], self._masked)}

    def save(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        save_model(folder / TEACHER_FILE, self.pretrainer, recipe=dump_recipe(self._recipe), state=state)


def _section(recipe: PretrainRecipe) -> ViewSection:
    """What is drawn of a video: MAE sees single frames, whatever the clips of the view section."""
    if recipe.method == "videomae":
        return recipe.view
    return recipe.view.model_copy(update={"frames": 1, "stride": 1, "tubelet_size": 1})
