"""The picture that `videos show --augment` draws."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mvd_offline.cli.main import main
from mvd_offline.finetuning.erasing import erase
from mvd_offline.finetuning.picture import augmented_rows
from mvd_offline.finetuning.reading import FinetuneReader
from mvd_offline.models.inputs import denormalize, normalize
from mvd_offline.recipe import load_finetune
from mvd_offline.training.order import BatchRequest

RECIPE = "smoke/finetune_vit_s_k400"  # 4 frames of 32 x 32 pixels, two views of each video


def test_pixels_survive_normalising_and_what_lies_beyond_is_cut_off() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 1, 16, 16, 3)
    assert torch.equal(denormalize(normalize(pixels)), pixels)
    assert denormalize(torch.full((1, 3, 1, 1, 1), 9.0)).max() == 255
    assert denormalize(torch.full((1, 3, 1, 1, 1), -9.0)).min() == 0


def test_the_views_are_those_that_training_sees(known_videos: Any) -> None:
    recipe = load_finetune(RECIPE, ["augment.erasing.probability=0.6"])
    plain, *rows = augmented_rows(known_videos.disc, known_videos.root, recipe, 6)
    read = FinetuneReader(
        videos=(known_videos.disc,), root=known_videos.root, clip=recipe.clip, augment=recipe.augment,
        mixing=recipe.mixing, seed=recipe.training.seed, drop_path_sites=4, dropout_sites=0,
    )  # fmt: skip
    batches = [read(BatchRequest(epoch, 0, 0, True, (0,))) for epoch in range(3)]
    trained = [denormalize(erase(normalize(batch["clips"]), batch["erasures"])).numpy() for batch in batches]
    assert np.array_equal(np.stack([row.frames for row in rows]), np.concatenate(trained))
    assert [row.caption.split(":")[0] for row in rows[:3]] == ["epoch 0, view 1", "epoch 0, view 2", "epoch 1, view 1"]
    erased = [erasure is not None for batch in batches for erasure in batch["erasures"]]
    assert [row.caption.endswith("; erased") for row in rows] == erased
    assert 0 < sum(erased) < 6
    assert plain.caption.startswith("disc.mp4")


def test_the_command_writes_a_png_with_a_row_for_each_view(
    known_videos: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, catalog = tmp_path / "disc.png", known_videos.write_catalog(tmp_path / "catalog.parquet")
    words = ["videos", "show", "--augment", RECIPE, "--out", str(out), "--views", "3"]
    assert main([*words, str(known_videos.root / "disc.mp4")]) == 0
    assert f"{out}: disc.mp4 as it is, and 3 views of it" in capsys.readouterr().out
    with Image.open(out) as picture:
        assert picture.format == "PNG"
        assert picture.height == 4 * (32 + 22)
        assert picture.width > 4 * 32
    from_file = out.read_bytes()

    assert main([*words, "disc.mp4", "--catalog", str(catalog), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["video"], told["picture"], len(told["views"])) == ("disc.mp4", str(out), 3)
    assert out.read_bytes() == from_file


@pytest.mark.parametrize("option", [("--views", "3"), ("--out", "new.png"), ("--set", "training.seed=1")], ids=" ".join)
def test_an_option_of_the_picture_is_refused_where_none_is_drawn(
    option: tuple[str, str], known_videos: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["videos", "show", str(known_videos.root / "disc.mp4"), *option]) == 2
    assert f"{option[0]} cannot go with facts, which are shown without --augment" in capsys.readouterr().err


def test_a_recipe_or_a_video_that_is_not_there_is_one_paragraph(
    known_videos: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    catalog = known_videos.write_catalog(tmp_path / "catalog.parquet")
    words = ["videos", "show", "--out", str(tmp_path / "new.png"), "--catalog", str(catalog)]
    for rest, message in (
        (["dics.mp4", "--augment", RECIPE], "holds no video dics.mp4; did you mean disc.mp4?"),
        (["disc.mp4", "--augment", "smoke/finetune_vit_s_k4000"], "Did you mean smoke/finetune_vit_s_k400"),
        (["disc.mp4", "--augment", "demo/distill"], "this is a distill recipe; a finetune recipe is needed here"),
    ):
        assert main([*words, *rest]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "new.png").exists()
