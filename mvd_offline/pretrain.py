"""Teachers from scratch by masked pixel regression: MAE on frames, VideoMAE on clips."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from mvd_offline.geometry import TokenGrid
from mvd_offline.models.inputs import normalize
from mvd_offline.models.pretraining import build_pretrainer
from mvd_offline.models.saving import save_model
from mvd_offline.randomness import KeyedStream
from mvd_offline.recipe import MaskSection, PretrainRecipe, ViewSection, dump_recipe
from mvd_offline.training.catalogs import CatalogRows, say_left_out
from mvd_offline.training.loop import Batch, TrainingSummary, check_launch, train
from mvd_offline.training.optim import parameter_groups
from mvd_offline.training.order import BatchRequest
from mvd_offline.training.run import open_run
from mvd_offline.training.state import RunIdentity
from mvd_offline.video.augment import clip_view, draw_flip, random_resized_crop_box
from mvd_offline.video.catalog import Video
from mvd_offline.video.masking import draw_mask, masked_tokens
from mvd_offline.video.render import View, render
from mvd_offline.video.views import draw_view

TEACHER_FILE = "teacher.safetensors"

# MAE's random resized crop covers at least this share of the image (MAE official code).
MAE_AREA = (0.2, 1.0)


def pretrain(
    recipe: PretrainRecipe, *, catalog_path: Path, run: Path, accelerator: Accelerator | None = None
) -> TrainingSummary:
    """Train a teacher on the videos of a catalog; goes on if `run` holds a started run.

    Raises:
        UsageError: no such catalog, or a run folder of another recipe.
        IdentityError: the run was started on other videos.
    """
    accelerator = accelerator or Accelerator(mixed_precision=recipe.training.precision)
    rows = CatalogRows(catalog_path)
    check_launch(len(rows.videos), recipe.optim, recipe.training, accelerator)
    open_run(run, recipe, {"source": rows.source}, main=accelerator.is_main_process)
    if accelerator.is_main_process:
        say_left_out(rows)
    accelerator.wait_for_everyone()
    return train(PretrainTask(recipe, rows), recipe.optim, recipe.training, run=run, accelerator=accelerator)


@dataclass
class PretrainReader:
    """Renders new views of each video in each epoch, drawn as those of a store whose group is the epoch.

    The draws are keyed by the view section's seed, the masks by `seed`.
    """

    videos: tuple[Video, ...]
    root: Path
    section: ViewSection
    single_frame: bool
    mask: MaskSection
    grid: TokenGrid
    seed: int

    def __call__(self, request: BatchRequest) -> Batch:
        clips = [self._clip(self.videos[row], request.epoch) for row in request.rows]
        masks = [self._mask(request.epoch, self.videos[row]) for row in request.rows]
        return {"clips": torch.from_numpy(np.stack(clips)), "mask": torch.from_numpy(np.stack(masks))}

    def _clip(self, video: Video, epoch: int) -> NDArray[np.uint8]:
        if self.single_frame:
            stream = KeyedStream("mae_view", self.section.seed, video.video_id, epoch)
            frame = stream.below(video.frames)
            box = random_resized_crop_box(video.width, video.height, stream, area=MAE_AREA)
            view = clip_view(video, (frame,), box, flip=draw_flip(0.5, stream), group=epoch)
            return render(view, self.root, self.section.image_size, resample="bicubic_antialias").pixels
        view = View(view_id=0, shard=0, **draw_view(video, self.section, epoch))
        return render(view, self.root, self.section.image_size).pixels

    def _mask(self, epoch: int, video: Video) -> NDArray[np.bool_]:
        stream = KeyedStream("mask", self.seed, epoch, video.video_id)
        return draw_mask(self.mask.kind, self.grid, self.mask.ratio, stream)


class PretrainTask:
    """Masked pixel regression for the shared loop."""

    def __init__(self, recipe: PretrainRecipe, rows: CatalogRows) -> None:
        self.title: str = recipe.method
        self._recipe, self._rows = recipe, rows
        seed = recipe.training.seed
        self.identity = RunIdentity(rows.source, seed, recipe.optim.batch_size)
        torch.manual_seed(KeyedStream("init", seed).torch_seed())
        self.pretrainer = build_pretrainer(recipe.method, recipe.model, recipe.view, recipe.normalize_targets)
        self.model: nn.Module = self.pretrainer
        clip = recipe.view.grid
        self._grid = TokenGrid(1, clip.h, clip.w) if recipe.method == "mae" else clip
        self._masked = masked_tokens(recipe.mask.kind, self._grid, recipe.mask.ratio)
        self.reader: Callable[[BatchRequest], Batch] = PretrainReader(
            videos=rows.videos,
            root=rows.root,
            section=recipe.view,
            single_frame=recipe.method == "mae",
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
        return self._rows.order(self._recipe.training.seed, epoch)

    def samples_per_epoch(self) -> int:
        return len(self._rows.videos)

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        video = normalize(batch["clips"])
        if self._recipe.method == "mae":
            video = video[:, :, 0]
        return {"loss": model(video, batch["mask"], self._masked)}

    def save(self, folder: Path) -> None:
        save_model(folder / TEACHER_FILE, self.pretrainer, recipe=dump_recipe(self._recipe))
