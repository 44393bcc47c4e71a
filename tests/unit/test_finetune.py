"""What a fine-tuning batch holds, and the loss that it minimises."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mvd_offline.errors import VideoError
from mvd_offline.finetuning.drawing import Erasure
from mvd_offline.finetuning.erasing import erase
from mvd_offline.finetuning.mixing import Mix
from mvd_offline.finetuning.reading import FinetuneReader
from mvd_offline.finetuning.task import CLASSIFIER_FILE, EMA_FILE, FinetuneTask
from mvd_offline.models import load_classifier
from mvd_offline.models.classifier import build_classifier
from mvd_offline.models.inputs import normalize
from mvd_offline.recipe import (
    AugmentSection,
    ClassifierSection,
    ClipSection,
    ErasingSection,
    FinetuneRecipe,
    MixingSection,
    RandAugmentSection,
)
from mvd_offline.training.catalogs import CatalogRows
from mvd_offline.training.order import BatchRequest
from mvd_offline.video.crops import CropBox
from mvd_offline.video.decode import decode
from mvd_offline.video.render import crop_and_resize

MODEL = ClassifierSection(width=48, depth=2, heads=3, classes=3)
DENSE = ClipSection(frames=4, stride=4, image_size=32)
UNIFORM = ClipSection(frames=4, image_size=32, sampling="uniform")


def request(*rows: int, epoch: int = 0) -> BatchRequest:
    return BatchRequest(epoch, 0, 0, True, rows)


@pytest.fixture
def reader(known_videos: Any) -> Callable[..., FinetuneReader]:
    """Reads the ramp (row 0) and the disc (row 1)."""

    def make(clip: ClipSection = DENSE, **changes: Any) -> FinetuneReader:
        sites = {"drop_path_sites": 4, "dropout_sites": 0, "augment": AugmentSection(), "mixing": None, "seed": 0}
        videos = (known_videos.ramp, known_videos.disc)
        return FinetuneReader(videos=videos, root=known_videos.root, clip=clip, **(sites | changes))

    return make


# ---- what a batch holds ------------------------------------------------------------------------------------------


def test_dense_sampling_reads_a_random_window_of_frames_times_stride(reader: Any, known_videos: Any) -> None:
    read = reader(DENSE)
    found = [known_videos.frames_in(read(request(0, epoch=epoch))["clips"][0].numpy()) for epoch in range(20)]
    # Four points over 16 frames, both ends included, the end clipped: 16 / 3 apart, as released.
    assert {tuple(i - clip[0] for i in clip) for clip in found} == {(0, 5, 10, 15)}
    assert len({clip[0] for clip in found}) > 8
    assert all(0 <= clip[0] <= 37 for clip in found)


def test_uniform_sampling_reads_a_random_frame_of_each_segment(reader: Any, known_videos: Any) -> None:
    read = reader(UNIFORM)
    found = [known_videos.frames_in(read(request(0, epoch=epoch))["clips"][0].numpy()) for epoch in range(20)]
    bounds = (0, 13, 26, 40, 53)
    for k in range(4):
        frames = {clip[k] for clip in found}
        assert min(frames) >= bounds[k]
        assert max(frames) <= bounds[k + 1]
        assert len(frames) > 5


def test_a_clip_is_one_crop_resized_without_antialiasing(reader: Any, known_videos: Any) -> None:
    whole = AugmentSection(area=(1.0, 1.0), aspect=(64 / 48, 64 / 48), flip=0.0)
    clip = reader(ClipSection(frames=2, stride=10, image_size=16), augment=whole)(request(1))["clips"][0]
    frames = decode(known_videos.root / "disc.mp4", (0, 19)).frames  # 20 frames, a span of 20: both ends
    expected = crop_and_resize(frames, CropBox(0, 0, 64, 48), 16, 16, resample="bilinear")
    assert torch.equal(clip, torch.from_numpy(expected))


def test_the_flip_is_that_of_the_recipe(reader: Any) -> None:
    plain, flipped = (reader(augment=AugmentSection(flip=flip))(request(1))["clips"] for flip in (0.0, 1))
    assert torch.equal(plain.flip(3), flipped)
    assert not torch.equal(plain, flipped)


def test_a_batch_is_a_function_of_seed_epoch_and_videos(reader: Any) -> None:
    one = reader(dropout_sites=48)(request(0, 1))
    again = reader(dropout_sites=48)(request(1, 0))
    for name, value in one.items():
        assert torch.equal(value, again[name].flip(0)), name
    for other in (reader(dropout_sites=48)(request(0, 1, epoch=1)), reader(dropout_sites=48, seed=1)(request(0, 1))):
        differing = {name for name, value in one.items() if not torch.equal(value, other[name])}
        assert differing == {"clips", "drop_path", "dropout"}


def test_labels_and_noise_have_a_row_for_each_video(reader: Any) -> None:
    batch = reader(dropout_sites=48)(request(0, 1, 0))
    assert batch["labels"].tolist() == [1, 0, 1]
    assert batch["clips"].shape == (3, 4, 32, 32, 3)
    assert batch["drop_path"].shape == (3, 4)
    assert batch["dropout"].shape == (3, 48)
    for noise in (batch["drop_path"], batch["dropout"]):
        assert not torch.equal(noise[0], noise[1])
        assert torch.equal(noise[0], noise[2])
    assert "dropout" not in reader()(request(0))


def test_a_video_that_changed_since_its_scan_is_an_error_that_names_it(reader: Any) -> None:
    read = reader()
    read.videos = (replace(read.videos[0], width=480, height=320),)
    with pytest.raises(VideoError, match=r"^ramp\.mp4: frames are 48 x 32 pixels, but were 480 x 320 when"):
        read(request(0))


EVERYTHING = AugmentSection(
    repeats=2, rand_augment=RandAugmentSection(), erasing=ErasingSection(probability=0.5), area=(0.3, 1.0)
)


def test_repeated_views_lie_side_by_side_and_show_the_same_frames(reader: Any, known_videos: Any) -> None:
    gentle = AugmentSection(repeats=2, area=(0.3, 0.9))
    batch = reader(augment=gentle, dropout_sites=48)(request(0, 1))
    first, again, disc, disc_again = batch["clips"].numpy()
    assert batch["labels"].tolist() == [1, 1, 0, 0]
    assert known_videos.frames_in(first) == known_videos.frames_in(again)
    assert not np.array_equal(disc, disc_again)
    assert max(first[0].std(), again[0].std()) < 5 < min(disc[0].std(), disc_again[0].std()), (
        "frames of the ramp are plain"
    )
    for noise in (batch["drop_path"], batch["dropout"]):
        assert len({tuple(row.tolist()) for row in noise}) == 4
    plain = reader(augment=AugmentSection(area=(0.3, 0.9)), dropout_sites=48)(request(0, 1))
    for name, value in plain.items():
        assert torch.equal(value, batch[name][::2]), f"{name} of the first views"


def test_everything_that_is_drawn_is_the_same_wherever_a_video_is_read(reader: Any) -> None:
    read = reader(augment=EVERYTHING, dropout_sites=48)
    both, alone = read(request(0, 1)), read(request(1))
    for name in ("clips", "labels", "drop_path", "dropout"):
        assert torch.equal(both[name][2:], alone[name]), name
    assert both["erasures"][2:] == alone["erasures"]
    epochs = [read(request(0, 1, epoch=epoch))["erasures"] for epoch in range(10)]
    assert sum(erasure is not None for erasures in epochs for erasure in erasures) == pytest.approx(20, abs=12)


def test_how_a_micro_batch_is_mixed_depends_on_its_place_in_the_global_batch(reader: Any) -> None:
    read = reader(mixing=MixingSection())
    mixes = {
        place: read(BatchRequest(epoch, batch, first, True, (0, 1)))["mix"]
        for place in ((0, 0, 0), (0, 0, 2), (0, 1, 0), (1, 0, 0))
        for epoch, batch, first in [place]
    }
    assert len(set(mixes.values())) == 4
    assert read(BatchRequest(0, 0, 2, False, (1,)))["mix"] == mixes[0, 0, 2]
    assert "mix" not in reader()(request(0))


# ---- the loss ----------------------------------------------------------------------------------------------------


def task(known_videos: Any, folder: Path, **changes: Any) -> FinetuneTask:
    recipe = FinetuneRecipe(kind="finetune", name="unit", clip=DENSE, **({"model": MODEL} | changes))
    return FinetuneTask(recipe, CatalogRows(known_videos.write_catalog(folder / "catalog.parquet")), None)


class Says(nn.Module):
    """A model that gives these logits."""

    def __init__(self, *logits: list[float]) -> None:
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, video: Tensor, drop_path: Tensor, dropout: Tensor | None) -> Tensor:
        assert video.dtype == torch.float32
        return self.logits


def test_label_smoothing_by_hand(known_videos: Any, tmp_path: Path) -> None:
    batch = {
        "clips": torch.zeros(2, 4, 32, 32, 3, dtype=torch.uint8),
        "labels": torch.tensor([0, 1]),
        "drop_path": torch.zeros(2, 4),
    }
    found = task(known_videos, tmp_path, label_smoothing=0.3).loss(Says([2.0, 0.0, -1.0], [2.0, 0.0, -1.0]), batch)
    # The right class has 1 - 0.3 + 0.3 / 3 = 0.8, each other one 0.1.
    normaliser = math.log(math.exp(2) + 1 + math.exp(-1))
    right_is_0 = -(0.8 * 2.0 + 0.1 * 0.0 + 0.1 * -1.0) + normaliser
    right_is_1 = -(0.1 * 2.0 + 0.8 * 0.0 + 0.1 * -1.0) + normaliser
    assert found["loss"].item() == pytest.approx((right_is_0 + right_is_1) / 2, rel=1e-6)
    assert found["accuracy"].item() == 0.5


def test_a_mixed_batch_is_erased_then_blended_and_has_soft_labels(known_videos: Any, tmp_path: Path) -> None:
    seen: list[Tensor] = []

    class Sees(Says):
        def forward(self, video: Tensor, drop_path: Tensor, dropout: Tensor | None) -> Tensor:
            seen.append(video)
            return super().forward(video, drop_path, dropout)

    clips = torch.zeros(2, 4, 32, 32, 3, dtype=torch.uint8)
    clips[1] = 255
    erasures = [None, Erasure(CropBox(0, 0, 8, 8), seed=1)]
    batch = {"clips": clips, "labels": torch.tensor([0, 2]), "drop_path": torch.zeros(2, 4), "erasures": erasures}
    logits = [[2.0, 0.0, -1.0], [0.0, 1.0, 3.0]]
    unit = task(known_videos, tmp_path, label_smoothing=0.1)
    unit.loss(Sees(*logits), batch)
    mixed = unit.loss(Sees(*logits), batch | {"mix": Mix(0.75)})

    plain, blended = seen
    assert torch.equal(plain, erase(normalize(clips), erasures))
    torch.testing.assert_close(blended, 0.75 * plain + 0.25 * plain.flip(0))
    targets = torch.tensor([[0.9 * 0.75, 0.0, 0.9 * 0.25], [0.9 * 0.25, 0.0, 0.9 * 0.75]]) + 0.1 / 3
    torch.testing.assert_close(mixed["loss"], -(targets * torch.tensor(logits).log_softmax(1)).sum(1).mean())
    assert mixed["accuracy"].item() == 1.0
    assert unit.loss(Sees(*logits), batch | {"mix": Mix(0.25)})["accuracy"].item() == 0.0, "the other label weighs more"


def test_cutmix_goes_along_time_only_as_a_quirk(known_videos: Any, tmp_path: Path) -> None:
    """With a box of the first 8 rows, which along time are all 4 frames, a plain clip changes in other places."""
    clips = torch.zeros(2, 4, 32, 32, 3, dtype=torch.uint8)
    clips[1] = 255
    batch = {"clips": clips, "labels": torch.tensor([0, 1]), "mix": Mix(0.875, CropBox(x=0, y=0, w=16, h=8))}
    changed = {}
    for in_time in (False, True):
        unit = task(known_videos, tmp_path, quirks={"cutmix_in_time": in_time})
        video, labels = unit._augmented(dict(batch))
        changed[in_time] = video[0] > 0
        assert labels[0].tolist() == [0.875, 0.125, 0.0]
    rows_and_columns, frames_and_rows = torch.zeros(2, 3, 4, 32, 32, dtype=torch.bool)
    rows_and_columns[..., :8, :16] = True
    frames_and_rows[:, :8, :16] = True
    assert torch.equal(changed[False], rows_and_columns)
    assert torch.equal(changed[True], frames_and_rows)


def counted(sizes: list[int], tensor: Tensor) -> Tensor:
    sizes.append(tensor.numel())
    return tensor


def test_recomputed_activations_give_the_same_loss_and_gradients(known_videos: Any, tmp_path: Path) -> None:
    rows = CatalogRows(known_videos.write_catalog(tmp_path / "catalog.parquet"))
    found = []
    for checkpointed in (False, True):
        model = MODEL.model_copy(update={"drop_path": 0.5, "checkpoint_activations": checkpointed})
        recipe = FinetuneRecipe(kind="finetune", name="unit", clip=DENSE, model=model, augment=EVERYTHING)
        unit = FinetuneTask(recipe, rows, None)
        unit.model.train()
        kept: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(partial(counted, kept), lambda tensor: tensor):
            loss = unit.loss(unit.model, unit.reader(request(0, 1)))["loss"]
        loss.backward()
        gradients = {name: p.grad for name, p in unit.model.named_parameters()}
        found.append((loss.detach(), gradients, sum(kept)))
    (loss, gradients, all_kept), (again, recomputed, few_kept) = found
    torch.testing.assert_close(again, loss)
    torch.testing.assert_close(recomputed, gradients)
    assert few_kept < all_kept / 2


def test_the_average_of_the_weights_is_saved_beside_them(known_videos: Any, tmp_path: Path) -> None:
    unit = task(known_videos, tmp_path, ema={"decay": 0.9})
    start = unit.classifier.head.weight.detach().clone()
    with torch.no_grad():
        unit.classifier.head.weight.add_(1.0)
    unit.averages["ema"].update(0.0)
    unit.save(tmp_path, unit.classifier.state_dict())
    saved = {name: load_classifier(tmp_path / name).head.weight for name in (CLASSIFIER_FILE, EMA_FILE)}
    torch.testing.assert_close(saved[CLASSIFIER_FILE], start + 1.0)
    torch.testing.assert_close(saved[EMA_FILE], start + 0.1)


def test_the_learning_rate_falls_by_layer_and_norms_are_not_decayed(known_videos: Any, tmp_path: Path) -> None:
    optim = {"layer_decay": 0.5, "weight_decay": 0.05}
    groups = task(known_videos, tmp_path, optim=optim).groups()
    scale = {name: group["lr_scale"] for group in groups for name in group["names"]}  # type: ignore[attr-defined]
    decay = {name: group["weight_decay"] for group in groups for name in group["names"]}  # type: ignore[attr-defined]
    assert scale["head.weight"] == scale["fc_norm.weight"] == 1.0
    assert scale["blocks.1.attn.qkv.weight"] == 0.5
    assert scale["blocks.0.norm1.bias"] == 0.25
    assert scale["patch_embed.proj.weight"] == 0.125
    assert {name for name, value in decay.items() if value} == {
        name
        for name in scale
        if name.endswith(("proj.weight", "qkv.weight", "fc1.weight", "fc2.weight", "head.weight"))
    }


def test_dropout_comes_from_the_batch_so_it_does_not_depend_on_its_split() -> None:
    torch.manual_seed(0)
    model = build_classifier(MODEL.model_copy(update={"head_dropout": 0.5, "head_init_scale": 1.0}), DENSE).train()
    video, drop_path, dropout = torch.randn(4, 3, 4, 32, 32), torch.rand(4, 4), torch.rand(4, 48)
    whole = model(video, drop_path, dropout)
    halves = [model(video[part], drop_path[part], dropout[part]) for part in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close(torch.cat(halves), whole)
    expected = model.head(2.0 * model.features(video, drop_path) * (dropout >= 0.5))
    torch.testing.assert_close(whole, expected)
    torch.testing.assert_close(model.eval()(video, drop_path, dropout), model.head(model.features(video)))


def test_a_batch_counts_videos_however_many_views_each_has(known_videos: Any, tmp_path: Path) -> None:
    twice = task(known_videos, tmp_path, augment=AugmentSection(repeats=2))

    assert (twice.unit, twice.samples_per_epoch()) == ("videos", 2)
    assert len(twice.reader(request(0, 1))["clips"]) == 4
