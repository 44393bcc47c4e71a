"""Baked clips from end to end: what the store keeps is what the teachers saw and what the student trains on."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from small_runs import contents, fill, metrics, plan_small, run_distill, small_recipe, write_recipe
from test_report import Tags

from mvd_offline.bench.clips import time_on_device
from mvd_offline.bench.suite.lines import lines_of
from mvd_offline.cli.main import main
from mvd_offline.errors import MvdError, RecipeError
from mvd_offline.extraction.clips import stored_clip
from mvd_offline.models import load_teacher
from mvd_offline.models.inputs import normalize
from mvd_offline.shards import Store, open_store
from mvd_offline.shards.errors import CodecError
from mvd_offline.shards.jpeg import split_frames
from mvd_offline.training.packed import PackedClips
from mvd_offline.video.baking import resized
from mvd_offline.video.views import Plan, pixel_hash, render

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

STORE = {"store.bake": {"quality": 90, "subsampling": "4:4:4"}}


@pytest.fixture(scope="module")
def baked(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`videos`, `catalog.parquet`, and a finished store whose clips are baked."""
    folder = tmp_path_factory.mktemp("baked")
    shutil.copytree(made / "videos", folder / "videos")
    shutil.copy(made / "catalog.parquet", folder / "catalog.parquet")
    plan_small(folder / "catalog.parquet", folder / "store", STORE)
    fill(folder / "store", "--root", str(folder / "videos"))
    return folder


def without_videos(baked: Path, folder: Path) -> Path:
    """A copy of the store on a machine that has no videos."""
    shutil.copytree(baked / "store", folder / "store")
    local = json.loads((folder / "store" / "local.json").read_text())
    (folder / "store" / "local.json").write_text(json.dumps({**local, "videos_root": str(folder / "gone")}))
    return folder / "store"


def clip_of(store: Store, view_id: int) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = store.read([view_id], ["clips"])["clips"][0]
    return pixels


def test_the_store_keeps_nearly_what_is_rendered_and_exactly_what_was_hashed(baked: Path) -> None:
    store = open_store(baked / "store")
    plan = Plan.read(store.plan_path)
    for view_id in store.view_ids[::7].tolist():
        kept, rendered = clip_of(store, view_id), render(plan[view_id], baked / "videos", 32).pixels
        assert {store.status(name).row(view_id).pixels for name in store.columns} == {pixel_hash(kept)}
        difference = kept.astype(float) - rendered
        assert 0 < np.abs(difference).max() < 60
        record = store.status("clips").row(view_id)
        assert record.relative_error == pytest.approx(np.sqrt(np.square(difference).mean()) / 255, rel=1e-3)
        assert record.max_abs_error == np.abs(difference).max()


def test_the_teachers_saw_what_the_store_keeps(baked: Path) -> None:
    store = open_store(baked / "store")
    batch = store.shard_view_ids(0)[:2]  # of the size that extraction has: the same bits
    clips = torch.from_numpy(store.read(batch, ["clips"])["clips"])
    for name, weights in (("image", "random:vit_tiny:1"), ("video", "random:vit_tiny:2")):
        teacher = load_teacher(weights, name, image_size=32, frames=4)
        with torch.inference_mode():
            features = teacher(normalize(clips)).numpy()
        np.testing.assert_array_equal(store.read(batch, [name])[name], features)


def test_training_on_the_store_needs_no_videos_and_is_the_training_of_online_teachers(
    baked: Path, tmp_path: Path
) -> None:
    store = without_videos(baked, tmp_path)
    cached = write_recipe(tmp_path / "cached.yaml", {**STORE, "optim.stop_after_epochs": 1})
    online = write_recipe(tmp_path / "online.yaml", {"targets": "online", "optim.stop_after_epochs": 1})

    assert run_distill(cached, store, tmp_path / "cached") == 0
    assert run_distill(online, store, tmp_path / "online") == 0

    one, other = metrics(tmp_path / "cached"), metrics(tmp_path / "online")
    assert len(one) == 3
    assert [line["loss"] for line in one] == pytest.approx([line["loss"] for line in other], rel=1e-5)


