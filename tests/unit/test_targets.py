"""Targets of a training step: what is read, what is computed, which teacher it must be."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import make_videos, once, plan_small, small_recipe

from mvd_offline.errors import UsageError
from mvd_offline.models.inputs import normalize
from mvd_offline.models.teachers import teacher_for
from mvd_offline.recipe import DistillRecipe
from mvd_offline.shards import Store, create_store, open_store
from mvd_offline.shards.errors import IdentityError
from mvd_offline.targets import CachedTargets, OnlineTargets, check_teachers, open_targets

MASKED = torch.tensor([[0, 3, 5], [1, 2, 7]])


def filled(folder: Path, factory: pytest.TempPathFactory, codec: str) -> tuple[Store, np.ndarray]:
    """A store of drawn features, and the features: (rows, N, D)."""
    catalog = once(factory, "videos", make_videos) / "catalog.parquet"
    store = open_store(plan_small(catalog, folder, {"store.codec": codec, "view.groups": 1}), sealed=False)
    drawn = np.random.default_rng(0).standard_normal((store.header.rows, 8, 192)).astype(np.float32)
    for column in store.columns:
        for shard in range(store.shard_count):
            with store.write_shard(column, shard, producer={}) as writer:
                for view in store.shard_view_ids(shard).tolist():
                    writer.add(view, drawn[view] + (column == "video"), pixels="0" * 16, decoder="decord 0.6.0")
    store.seal()
    return open_store(folder), drawn


@pytest.mark.parametrize(("codec", "tolerance"), [("float32", 0.0), ("float16", 2**-11), ("bfloat16", 2**-8)])
def test_cached_targets_are_the_stored_features_of_the_masked_tokens(
    codec: str, tolerance: float, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store, drawn = filled(tmp_path / "store", tmp_path_factory, codec)
    source = CachedTargets(store, {"image": "image", "video": "video"})

    stored = source.reader.read([4, 1], MASKED.numpy())
    targets = source.targets(stored, {}, MASKED)

    expected = torch.from_numpy(np.stack([drawn[4][MASKED[0]], drawn[1][MASKED[1]]]))
    assert source.widths == {"image": 192, "video": 192}
    assert source.reader.sizes(32) == (32,)
    for name, features in (("image", expected), ("video", expected + 1)):
        assert targets[name].dtype == torch.float32
        torch.testing.assert_close(targets[name], features, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("codec", ["float32", "bfloat16", "int8"])
def test_without_token_indices_whole_rows_are_read_and_equal_every_token_read_by_its_index(
    codec: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store, _ = filled(tmp_path / "store", tmp_path_factory, codec)
    source = CachedTargets(store, {"video": "video"})
    every = torch.arange(8).repeat(2, 1)

    whole = source.targets(source.reader.read([4, 1], None), {}, None)["video"]

    assert whole.shape == (2, 8, 192)
    assert torch.equal(whole, source.targets(source.reader.read([4, 1], every.numpy()), {}, every)["video"])


def test_a_run_without_teachers_reads_nothing(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    store, _ = filled(tmp_path / "store", tmp_path_factory, "float32")
    recipe = small_recipe({"teachers": {}, "pixels": {}})
    source = open_targets(recipe, store, torch.device("cpu"))

    assert source.widths == {}
    assert source.reader.read([4, 1], MASKED.numpy()) == {}


def test_online_targets_are_the_teachers_features_of_the_masked_tokens() -> None:
    recipe = small_recipe()
    teachers = {name: teacher_for(recipe.teachers[name], recipe.view, name) for name in recipe.active_teachers}
    source = OnlineTargets(teachers, torch.device("cpu"))
    clips = torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8)

    with torch.autocast("cpu", torch.bfloat16):  # the student's, which is not the teachers'
        targets = source.targets(source.reader.read([0, 1], MASKED.numpy()), {32: clips}, MASKED)

    for name, teacher in teachers.items():
        features = teacher(normalize(clips))
        expected = torch.stack([features[0][MASKED[0]], features[1][MASKED[1]]])
        assert torch.equal(targets[name], expected)
        assert not targets[name].requires_grad
        assert torch.equal(source.targets({}, {32: clips}, None)[name], features)


def test_online_targets_ask_for_each_teachers_own_image_size_once() -> None:
    recipe = small_recipe()
    teachers = {name: teacher_for(recipe.teachers[name], recipe.view, name) for name in recipe.active_teachers}

    assert OnlineTargets(teachers, torch.device("cpu")).reader.sizes(32) == (32,)
    assert OnlineTargets(teachers, torch.device("cpu")).reader.sizes(48) == (48, 32)


def test_the_recipe_chooses_the_source(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    store, _ = filled(tmp_path / "store", tmp_path_factory, "float32")

    for targets, expected in (("cached", CachedTargets), ("online", OnlineTargets)):
        assert type(open_targets(small_recipe({"targets": targets}), store, torch.device("cpu"))) is expected


# ---- which teacher it must be ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A planned store of teachers image and video."""
    catalog = once(tmp_path_factory, "videos", make_videos) / "catalog.parquet"
    return open_store(plan_small(catalog, tmp_path_factory.mktemp("planned") / "store"), sealed=False)


