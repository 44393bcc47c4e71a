"""Codec `klt` from end to end: planning learns it, everything else takes it as any other codec."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from small_runs import MVD_OFFLINE, contents, fill, metrics, plan_small, run_distill, write_recipe

import mvd_offline.shards
from mvd_offline.bench.suite.lines import lines_of
from mvd_offline.cli.main import main
from mvd_offline.shards import open_store

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

# 32 tokens a view and 48 views: of half of them the 192 channels of the smallest teacher can be learnt.
KLT: dict[str, Any] = {
    "store.codec": "klt",
    "store.klt": {"relative_error": 0.05},
    "view.image_size": 64,
    "view.groups": 4,
    "optim.stop_after_epochs": 1,
}


@pytest.fixture(scope="module")
def planned(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("klt")
    plan_small(made / "catalog.parquet", folder / "store", KLT)
    fill(folder / "store")
    plan_small(made / "catalog.parquet", folder / "exact", {**KLT, "store.codec": "float32"})
    fill(folder / "exact")
    return folder


def test_rows_are_a_fraction_of_float16_and_within_the_error(planned: Path) -> None:
    store, exact = open_store(planned / "store"), open_store(planned / "exact")
    for name in ("image", "video"):
        spec, index = store.header.columns[name], store.status(name)
        assert spec.codec.startswith("klt-0.05-")
        assert index.length[index.ok].mean() < 0.25 * 2 * spec.tokens * spec.width
        assert index.coding["relative_error"][index.ok].mean() == pytest.approx(0.05, rel=0.25)
        found, wanted = (s.read(store.view_ids, [name])[name] for s in (store, exact))
        lost = np.linalg.norm((found - wanted).reshape(len(found), -1), axis=1)
        lost /= np.linalg.norm(wanted.reshape(len(wanted), -1), axis=1)
        np.testing.assert_allclose(lost, index.coding["relative_error"][store.view_ids], rtol=1e-2)


def test_other_software_decodes_a_row_as_the_documentation_says(planned: Path) -> None:
    store = open_store(planned / "store")
    text = (Path(mvd_offline.shards.__file__).parent / "FORMAT.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```py\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {"np": np, "numcodecs": numcodecs}
    exec(compile(code, "FORMAT.md", "exec"), names)
    basis = np.load(store.root / "image" / "basis.npy", allow_pickle=False)
    array: Any = zarr.open_array(store.root / "image", mode="r")

    features = names["decode_klt"](array[0:1].reshape(-1)[0], basis, 32)

    np.testing.assert_allclose(store.read([0], ["image"])["image"][0], features, rtol=1e-4, atol=1e-4)


def test_a_student_learns_from_it_nearly_what_it_learns_from_float32(planned: Path, tmp_path: Path) -> None:
    coded = write_recipe(tmp_path / "klt.yaml", {**KLT, "training.workers": 1})
    exact = write_recipe(tmp_path / "exact.yaml", {**KLT, "store.codec": "float32"})

    assert run_distill(coded, planned / "store", tmp_path / "coded") == 0
    assert run_distill(exact, planned / "exact", tmp_path / "exact") == 0

    one, other = metrics(tmp_path / "coded"), metrics(tmp_path / "exact")
    assert [line["loss"] for line in one] == pytest.approx([line["loss"] for line in other], rel=0.01)
    assert [line["loss"] for line in one] != [line["loss"] for line in other]


def test_planning_again_keeps_the_basis_and_another_error_is_another_store(
    planned: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(planned / "store")
    plan_small(made / "catalog.parquet", planned / "store", KLT)
    assert contents(planned / "store") == before
    recipe = write_recipe(tmp_path / "r.yaml", {**KLT, "store.klt": {"relative_error": 0.1}})
    catalog = str(made / "catalog.parquet")
    assert main(["plan", str(recipe), "--videos", catalog, "--store", str(planned / "store")]) == 1
    assert "codec" in capsys.readouterr().err
    assert run_distill(recipe, planned / "store", tmp_path / "run") == 1
    assert "store.codec: recipe has 'klt-0.1', store has 'klt-0.05'" in " ".join(capsys.readouterr().err.split())


def test_a_teacher_that_is_added_has_a_basis_of_its_own(planned: Path, tmp_path: Path) -> None:
    shutil.copytree(planned / "store", tmp_path / "store")
    fill(tmp_path / "store", "--teacher", "image_other=random:vit_tiny:3")
    columns = open_store(tmp_path / "store").header.columns
    assert columns["image_other"].codec.startswith("klt-0.05-")
    assert columns["image_other"].codec != columns["image"].codec
    index = open_store(tmp_path / "store").status("image_other")
    assert index.coding["relative_error"][index.ok].mean() == pytest.approx(0.05, rel=0.25)


def test_another_process_reads_verifies_and_recomputes_the_store(planned: Path) -> None:
    for level in ("full", "recompute"):
        command = [MVD_OFFLINE, "shards", "verify", str(planned / "store"), "--level", level, "--rows", "2"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("how", ["gone", "altered"])
def test_a_lost_basis_is_found_and_nothing_false_is_read(planned: Path, tmp_path: Path, how: str) -> None:
    shutil.copytree(planned / "store", tmp_path / "store")
    path = tmp_path / "store" / "video" / "basis.npy"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink() if how == "gone" else path.write_bytes(data)
    # In other processes: this one knows the basis.
    for words, status in ((("verify",), 1), (("stats",), 1)):
        command = [MVD_OFFLINE, "shards", *words, str(tmp_path / "store")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == status
        assert "basis.npy" in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
    # What this one knows is written back.
    main(["shards", "verify", str(tmp_path / "store"), "--level", "full", "--repair"])
    assert main(["shards", "verify", str(tmp_path / "store"), "--level", "full"]) == 0
    assert path.read_bytes() == (planned / "store" / "video" / "basis.npy").read_bytes()


def test_codecs_are_compared_on_rows_of_a_store(planned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "codecs", str(planned / "exact"), "--column", "video", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    points = {point["codec"]: point for point in found["points"]}
    assert list(points) == [
        "float32",
        "float16",
        "bfloat16",
        "int8",
        "klt-0.02",
        "klt-0.04",
        "klt-0.08",
        "klt-0.12",
        "klt-0.16",
    ]
    assert (found["rows"], found["learnt_from"]) == (24, 24)
    assert (found["student"], points["int8"]["effect"]) == (None, None)
    assert points["float32"]["relative_error"]["high"] == 0
    assert points["float16"]["smaller_than_float16"] == 1
    errors = [points[f"klt-{error}"]["relative_error"]["median"] for error in (0.02, 0.04, 0.08)]
    sizes = [points[f"klt-{error}"]["row_bytes"] for error in (0.02, 0.04, 0.08)]
    assert errors == sorted(errors)
    assert sizes == sorted(sizes, reverse=True)
    assert main(["bench", "codecs", str(planned / "store")]) == 2
    assert "give a store in float32 or float16" in " ".join(capsys.readouterr().err.split())


def test_the_loss_that_codecs_lead_to_is_measured_with_a_recipe(
    planned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", {**KLT, "store.codec": "float32"})
    assert run_distill(recipe, planned / "exact", tmp_path / "run") == 0
    student = tmp_path / "run" / "student.safetensors"
    command = ["bench", "codecs", str(planned / "exact"), "--recipe", str(recipe), "--clips", "6"]
    capsys.readouterr()

    assert main([*command, "--student", str(student), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["student"], found["loss_clips"]) == (str(student), 6)
    lines = lines_of("codecs", found)
    assert [line.what for line in lines] == [f"{point['column']}, {point['codec']}" for point in found["points"]]
    assert all("relative error" in line.unit and "gradient's cosine" in line.unit for line in lines)
    for column in ("image", "video"):
        effects = {point["codec"]: point["effect"] for point in found["points"] if point["column"] == column}
        assert effects["float32"] == {**effects["float32"], "change": 0, "gradient_cosine": 1, "gradient_difference": 0}
        cosines = [effects[codec]["gradient_cosine"] for codec in ("float16", "klt-0.04", "klt-0.16")]
        assert 1 >= cosines[0] > cosines[1] > cosines[2] > 0.5
        differences = [effects[f"klt-{error}"]["gradient_difference"] for error in (0.04, 0.08, 0.16)]
        assert differences == sorted(differences)
        assert 0 < abs(effects["klt-0.08"]["change"]) < 0.02

    assert main([*command, "--column", "video"]) == 0
    printed = capsys.readouterr().out
    assert "The loss that they lead to, on 6 rows" in printed
    assert "student: the untrained one of small" in printed
    assert re.search(r"video +│ float32 +│ [0-9.]+ +│ \+0 % +│ 1 +│ 0 %", printed)


def test_a_loss_of_another_recipe_student_or_column_is_refused(
    planned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", {**KLT, "store.codec": "float32"})
    alone = write_recipe(tmp_path / "alone.yaml", {**KLT, "store.codec": "float32", "loss.weights": {"image": 1.0}})
    assert run_distill(alone, planned / "exact", tmp_path / "run") == 0
    student = str(tmp_path / "run" / "student.safetensors")
    command = ["bench", "codecs", str(planned / "exact")]

    def error(*words: str) -> str:
        assert main([*command, *words]) != 0
        return " ".join(capsys.readouterr().err.split())

    assert "--student cannot go with codecs without a --recipe" in error("--student", student)
    assert "view.stride: recipe has 4, store has 2" in error("--recipe", str(recipe), "--set", "view.stride=4")
    assert "width of video None (the recipe: 192)" in error("--recipe", str(recipe), "--student", student)
    assert "recipe small does not learn from column video, but from image" in error(
        "--recipe", str(alone), "--column", "video"
    )
