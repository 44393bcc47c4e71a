"""Cross-frame cosines against the same by hand, and how spreads over clips are taken."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mvd_offline.analysis.models import ClipShape, Models, weights_of
from mvd_offline.analysis.similarity import ModelSimilarity, Similarity, cross_frame_cosines, similarity
from mvd_offline.analysis.similarity_figure import draw_similarity, write_similarity_csv
from mvd_offline.errors import UsageError
from mvd_offline.geometry import TokenGrid

GRID = TokenGrid(3, 2, 2)


def drawn(seed: int, grid: TokenGrid = GRID, width: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(grid.num_tokens, width)).astype(np.float32)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def by_hand(features: np.ndarray, grid: TokenGrid) -> tuple[np.ndarray, np.ndarray]:
    maps = features.astype(np.float64).reshape(grid.t, grid.tokens_per_slice, -1)
    per_token, flattened = np.empty((grid.t, grid.t)), np.empty((grid.t, grid.t))
    for i in range(grid.t):
        for j in range(grid.t):
            per_token[i, j] = np.mean([cosine(maps[i, p], maps[j, p]) for p in range(grid.tokens_per_slice)])
            flattened[i, j] = cosine(maps[i].ravel(), maps[j].ravel())
    return per_token, flattened


@given(st.integers(0, 10**6), st.integers(2, 5), st.integers(1, 3), st.integers(1, 3), st.integers(1, 6))
def test_both_definitions_are_what_their_formulas_say(seed: int, t: int, h: int, w: int, width: int) -> None:
    grid = TokenGrid(t, h, w)
    features = drawn(seed, grid, width)

    found = cross_frame_cosines(features, grid)

    per_token, flattened = by_hand(features, grid)
    np.testing.assert_allclose(found["per_token"], per_token, atol=1e-12)
    np.testing.assert_allclose(found["flattened"], flattened, atol=1e-12)


def test_the_definitions_differ_where_tokens_differ_in_length() -> None:
    # The long token stays, the short one turns round: as one vector hardly anything happened.
    maps = np.array([[[100.0, 0], [1, 0]], [[100.0, 0], [-1, 0]]], np.float32)
    found = cross_frame_cosines(maps.reshape(4, 2), TokenGrid(2, 1, 2))

    assert found["per_token"][0, 1] == pytest.approx(0.0)
    assert found["flattened"][0, 1] == pytest.approx((100**2 - 1) / (100**2 + 1))


def test_equal_frames_are_wholly_alike_and_a_blank_token_is_no_error() -> None:
    features = np.tile(drawn(0, TokenGrid(1, 2, 2)), (3, 1))
    blank = features.copy()
    blank[0] = 0

    np.testing.assert_allclose(cross_frame_cosines(features, GRID)["per_token"], 1.0)
    assert np.isfinite(cross_frame_cosines(blank, GRID)["per_token"]).all()


@pytest.fixture
def two_models() -> Similarity:
    models = []
    for name in ("one", "<two>"):
        clips = [cross_frame_cosines(drawn(seed + len(name)), GRID) for seed in range(4)]
        matrices = {d: np.stack([clip[d] for clip in clips]) for d in ("per_token", "flattened")}
        models.append(ModelSimilarity(name, matrices))
    return Similarity(tuple(models), 4, "views of a test", {}, 0)


def test_spreads_are_over_clips(two_models: Similarity) -> None:
    model = two_models.models[0]
    off = [matrix[~np.eye(3, dtype=bool)].mean() for matrix in model.matrices["per_token"]]
    ends = [matrix[0, 2] for matrix in model.matrices["per_token"]]

    assert model.other_slices("per_token").mean == pytest.approx(np.mean(off))
    assert model.other_slices("per_token").std == pytest.approx(np.std(off))
    assert model.by_distance("per_token")[2].mean == pytest.approx(np.mean(ends))
    assert model.by_distance("per_token")[0].mean == pytest.approx(1.0)


def test_the_table_and_the_picture_hold_every_model(two_models: Similarity, tmp_path: Path) -> None:
    with write_similarity_csv(two_models, tmp_path / "s.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))

    assert len(lines) == 2 * 2 * 9
    entry = next(line for line in lines if (line["model"], line["slice_i"], line["slice_j"]) == ("<two>", "0", "2"))
    assert float(entry["cosine_mean"]) == pytest.approx(two_models.models[1].mean("per_token")[0, 2], abs=1e-6)
    assert entry["clips"] == "4"
    with Image.open(draw_similarity(two_models, tmp_path / "s.png")) as picture:
        assert picture.width > 600


def test_many_models_go_on_in_the_next_line(two_models: Similarity, tmp_path: Path) -> None:
    first = two_models.models[0]
    many = Similarity(tuple(ModelSimilarity(f"m{n}", first.matrices) for n in range(9)), 4, "views", {}, 0)

    sizes = []
    for name, found in (("few", two_models), ("many", many)):
        with Image.open(draw_similarity(found, tmp_path / f"{name}.png")) as picture:
            sizes.append(picture.size)
    assert sizes[1][1] > 1.5 * sizes[0][1]
    assert sizes[1][0] < 9 * 120 * 2.7


# ---- models and clips ------------------------------------------------------------------------------------------------


def test_models_that_saw_different_clips_need_a_word_on_which(tmp_path: Path) -> None:
    from mvd_offline.models.saving import save_model
    from mvd_offline.models.student import Student
    from mvd_offline.models.vit import Arch

    arch, paths = Arch(32, 1, 2), {}
    for frames in (4, 8):
        grid = TokenGrid(frames // 2, 2, 2)
        paths[f"of_{frames}"] = str(tmp_path / f"{frames}.safetensors")
        save_model(paths[f"of_{frames}"], Student(arch, decoder=arch, grid=grid, targets={"image": 8}))

    with pytest.raises(UsageError, match=r"different frames \(of_4 4, of_8 8\).*--frames"):
        Models(paths, ClipShape(), "cpu")
    models = Models(paths, ClipShape(frames=6), "cpu")
    assert {name: teacher.grid for name, teacher in models} == dict.fromkeys(paths, TokenGrid(3, 2, 2))
    assert models.sizes == (32,)


def test_a_model_of_single_frames_is_set_beside_an_image_model(tmp_path: Path) -> None:
    from mvd_offline.models.pretraining import MAEPretrainer
    from mvd_offline.models.saving import save_model
    from mvd_offline.models.student import Student
    from mvd_offline.models.vit import Arch

    arch, grid = Arch(64, 1, 1), TokenGrid(1, 2, 2)
    paths = {name: str(tmp_path / f"{name}.safetensors") for name in ("student", "mae")}
    save_model(paths["student"], Student(arch, decoder=arch, grid=grid, tubelet_size=1, targets={"image": 8}))
    save_model(paths["mae"], MAEPretrainer(arch, image_size=32, patch_size=16, decoder=arch))

    models = Models(paths, ClipShape(), "cpu")

    assert {name: teacher.grid for name, teacher in models} == dict.fromkeys(paths, grid)
    found = models.features({32: np.zeros((1, 32, 32, 3), np.uint8)})
    assert {name: one.shape for name, one in found.items()} == dict.fromkeys(paths, (4, 64))


def test_the_folder_of_a_run_means_its_weights(tmp_path: Path) -> None:
    (tmp_path / "teacher.safetensors").touch()

    assert weights_of(str(tmp_path)) == str(tmp_path / "teacher.safetensors")
    assert weights_of("timm:vit_base") == "timm:vit_base"


@pytest.mark.parametrize("given", [{}, {"store_dir": Path("s"), "catalog_path": Path("c")}])
def test_clips_come_from_one_place(given: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="give one of --store and --videos"):
        similarity({"a": "random:vit_tiny"}, **given)
