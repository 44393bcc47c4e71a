"""The README's shell and Python lines run, on generated videos with random teachers and tiny recipes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

from mvd_offline.cli.main import COMMANDS
from mvd_offline.recipe import shipped_recipes

README = Path(__file__).parents[2] / "README.md"
MAKEFILE = README.with_name("Makefile")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(encoding="utf-8"), flags=re.M | re.S)


@pytest.fixture(scope="module")
def variables(synthetic_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a reader fills in, and nothing else."""
    lists = tmp_path_factory.mktemp("lists")
    classes = sorted(folder.name for folder in synthetic_videos.iterdir())
    lines = [
        f"{video.relative_to(synthetic_videos).as_posix()} {classes.index(video.parent.name)}"
        for video in sorted(synthetic_videos.rglob("*.mp4"))
    ]
    for name in ("train", "val"):
        (lists / f"{name}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {
        "VIDEOS": str(synthetic_videos),
        "TRAIN": str(lists / "train.csv"),
        "TEST": str(lists / "val.csv"),
        "IMAGE": "random:vit_tiny:1",
        "VIDEO": "random:vit_tiny:2",
        "DISTILL": "smoke/distill_vit_s_from_vit_b_k400",
        "FINETUNE": "smoke/finetune_vit_s_k400",
        "GPUS": "1",
    }


def test_the_readers_variables_are_the_ones_that_the_commands_use(variables: dict[str, str]) -> None:
    declarations, *commands = blocks("bash")

    assert set(re.findall(r"^(\w+)=", declarations, flags=re.M)) == set(variables)
    assert set(re.findall(r"\$(\w+)", "".join(commands))) == set(variables)


@pytest.mark.timeout(600)
def test_the_walk_through_runs_from_videos_to_a_tested_classifier(variables: dict[str, str], tmp_path: Path) -> None:
    _, *commands = blocks("bash")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | variables | {"PATH": path, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}

    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "".join(commands)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )

    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "sealed" in ran.stdout
    assert re.search(r"top-1 [\d.]+ %, top-5 [\d.]+ % on 16 videos", ran.stdout)
    (python,) = blocks("python")
    subprocess.run([sys.executable, "-c", python], cwd=tmp_path, check=True, timeout=120)


def test_the_recipes_and_commands_that_it_names_are_there() -> None:
    text = README.read_text(encoding="utf-8")
    recipes = re.findall(r"\b((?:distill|pretrain|finetune)/[a-z0-9_]+\*?)", text)
    commands = set(re.findall(r"(?:^|`|-m )mvd[-_]offline ([a-z]+)", text, flags=re.M))

    assert len(recipes) > 5
    for name in recipes:
        assert any(fnmatch(shipped, name) for shipped in shipped_recipes()), name
    assert commands <= COMMANDS.keys(), commands - COMMANDS.keys()


def test_the_make_targets_exist() -> None:
    commands = re.findall(r"^make (\w+)$", README.read_text(encoding="utf-8"), flags=re.M)

    assert commands == ["demo", "test"]
    for target in commands:
        assert re.search(rf"^{target}:", MAKEFILE.read_text(encoding="utf-8"), flags=re.M)


def test_the_demos_output_is_shown() -> None:
    shown = [block for block in blocks("text") if "from the distilled student" in block]

    assert len(shown) == 1
    assert "% top-1" in shown[0]
