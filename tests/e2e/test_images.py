"""Images through the whole pipeline: as files and in a tar, broken ones, beside videos, several crops of each."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import fill, metrics, once

from mvd_offline.cli.main import main
from mvd_offline.models import load_student, load_teacher
from mvd_offline.shards.store import open_store
from mvd_offline.video.synthetic import synthesize
from mvd_offline.video.views import Plan, render

TWIN = "smoke/distill_table11_vit_b_image"


def command(*words: str | Path) -> None:
    assert main([str(word) for word in words]) == 0


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight images of four classes."""

    def make(folder: Path) -> None:
        synthesize(folder, videos_per_class=2, classes=4, images=True, short_side=(40, 80))

    return once(tmp_path_factory, "images", make)


def webdataset_of(images: Path, tar: Path, cut: str = "") -> Path:
    """The images as `key.png` and `key.cls`; the one named `cut` ends in its middle."""
    with tarfile.open(tar, "w") as archive:
        for number, path in enumerate(sorted(images.rglob("*.png"))):
            content = path.read_bytes()
            content = content[: len(content) // 2] if f"{number:04d}" == cut else content
            for name, data in ((f"{number:04d}.png", content), (f"{number:04d}.cls", b"%d" % (number // 2))):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return tar


def planned(source: Path, folder: Path, *changes: str) -> Path:
    command("videos", "scan", source, "--out", folder / "catalog.parquet", "--workers", "1")
    sets = [word for change in changes for word in ("--set", change)]
    command("plan", TWIN, "--videos", folder / "catalog.parquet", "--store", folder / "store", *sets)
    return folder / "store"


def test_a_student_learns_from_images_in_a_tar_and_a_broken_one_is_a_row_of_the_ledger(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fill(planned(webdataset_of(images, tmp_path / "s.tar", cut="0003"), tmp_path))
    store, plan = open_store(folder), Plan.read(open_store(folder).plan_path)
    assert len(store.ok_rows()) == 7
    (failed,) = (view for view in plan if view.status != "ok")
    assert (failed.video_id, failed.label, failed.status) == ("s.tar/0003.png", 1, "unreadable")
    assert "truncated" in failed.detail

    capsys.readouterr()
    command("shards", "verify", folder, "--level", "recompute", "--json")
    assert json.loads(capsys.readouterr().out)["ok"]
    command("distill", TWIN, "--store", folder, "--run", tmp_path / "run")
    student = load_student(tmp_path / "run" / "student.safetensors")
    assert (student.grid.t, student.grid.h, student.tubelet_size) == (1, 4, 1)


def test_images_of_a_tar_that_was_packed_anew_are_refused_one_by_one(images: Path, tmp_path: Path) -> None:
    tar = webdataset_of(images, tmp_path / "s.tar")
    store = planned(tar, tmp_path)
    webdataset_of(images, tar, cut="0002")  # moves what follows
    fill(store)
    record = {row.view_id: row for shard in range(2) for row in open_store(store).record("image", shard).rows}
    plan = Plan.read(open_store(store).plan_path)
    status = {plan[view_id].video_id[-8:-4]: row.status for view_id, row in record.items()}
    assert {key for key, found in status.items() if found == "ok"} == {"0000", "0001"}
    assert {found for key, found in status.items() if key >= "0002"} == {"unreadable"}


def test_several_crops_of_an_image_are_neighbours_and_all_count(images: Path, tmp_path: Path) -> None:
    store = fill(planned(images, tmp_path, "view.num_sample=2"))
    views = list(Plan.read(open_store(store).plan_path))
    assert len(views) == 16
    for first, second in zip(views[::2], views[1::2], strict=True):
        assert first.video_id == second.video_id
        assert first.crop != second.crop
    command("distill", TWIN, "--set", "view.num_sample=2", "--store", store, "--run", tmp_path / "run")
    assert len(metrics(tmp_path / "run")) == 2 * 16 // 4


def test_an_image_beside_videos_is_a_clip_that_stands_still(images: Path, tmp_path: Path) -> None:
    synthesize(tmp_path / "both", videos_per_class=1, classes=2, short_side=(40, 48), frames=(12, 16))
    (tmp_path / "both" / "checks_left" / "still.png").write_bytes(next(images.rglob("*.png")).read_bytes())
    catalog, store = tmp_path / "c.parquet", tmp_path / "store"
    command("videos", "scan", tmp_path / "both", "--media", "both", "--out", catalog, "--workers", "1")
    command("plan", "smoke/distill_vit_s_from_vit_b_k400", "--videos", catalog, "--store", store)
    plan = Plan.read(open_store(store, sealed=False).plan_path)
    assert len(plan) == 3
    (still,) = (view for view in plan if view.path.endswith("still.png"))
    assert still.frame_indices == (0, 0, 0, 0)
    pixels = render(still, tmp_path / "both", 32).pixels
    assert pixels.shape == (4, 32, 32, 3)
    assert (pixels == pixels[:1]).all()


def test_mae_learns_from_a_tar_and_its_teacher_sees_images_of_one_frame(images: Path, tmp_path: Path) -> None:
    tar = webdataset_of(images, tmp_path / "s.tar")
    command("videos", "scan", tar, "--out", tmp_path / "c.parquet", "--workers", "1")
    command("pretrain", "smoke/pretrain_mae_vit_b", "--videos", tmp_path / "c.parquet", "--run", tmp_path / "run")
    teacher = load_teacher(tmp_path / "run" / "teacher.safetensors", "image", image_size=32, frames=1, tubelet_size=1)
    image = torch.randn(3, 3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    assert teacher(image).shape == (3, 16, 32)


def test_an_image_teacher_of_one_frame_gives_a_vector_for_each_of_196_patches() -> None:
    teacher = load_teacher("random:vit_tiny:0", "image", image_size=224, frames=1, tubelet_size=1)
    assert teacher(torch.zeros(2, 3, 1, 224, 224)).shape == (2, 196, 192)


# ---- the command line --------------------------------------------------------------------------------------------


def test_scan_says_how_many_images_there_are(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command("videos", "scan", images, "--out", tmp_path / "c.parquet", "--workers", "1")
    printed = capsys.readouterr().out
    assert "8 videos: 8 ok" in printed
    assert "readable: 8 images, " in printed


def test_show_reads_an_image_and_one_in_a_tar(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def facts(*words: str | Path) -> dict[str, Any]:
        capsys.readouterr()
        command("videos", "show", *words, "--json")
        return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]

    tar, catalog = webdataset_of(images, tmp_path / "s.tar"), tmp_path / "c.parquet"
    command("videos", "scan", tar, "--out", catalog, "--workers", "1")
    known = facts("s.tar/0000.png", "--catalog", catalog)
    packed = facts(tmp_path / known["path"])
    loose = facts(sorted(images.rglob("*.png"))[0])
    for name in ("frames", "width", "height", "size", "sha256"):
        assert known[name] == packed[name] == loose[name]
    assert np.isclose(packed["seconds"], 0.0)