def test_a_device_that_decodes_the_clips_trains_on_the_same_pixels(
    baked: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A processor decodes as the loader does, to the bit; other devices round otherwise.
    store, losses = without_videos(baked, tmp_path), []
    for place in ("loader", "device"):
        changes = {**STORE, "optim.stop_after_epochs": 1, "training.workers": 1, "unpack_clips": place}
        recipe = write_recipe(tmp_path / f"{place}.yaml", changes)
        assert run_distill(recipe, store, tmp_path / place) == 0
        losses.append([line["loss"] for line in metrics(tmp_path / place)])
    assert losses[0] == losses[1]
    assert len(losses[0]) == 3

    capsys.readouterr()
    refused = write_recipe(tmp_path / "refused.yaml", {"unpack_clips": "device"})
    assert run_distill(refused, made / "store", tmp_path / "refused") == 2
    assert "has no baked clips to unpack" in capsys.readouterr().err
    assert not (tmp_path / "refused").exists()
    with pytest.raises(RecipeError, match="unpack_clips is device, and targets are online"):
        small_recipe({"unpack_clips": "device", "targets": "online"})


def test_what_a_device_decodes_was_looked_at_before(baked: Path) -> None:
    store = open_store(baked / "store")
    payloads = store.read_payloads("clips", store.ok_rows()[:3])
    packed = PackedClips.of(payloads, frames=4, side=32)
    np.testing.assert_array_equal(
        packed.to(torch.device("cpu")).numpy(), store.read(store.ok_rows()[:3], ["clips"])["clips"]
    )
    on_device = time_on_device(store, store.ok_rows()[:3].tolist(), 2, torch.device("cpu"))
    assert (on_device.largest_difference, on_device.clip_ms.low > 0) == (0, True)
    with pytest.raises(CodecError, match="32 x 32, not colours, 64 x 64"):
        PackedClips.of(payloads, frames=4, side=64)
    torn = dataclasses.replace(packed, files=packed.files.index_fill(0, torch.arange(40, 600), 0))
    with pytest.raises(MvdError, match="cannot be decoded on cpu"):
        torn.to(torch.device("cpu"))


def test_a_teacher_of_another_size_sees_the_kept_frames_resized(baked: Path) -> None:
    clip = clip_of(open_store(baked / "store"), 0)
    sizes = resized(clip, (32, 24), "decord")
    assert sizes[32].pixels is clip
    assert sizes[24].pixels.shape == (4, 24, 24, 3)
    assert abs(sizes[24].pixels.astype(float).mean() - clip.mean()) < 2


def test_a_teacher_is_added_from_the_kept_clips_alone(baked: Path, tmp_path: Path) -> None:
    store = without_videos(baked, tmp_path)
    fill(store, "--teacher", "image_again=random:vit_tiny:1")
    opened = open_store(store)
    views = opened.view_ids
    np.testing.assert_array_equal(*(opened.read(views, [name])[name] for name in ("image", "image_again")))
    assert main(["shards", "verify", str(store), "--level", "full"]) == 0


def test_shards_that_are_made_again_are_the_same_whichever_of_them_are_gone(baked: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(baked / "store", store)
    before, opened = contents(store), open_store(store)
    opened.withdraw("clips", 1)
    opened.withdraw("video", 1)
    opened.withdraw("image", 2)
    opened.withdraw("clips", 3)

    fill(store)

    assert contents(store) == before


def test_the_clip_of_a_shard_that_is_not_baked_yet_is_rendered(baked: Path, tmp_path: Path) -> None:
    store = open_store(plan_small(baked / "catalog.parquet", tmp_path / "store", STORE), sealed=False)
    assert stored_clip(store, Plan.read(store.plan_path)[0]) is None


def test_a_video_that_is_gone_has_its_status_in_every_column(baked: Path, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    shutil.copytree(baked / "videos", videos)
    first = next(iter(sorted(videos.rglob("*.mp4"))))
    first.unlink()
    store = plan_small(baked / "catalog.parquet", tmp_path / "store", STORE)
    fill(store, "--root", str(videos))

    opened = open_store(store)
    statuses = {name: opened.status(name).counts() for name in opened.columns}
    assert statuses["clips"] == statuses["image"] == statuses["video"]
    assert statuses["clips"]["missing"] == 2
    fill(store, "--teacher", "video_again=random:vit_tiny:2")
    assert open_store(store).status("video_again").counts() == statuses["clips"]
    shutil.copytree(baked / "videos", videos, dirs_exist_ok=True)
    fill(store, "--retry", "missing")
    assert open_store(store).status("clips").counts() == {"ok": 24}
    assert open_store(store).status("video_again").counts() == {"ok": 24}


def test_clips_are_not_added_to_targets_of_other_pixels(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(made / "store", tmp_path / "store")
    assert main(["extract", str(tmp_path / "store"), "--bake", "jpeg"]) == 1
    assert "has targets of column image, video already" in " ".join(capsys.readouterr().err.split())
    assert "clips" not in open_store(tmp_path / "store").columns


def test_the_command_adds_clips_to_a_store_without_shards(baked: Path, tmp_path: Path) -> None:
    store = plan_small(baked / "catalog.parquet", tmp_path / "store")
    fill(store, "--bake", "jpeg")
    fill(store, "--bake", "jpeg")  # the same command goes on after a kill
    assert open_store(store).header.columns["clips"].codec == "jpeg-95-444"


@pytest.mark.parametrize(
    ("changes", "found"),
    [({"store.bake": {"quality": 95}}, "jpeg-95-444, store has 'jpeg-90-444'"), ({}, None)],
)
def test_a_recipe_that_names_another_bake_is_refused(
    baked: Path, tmp_path: Path, changes: dict[str, object], found: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", {**changes, "optim.stop_after_epochs": 0.34})
    assert run_distill(recipe, baked / "store", tmp_path / "run") == (0 if found is None else 1)
    said = " ".join(capsys.readouterr().err.split()).replace("'jpeg-95-444'", "jpeg-95-444")
    assert found is None or f"store.bake: recipe has {found}" in said


def test_clips_that_teachers_saw_are_not_dropped(
    baked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(baked / "store", tmp_path / "store")
    assert main(["shards", "drop-column", str(tmp_path / "store"), "clips"]) == 1
    assert "teachers saw these clips" in " ".join(capsys.readouterr().err.split())
    assert "clips" in open_store(tmp_path / "store").columns


def test_a_view_is_shown_recomputed_and_reported_without_videos(baked: Path, tmp_path: Path) -> None:
    store = without_videos(baked, tmp_path)
    (tmp_path / "gone").mkdir()
    assert main(["shards", "verify", str(store), "--level", "recompute", "--rows", "2"]) == 0
    assert main(["shards", "report", str(store), "--out", str(tmp_path / "report.html"), "--views", "2"]) == 0
    assert "Baked clips: PSNR" in (tmp_path / "report.html").read_text()
    assert main(["shards", "info", str(store)]) == 0


def test_the_page_tells_clips_from_targets(baked: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    assert main(["shards", "report", str(baked / "store"), "--out", str(page), "--views", "0"]) == 0
    text = "|".join(Tags(page.read_text()).text)
    assert "Teachers|2|image, video|" in text
    assert "|48 targets, 24 clips|" in text
    assert "clip|4 frames × 32 × 32 pixels|" in text
    assert text.count(" tokens × ") == 2


def test_loading_is_timed_from_videos_and_from_the_store(
    baked: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "clips", str(baked / "store"), "--views", "3", "--rounds", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["views"], found["rounds"], found["codec"], found["clip"]) == (3, 2, "jpeg-90-444", "4 x 32 x 32")
    assert all(found[name]["low"] > 0 for name in ("rendered_ms", "baked_ms", "speedup", "psnr"))
    assert [line.unit for line in lines_of("clips", found)] == ["ms", "ms", "x", "dB"]
    assert main(["bench", "clips", str(made / "store")]) == 2
    assert "has no baked clips" in capsys.readouterr().err


def test_a_store_of_clips_alone_is_exported_too_and_has_no_features_to_code_or_compare(
    baked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = plan_small(baked / "catalog.parquet", tmp_path / "store", {**STORE, "teachers": {}, "pixels": {}})
    fill(store, "--root", str(baked / "videos"))
    assert open_store(store).columns == ("clips",)
    out = tmp_path / "out"
    assert main(["shards", "export", str(store), "--webdataset", "--frames", "jpg", "--out", str(out)]) == 0
    with tarfile.open(out / "000000.tar") as tar:
        first = [name for name in tar.getnames() if name.startswith("000000000.")]
    assert [name.partition(".")[2] for name in first] == [*(f"frame0{n}.jpg" for n in range(4)), "view.json"]
    assert main(["bench", "codecs", str(store)]) == 2
    assert "no teacher's column" in capsys.readouterr().err
    similarity = ["analyze", "similarity", "--store", str(store), "-o", str(tmp_path)]
    assert main(similarity) == 2
    assert "holds baked clips alone, no teacher's features: add --model" in " ".join(capsys.readouterr().err.split())
    assert main([*similarity, "--model", "a=random:vit_tiny:1", "--clips", "1"]) == 0
    assert main(["shards", "report", str(store), "--out", str(tmp_path / "report.html"), "--views", "0"]) == 0
    assert "Teachers|0|baked clips alone|" in "|".join(Tags((tmp_path / "report.html").read_text()).text)


def test_exported_frames_are_the_very_files_of_the_store(baked: Path, tmp_path: Path) -> None:
    store = without_videos(baked, tmp_path)
    assert (
        main(["shards", "export", str(store), "--webdataset", "--frames", "jpg", "--out", str(tmp_path / "out")]) == 0
    )
    opened = open_store(store)
    (payload,) = opened.read_payloads("clips", [1])
    with tarfile.open(tmp_path / "out" / "000000.tar") as tar:
        names = [name for name in tar.getnames() if name.startswith("000000001.")]
        assert [name.partition(".")[2] for name in names] == [
            "frame00.jpg", "frame01.jpg", "frame02.jpg", "frame03.jpg", "image.npy", "video.npy", "view.json"
        ]  # fmt: skip
        files = [tar.extractfile(name) for name in names[:4]]
        assert [file.read() for file in files if file] == [bytes(frame) for frame in split_frames(payload, 4)]
