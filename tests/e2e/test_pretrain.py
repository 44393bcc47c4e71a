"""Teachers from scratch on real, small videos: what they read, what they leave, and that they are usable."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from small_runs import fill, make_videos, once, plan_small

from mvd_offline.cli.main import main
from mvd_offline.models import load_teacher
from mvd_offline.pretrain import PretrainReader, PretrainTask, pretrain
from mvd_offline.recipe import load_pretrain
from mvd_offline.shards.store import open_store
from mvd_offline.training.catalogs import CatalogRows
from mvd_offline.training.order import BatchRequest
from mvd_offline.video.views import View, draw_view, render

# 12 videos: 3 steps an epoch. Frames of 2 x 2 patches, clips of 2 x 2 x 2 tokens.
RECIPE: dict[str, Any] = {
    "kind": "pretrain",
    "name": "small",
    "view": {"frames": 4, "stride": 2, "image_size": 32},
    "model": {"width": 48, "depth": 2, "heads": 3, "decoder": {"depth": 1, "width": 32, "heads": 2}},
    "optim": {
        "epochs": 4, "warmup_epochs": 1, "batch_size": 4, "micro_batch_size": 2,
        "base_lr": 2.0e-3, "min_lr": 0.0, "lr_reference_batch": 4,
    },
    "training": {"workers": 0, "log_every_steps": 1, "checkpoint_every_epochs": 1, "tensorboard": False},
}  # fmt: skip
METHODS: dict[str, dict[str, Any]] = {
    "mae": {
        "method": "mae",
        "view": RECIPE["view"] | {"crop": "random_resized", "flip": 0.5},
        "mask": {"kind": "random", "ratio": 0.75},
    },
    "videomae": {"method": "videomae", "mask": {"kind": "tube", "ratio": 0.75}},
}


def recipe(method: str, **optim: Any) -> Any:
    data = copy.deepcopy(RECIPE) | METHODS[method]
    data["optim"] |= optim
    return load_pretrain(data)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once(tmp_path_factory, "videos", make_videos) / "catalog.parquet"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, catalog: Path) -> Path:
    """A finished run of each method."""

    def make(folder: Path) -> None:
        for method in METHODS:
            pretrain(recipe(method), catalog_path=catalog, run=folder / method)

    return once(tmp_path_factory, "pretrain", make)


def records(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "time"} for line in lines]


# ---- what a run leaves -------------------------------------------------------------------------------------------


def test_teachers_load_and_give_a_vector_for_each_token(runs: Path) -> None:
    video = torch.randn(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    features = {}
    for kind, method in (("image", "mae"), ("video", "videomae")):
        teacher = load_teacher(runs / method / "teacher.safetensors", kind)
        features[kind] = teacher(video)
        assert features[kind].shape == (2, 8, 48)
        assert features[kind].isfinite().all()
    # The image teacher sees the front frame of each tubelet alone; the video teacher sees all.
    video[:, :, 1::2] = 0
    image, clip = (
        load_teacher(runs / method / "teacher.safetensors", kind)(video)
        for kind, method in (("image", "mae"), ("video", "videomae"))
    )
    torch.testing.assert_close(image, features["image"])
    assert not torch.allclose(clip, features["video"], atol=1e-3)


def test_files_have_the_official_names(runs: Path) -> None:
    def names(method: str) -> set[str]:
        with safe_open(runs / method / "teacher.safetensors", "pt") as file:
            return set(file.keys())

    block = {
        f"{part}.{kind}"
        for part in ("norm1", "norm2", "attn.proj", "mlp.fc1", "mlp.fc2")
        for kind in ("weight", "bias")
    }
    fused, split = (
        block | {"attn.qkv.weight", "attn.qkv.bias"},
        block | {"attn.qkv.weight", "attn.q_bias", "attn.v_bias"},
    )
    assert names("mae") == (
        {"cls_token", "pos_embed", "mask_token", "decoder_pos_embed"}
        | {f"blocks.{i}.{name}" for i in range(2) for name in fused}
        | {f"decoder_blocks.0.{name}" for name in fused}
        | {
            f"{layer}.{kind}"
            for layer in ("patch_embed.proj", "norm", "decoder_embed", "decoder_norm", "decoder_pred")
            for kind in ("weight", "bias")
        }
    )
    assert names("videomae") == (
        {"mask_token", "encoder_to_decoder.weight"}
        | {f"encoder.blocks.{i}.{name}" for i in range(2) for name in split}
        | {f"decoder.blocks.0.{name}" for name in split}
        | {
            f"{layer}.{kind}"
            for layer in ("encoder.patch_embed.proj", "encoder.norm", "decoder.norm", "decoder.head")
            for kind in ("weight", "bias")
        }
    )


def test_a_store_is_planned_and_filled_with_the_new_teachers(runs: Path, catalog: Path, tmp_path: Path) -> None:
    weights = {
        "teachers.image.weights": str(runs / "mae" / "teacher.safetensors"),
        "teachers.video.weights": str(runs / "videomae" / "teacher.safetensors"),
        "view.groups": 1,
    }
    store = open_store(fill(plan_small(catalog, tmp_path / "store", weights)))
    assert [store.header.columns[name].width for name in ("image", "video")] == [48, 48]
    assert len(store.ok_rows()) == 12


@pytest.mark.parametrize("method", METHODS)
def test_a_run_goes_on_as_if_it_had_not_stopped(method: str, runs: Path, catalog: Path, tmp_path: Path) -> None:
    pretrain(recipe(method, stop_after_epochs=2), catalog_path=catalog, run=tmp_path)
    assert len(records(tmp_path)) == 6
    assert pretrain(recipe(method), catalog_path=catalog, run=tmp_path).steps == 6
    assert records(tmp_path) == records(runs / method)
    files = [(folder / "model.safetensors").read_bytes() for folder in (last(tmp_path), last(runs / method))]
    assert files[0] == files[1]


def last(run: Path) -> Path:
    return max((run / "checkpoints").glob("step-*"))


def test_the_command_trains_and_says_what_follows(catalog: Path, tmp_path: Path, capsys: Any) -> None:
    small = ("--set", "optim.epochs=1", "--set", "training.tensorboard=false")
    words = ("pretrain", "smoke/pretrain_mae_vit_b", *small, "--videos", str(catalog), "--run", str(tmp_path / "run"))
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert f"wrote {tmp_path / 'run' / 'teacher.safetensors'}" in printed
    assert "--set teachers.NAME.weights=" in printed


# ---- what it reads -----------------------------------------------------------------------------------------------


def task(method: str, catalog: Path) -> PretrainTask:
    return PretrainTask(recipe(method), CatalogRows(catalog))


def reader_of(method: str, catalog: Path) -> PretrainReader:
    reader = task(method, catalog).reader
    assert isinstance(reader, PretrainReader)
    return reader


def request(*rows: int, epoch: int = 0) -> BatchRequest:
    return BatchRequest(epoch, 0, 0, True, rows)


def test_videomae_reads_the_views_of_distillation_a_new_one_each_epoch(catalog: Path) -> None:
    reader = reader_of("videomae", catalog)
    video = reader.videos[3]
    clips = [reader(request(3, epoch=epoch))["clips"][0].numpy() for epoch in range(3)]
    for epoch, clip in enumerate(clips):
        view = View(view_id=0, shard=0, **draw_view(video, reader.section, epoch))
        assert (clip == render(view, reader.root, 32).pixels).all()
    assert not (clips[0] == clips[1]).all()


def test_mae_reads_one_frame_cropped_flipped_and_resized_as_its_official_code(
    catalog: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = reader_of("mae", catalog)
    seen: list[tuple[View, str]] = []

    def watch(view: View, root: Path, size: int, *, resample: str) -> Any:
        seen.append((view, resample))
        return render(view, root, size, resample=resample)  # type: ignore[arg-type]

    monkeypatch.setattr("mvd_offline.pretrain.render", watch)
    clips = [reader(request(3, epoch=epoch))["clips"] for epoch in range(60)]
    assert {tuple(clip.shape) for clip in clips} == {(1, 1, 32, 32, 3)}
    views = [view for view, _ in seen]
    assert {resample for _, resample in seen} == {"bicubic_antialias"}
    frames = {view.frame_indices for view in views}
    assert len(frames) > 8
    assert {len(indices) for indices in frames} == {1}
    assert {index for (index,) in frames} <= set(range(views[0].frames))
    assert 15 < sum(view.flip for view in views) < 45
    shares = [view.crop.w * view.crop.h / (view.width * view.height) for view in views]
    assert 0.19 < min(shares) < 0.35
    assert 0.7 < max(shares) <= 1.0


@pytest.mark.parametrize("method", METHODS)
def test_several_clips_of_a_video_are_rows_that_stay_together(method: str, catalog: Path) -> None:
    data = copy.deepcopy(RECIPE) | METHODS[method]
    made = PretrainTask(load_pretrain(data, ["view.num_sample=3"]), CatalogRows(catalog))
    assert made.samples_per_epoch() == 36
    order = made.order(1)
    assert sorted(order) == list(range(36))
    assert (order.reshape(12, 3) == order[::3, None] + np.arange(3)).all()
    assert not (order == np.arange(36)).all()

    reader, single = made.reader, reader_of(method, catalog)
    assert isinstance(reader, PretrainReader)
    batch = reader(request(9, 10, 11))
    assert len({clip.numpy().tobytes() for clip in batch["clips"]}) == 3
    many = reader(request(*range(36)))["mask"].view(12, 3, -1)
    assert not torch.equal(many[:, 0], many[:, 1])
    view = View(view_id=0, shard=0, **draw_view(reader.videos[3], reader.section, 0, 2))
    pixels = render(view, reader.root, 32, resample=reader.resample).pixels
    assert (batch["clips"][2].numpy() == pixels).all()
    assert single.section.num_sample == 1


def test_masks_are_as_many_as_the_recipe_says_and_new_each_epoch(catalog: Path) -> None:
    mae = [reader_of("mae", catalog)(request(0, 1, epoch=epoch))["mask"] for epoch in range(8)]
    assert {tuple(mask.sum(dim=1).tolist()) for mask in mae} == {(3, 3)}
    assert len({str(mask.tolist()) for mask in mae}) > 4
    tube = reader_of("videomae", catalog)(request(0, 1))["mask"].view(2, 2, 4)
    assert tube.sum(dim=2).tolist() == [[3, 3], [3, 3]]
    assert torch.equal(tube[:, 0], tube[:, 1])


def test_seeds_of_views_and_of_masks_are_two(catalog: Path) -> None:
    for method in METHODS:
        reader = reader_of(method, catalog)
        first = reader(request(*range(12)))
        other_views = replace(reader, section=reader.section.model_copy(update={"seed": 1}))(request(*range(12)))
        other_masks = replace(reader, seed=1)(request(*range(12)))
        assert torch.equal(first["mask"], other_views["mask"])
        assert not torch.equal(first["clips"], other_views["clips"])
        assert torch.equal(first["clips"], other_masks["clips"])
        assert not torch.equal(first["mask"], other_masks["mask"])


def test_the_loss_is_that_of_the_pixels_read(catalog: Path) -> None:
    made = task("mae", catalog)
    batch = made.reader(request(0, 1))
    with torch.no_grad():
        loss = made.loss(made.model.eval(), batch)["loss"].item()
        changed = dict(batch, clips=torch.from_numpy(255 - np.asarray(batch["clips"])))
        assert made.loss(made.model, changed)["loss"].item() != pytest.approx(loss, rel=1e-4)
    assert 0.5 < loss < 3.0  # targets of unit variance


@pytest.mark.parametrize("method", METHODS)
def test_hidden_pixels_are_learnt_by_heart_from_what_is_seen(method: str, catalog: Path) -> None:
    made = task(method, catalog)
    batch = made.reader(request(0, 1))
    optimizer = torch.optim.AdamW(made.model.parameters(), lr=5e-3)
    losses = []
    for _ in range(60):
        loss = made.loss(made.model, batch)["loss"]
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[0] > 0.9  # targets have variance 1
    assert losses[-1] < losses[0] / 8


def test_only_vectors_biases_and_videomaes_mask_token_escape_weight_decay(catalog: Path) -> None:
    for method, exempt in (("mae", set()), ("videomae", {"mask_token"})):
        made = task(method, catalog)
        groups = made.groups()
        free = {name for group in groups if group["weight_decay"] == 0.0 for name in group["names"]}  # type: ignore[attr-defined]
        shapes = {name: p.ndim for name, p in made.model.named_parameters() if p.requires_grad}
        assert free == {name for name, ndim in shapes.items() if ndim == 1} | exempt
        assert sum(len(group["names"]) for group in groups) == len(shapes)  # type: ignore[arg-type]
    assert {"cls_token", "mask_token"} <= {
        name for name, p in task("mae", catalog).model.named_parameters() if p.ndim == 3
    }
