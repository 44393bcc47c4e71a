"""`--dry-run` says what a run would be, before anything is loaded or written."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from small_runs import MVD_OFFLINE, file_names, make_store, once, write_recipe

from mvd_offline.cli.main import main

FULL_SIZE = "distill/vit_b_from_vit_l_k400"


def dry_run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*map(str, words), "--dry-run", "--json"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def test_a_shipped_recipe_is_told_without_weights_and_nothing_is_written(tmp_path: Path) -> None:
    words = ["distill", FULL_SIZE, "--dry-run", "--samples", "240436", "--processes", "32", "--run", "run"]
    printed = subprocess.run([MVD_OFFLINE, *words], cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    assert not list(tmp_path.iterdir())
    assert "name: vit_b_from_vit_l_k400" in printed
    for told in ("117,336,320", "1568: 160 visible, 1408 masked", "peak 0.0006, floor 0.0004", "Nothing was written"):
        assert told in printed
    assert "size is assumed from the name of its weights" in printed


def test_a_store_tells_samples_bytes_and_teachers(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = once(tmp_path_factory, "store", make_store) / "store"
    recipe = write_recipe(tmp_path / "small.yaml", {"teachers.video.weights": "elsewhere.pth"})
    files = file_names(store)

    report = dry_run(capsys, "distill", recipe, "--store", store, "--processes", "2", "--tflops", "1")

    # 12 videos in 2 groups; 8 tokens of 192 float32 values a view and teacher; 6 of the tokens are masked.
    assert report["steps"] == {
        "samples": 12, "per_epoch": 3, "total": 12, "warmup": 3, "stop": 12, "checkpoints": 12
    }  # fmt: skip
    assert report["launch"]["accumulation"] == 1
    row = 2 * 8 * 192 * 4
    assert report["reading"] == {
        "row_bytes": row,
        "kept_row_bytes": row * 6 // 8,
        "epoch_bytes": 12 * row,
        "store_bytes": 24 * row,
        "store_bytes_known_from": "store",
    }
    assert report["teachers"]["video"]["known_from"] == "store"
    assert report["times"]["break_even_epoch"] == 2
    assert report["times"]["speedup"] > 1
    assert file_names(store) == files
    assert {path.name for path in tmp_path.iterdir()} == {"small.yaml"}


def test_a_recipe_alone_leaves_open_what_it_does_not_know(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path / "small.yaml")
    report = dry_run(capsys, "distill", recipe)

    assert report["steps"] is report["reading"]["epoch_bytes"] is report["times"]["device_hours"] is None
    assert report["times"]["speedup"] > 1

    assert main(["distill", str(recipe), "--dry-run", "--set", "teachers.image.weights=elsewhere.pth"]) == 2
    assert "nothing tells its size" in capsys.readouterr().err
    assert main(["distill", str(recipe), "--run", str(tmp_path / "run")]) == 2
    assert "missing option --store; only --dry-run goes without it" in capsys.readouterr().err


def test_pretraining_and_fine_tuning_have_dry_runs_too(capsys: pytest.CaptureFixture[str]) -> None:
    mae = dry_run(capsys, "pretrain", "pretrain/mae_vit_b", "--samples", "1281167")
    classifier = dry_run(capsys, "finetune", "finetune/vit_b_k400")

    assert mae["tokens"] == {"total": 196, "visible": 49, "masked": 147, "decoded": 147}
    assert mae["steps"]["per_epoch"] == 1281167 // 4096
    assert classifier["parameters"]["encoder"] + classifier["parameters"]["head"] == 86_534_800
    assert not mae["teachers"]
    assert not classifier["teachers"]


def test_repeated_views_are_counted_and_recomputing_saves_memory(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("finetune", "smoke/finetune_vit_s_k400", "--samples", "80")
    twice, once, recomputed = (
        dry_run(capsys, *words, *(word for change in changes for word in ("--set", change)))
        for changes in ((), ("augment.repeats=1",), ("model.checkpoint_activations=true", "model.depth=12"))
    )

    assert (twice["launch"]["views"], once["launch"]["views"]) == (2, 1)
    assert twice["steps"] == once["steps"], "a batch counts videos"
    assert twice["flops"] == once["flops"], "those of a clip"
    assert twice["times"]["step_seconds"] == pytest.approx(2 * once["times"]["step_seconds"])
    assert twice["memory"]["clips"] == 2 * once["memory"]["clips"]
    assert recomputed["flops"]["recompute"] > 0
    assert recomputed["memory"]["checkpointed"]
