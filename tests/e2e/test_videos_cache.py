"""`mvd-offline videos cache`, as a user runs it, and the commands that read the new catalog."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from small_runs import contents, fill, make_videos, metrics, once, plan_small, write_recipe

from mvd_offline.cli.main import main
from mvd_offline.shards.errors import IdentityError
from mvd_offline.video.catalog import Catalog


def videos(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mvd_offline", "videos", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def cache(catalog: Path, folder: Path, short_side: int) -> None:
    words = ["videos", "cache", str(catalog), "--out", str(folder), "--short-side", str(short_side), "--workers", "1"]
    assert main(words) == 0


def make_cache(folder: Path) -> None:
    """`videos/` and `catalog.parquet` with one that is unreadable, and their `cache/`."""
    make_videos(folder)
    first = next(iter(sorted((folder / "videos").rglob("*.mp4"))))
    (first.parent / "broken.mp4").write_bytes(b"not a video")
    out = ("--out", folder / "catalog.parquet", "--workers", "1")
    assert videos("scan", folder / "videos", *out).returncode == 0
    done = videos(
        "cache", folder / "catalog.parquet", "--out", folder / "cache", "--short-side", "40", "--workers", "1"
    )
    assert done.returncode == 0, done.stderr
    (folder / "said.txt").write_text(done.stdout)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once(tmp_path_factory, "cache", make_cache)


def test_the_command_says_what_it_wrote_what_it_could_not_and_whether_it_pays(made: Path) -> None:
    said = (made / "said.txt").read_text()
    assert "broken.mp4  unreadable" in said
    assert "12 videos written, 1 cannot be read" in said
    assert "PSNR against the resized originals: median" in said
    assert " x\n" in said[said.index("bytes: ") :]
    assert f"catalog: {made / 'cache' / 'catalog.parquet'}" in said
    assert "16 frames at spacing 4, one thread, files in memory, 6 videos in turn: " in said
    assert re.search(r"ms from the cache \(medians\); video by video [\d.e+]+ x faster \(", said)


def test_verify_finds_what_was_changed_and_ends_with_status_1(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "cache", tmp_path / "cache")
    cache(made / "catalog.parquet", tmp_path / "cache", 40)  # says where it lies now
    row = next(video for video in Catalog.read(tmp_path / "cache" / "catalog.parquet").videos if video.status == "ok")
    (tmp_path / "cache" / "videos" / row.path).write_bytes(b"damage")
    done = videos("verify", tmp_path / "cache", "--workers", "1", "--json")
    assert done.returncode == 1
    (finding,) = json.loads(done.stdout)["findings"]
    assert finding["path"] == f"videos/{row.path}"
    assert finding["what"].startswith("changed")


def test_other_settings_are_one_paragraph_and_status_2(made: Path) -> None:
    done = videos("cache", made / "catalog.parquet", "--out", made / "cache", "--format", "h264", "--short-side", "40")
    assert done.returncode == 2
    assert "holds a cache with format jpeg, not h264, quality 3, not 16: ask for the same" in done.stderr
    assert "Traceback" not in done.stderr


def test_plan_extract_and_distill_run_on_the_cache(made: Path, tmp_path: Path) -> None:
    store = fill(plan_small(made / "cache" / "catalog.parquet", tmp_path / "store"))
    recipe = write_recipe(tmp_path / "recipe.yaml", {"optim.stop_after_epochs": 1})
    assert main(["distill", str(recipe), "--store", str(store), "--run", str(tmp_path / "run")]) == 0
    assert metrics(tmp_path / "run")


def test_finetune_and_evaluate_run_on_the_cache(made: Path, tmp_path: Path) -> None:
    catalog = made / "cache" / "catalog.parquet"
    recipe = {
        "kind": "finetune", "name": "small",
        "clip": {"frames": 4, "stride": 2, "image_size": 32},
        "model": {"width": 48, "depth": 1, "heads": 3, "classes": 4},
        "optim": {
            "epochs": 1, "warmup_epochs": 0, "batch_size": 4, "base_lr": 2.0e-3, "min_lr": 1.0e-5,
            "lr_reference_batch": 4, "layer_decay": 0.75,
        },
        "training": {"workers": 0, "tensorboard": False},
        "evaluation": {"segments": 2, "crops": 3, "batch_size": 12},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run = str(tmp_path / "run")
    assert main(["finetune", str(tmp_path / "recipe.yaml"), "--videos", str(catalog), "--run", run]) == 0
    everything = Catalog.read(catalog)
    readable = tuple(video for video in everything.videos if video.status == "ok")
    Catalog(readable, everything.root, everything.classes).write(tmp_path / "test.parquet")
    assert main(["evaluate", run, "--videos", str(tmp_path / "test.parquet")]) == 0


# ---- a store is for the pixels that it was planned on ------------------------------------------------------------


@pytest.fixture(scope="module")
def store(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the originals."""
    return fill(plan_small(made / "catalog.parquet", tmp_path_factory.mktemp("store") / "store"))


def test_a_store_of_the_originals_takes_no_plan_of_the_cache(made: Path, store: Path) -> None:
    before = contents(store)
    with pytest.raises(IdentityError, match=r"The recipe is the same, the catalog is not: .* or other files"):
        plan_small(made / "cache" / "catalog.parquet", store)
    assert contents(store) == before


def test_a_training_on_a_store_of_the_originals_reads_no_cached_video(
    made: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml")
    words = ["distill", str(recipe), "--store", str(store), "--run", str(tmp_path / "run")]
    assert main([*words, "--root", str(made / "cache" / "videos")]) == 1
    assert ".mp4: no such file" in capsys.readouterr().err


def test_cached_videos_under_the_originals_names_are_found_out_by_their_pixels(
    made: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    catalog, root = Catalog.read(made / "cache" / "catalog.parquet"), tmp_path / "posing"
    cache(made / "catalog.parquet", tmp_path / "cache", 64)  # keeps the originals' size
    for video in catalog.videos:
        if video.status == "ok":
            (root / video.video_id).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(tmp_path / "cache" / "videos" / video.path, root / video.video_id)
    recipe = write_recipe(tmp_path / "recipe.yaml")
    words = ["distill", str(recipe), "--store", str(store), "--run", str(tmp_path / "run"), "--root", str(root)]
    capsys.readouterr()
    assert main(words) == 1
    assert "renders to other pixels than its teachers saw" in capsys.readouterr().err