def with_video(**changes: object) -> DistillRecipe:
    return small_recipe({f"teachers.video.{key}": value for key, value in changes.items()})


def test_the_teachers_of_the_plan_are_accepted(planned: Store) -> None:
    check_teachers(small_recipe(), planned)


def test_weights_that_are_not_here_are_accepted_by_their_pinned_hash(planned: Store) -> None:
    digest = planned.header.columns["video"].source["weights_sha256"]

    check_teachers(with_video(weights="/elsewhere/videomae.pth", sha256=digest), planned)
    with pytest.raises(IdentityError, match=r"\n  teachers\.video\.sha256: recipe has '0{64}', store has '" + digest):
        check_teachers(with_video(weights="/elsewhere/videomae.pth", sha256="0" * 64), planned)


def test_weights_that_are_neither_here_nor_pinned_are_refused_with_the_hash_to_pin(planned: Store) -> None:
    digest = planned.header.columns["video"].source["weights_sha256"]

    with pytest.raises(UsageError, match=rf"--set teachers\.video\.sha256={digest}"):
        check_teachers(with_video(weights="/elsewhere/videomae.pth"), planned)


def test_all_that_differs_is_listed_with_both_values(planned: Store) -> None:
    changes = {
        "teachers.image.heads": 6,
        "teachers.image.precision": "bfloat16",
        "teachers.video.weights": "random:vit_small:2",
    }

    with pytest.raises(IdentityError) as caught:
        check_teachers(small_recipe(changes), planned)

    first, *fields, last = str(caught.value).splitlines()
    assert first == f"{planned.root} was not made for this recipe:"
    assert fields[:4] == [
        "  teachers.image.heads: recipe has 6, store has 3",
        "  teachers.image.precision: recipe has 'bfloat16', store has 'float32'",
        "  teachers.video.heads: recipe has 6, store has 3",
        "  teachers.video.architecture.width: recipe has 384, store has 192",
    ]
    assert fields[4].startswith("  teachers.video.sha256: recipe has '")
    assert len(fields) == 5
    assert "--set these fields" in last


@pytest.mark.parametrize(
    ("field", "stored", "line"),
    [
        ("layer", "after_norm", "layer: recipe has 'last_block_before_norm', store has 'after_norm'"),
        ("kind", "image", "kind: recipe has 'video', store has 'image'"),
        ("tubelet", 4, "tubelet: recipe has 2, store has 4"),
        ("image_size", 48, "image_size: recipe has 32, store has 48"),
        ("normalisation", {"mean": [0.5] * 3, "std": [0.229, 0.224, 0.225]}, "normalisation.mean: recipe has [0.485"),
        ("positions", "sincos_3d", "positions: recipe has 'interleaved_1d', store has 'sincos_3d'"),
    ],
)
def test_a_store_of_other_preprocessing_is_refused_by_its_field(
    planned: Store, tmp_path: Path, field: str, stored: object, line: str
) -> None:
    video = planned.header.columns["video"]
    columns = {"video": dataclasses.replace(video, source={**video.source, field: stored})}
    header = dataclasses.replace(planned.header, columns=columns)
    other = create_store(tmp_path / "store", header, planned.plan_path.read_bytes())

    with pytest.raises(IdentityError, match=rf"\n  teachers\.video\.{re.escape(line)}"):
        check_teachers(small_recipe(), other)
    pinned = with_video(weights="/elsewhere/videomae.pth", sha256=video.source["weights_sha256"])
    if field == "positions":
        check_teachers(pinned, other)  # only the weights tell
    else:
        with pytest.raises(IdentityError, match=re.escape(line)):
            check_teachers(pinned, other)


def test_what_differs_is_told_before_weights_that_are_not_here(planned: Store) -> None:
    with pytest.raises(IdentityError, match=r"teachers\.video\.precision"):
        check_teachers(with_video(weights="/elsewhere/videomae.pth", precision="float16"), planned)


def test_a_teacher_that_the_store_lacks_is_refused_for_cached_targets(planned: Store, tmp_path: Path) -> None:
    recipe = small_recipe({"teachers": {"video": {"weights": "random:vit_tiny:2"}}})
    assert recipe.active_teachers == ("video",)
    check_teachers(recipe, planned)

    with pytest.raises(IdentityError, match=r"from columns video_h, and .* has columns image, video; .*video_h=PATH"):
        CachedTargets(planned, {"video": "video_h"})
