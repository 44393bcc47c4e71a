"""The pages' blocks run, in order, in one folder for each page; the site is built without a warning.

A reader's own videos and weights are generated videos and random teachers here, recipes are their tiny twins, and
eight GPUs are one process. Every page but the first starts in a copy of what the first one left.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from headless import browser
from pages import PAGES, ROOT, Block, code
from small_runs import once

from mvd_offline.video.synthetic import synthesize

pytestmark = [pytest.mark.docs, pytest.mark.timeout(600)]

FIRST = ROOT / "docs" / "getting-started.md"
OTHERS = [page for page in PAGES if page not in (FIRST, ROOT / "README.md")]  # README's lines are the first page's
RUN = [page for page in OTHERS if any(not block.reason for block in code(page))]


@pytest.fixture(scope="session")
def reader(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables that a reader fills in, and nothing else."""
    folder = once(tmp_path_factory, "reader", prepare)
    return {
        "VIDEOS": str(folder / "videos"),
        "TRAIN": str(folder / "train.csv"),
        "TEST": str(folder / "val.csv"),
        "IMAGE": "random:vit_tiny:3",  # not those that the twins name
        "VIDEO": "random:vit_tiny:4",
        "DISTILL": "smoke/distill_vit_s_from_vit_b_k400",
        "FINETUNE": "smoke/finetune_vit_s_k400",
        "GPUS": "1",
    }


def prepare(folder: Path) -> None:
    """Labelled videos, and lists of them as Kinetics has them."""
    synthesize(folder / "videos", videos_per_class=1, seed=0, short_side=(48, 80), frames=(30, 90))
    videos = sorted((folder / "videos").rglob("*.mp4"))
    classes = sorted({video.parent.name for video in videos})
    lines = [f"{video.relative_to(folder / 'videos')} {classes.index(video.parent.name)}\n" for video in videos]
    for name in ("train", "val"):
        (folder / f"{name}.csv").write_text("".join(lines), encoding="utf-8")


@pytest.fixture(scope="session")
def walked(tmp_path_factory: pytest.TempPathFactory, reader: dict[str, str]) -> Path:
    """The folder in which the first page was followed to its end, with what it printed in `printed`."""

    def walk(folder: Path) -> None:
        folder.mkdir()
        (folder / "printed").write_text(follow(code(FIRST), folder, reader), encoding="utf-8")

    return once(tmp_path_factory, "walked", walk)


def follow(page: list[Block], folder: Path, variables: dict[str, str]) -> str:
    """Do what a page's blocks say; returns what was printed."""
    parts = ["set -euo pipefail"]
    for block in page:
        script = block.file or f"block_{block.line}.py"
        if block.file or block.language == "python":
            (folder / script).write_text(block.text, encoding="utf-8")
        if block.reason or (block.file and block.language != "python"):
            continue
        parts += [f"echo '--- {block.place}'", f"python {script}" if block.language == "python" else block.text]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ours = {"PATH": path, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "COLUMNS": "110"}
    ours |= {"HF_HOME": str(folder / "huggingface"), "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(
        ["bash", "-c", "\n".join(parts)],
        cwd=folder,
        env=os.environ | variables | ours,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=580,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout
    return ran.stdout


def test_getting_started_leads_from_videos_to_a_tested_classifier(walked: Path) -> None:
    printed = (walked / "printed").read_text(encoding="utf-8")

    assert "sealed" in printed
    assert re.search(r"top-1 [\d.]+ %, top-5 [\d.]+ % on 16 videos", printed)


def test_the_readers_variables_are_the_ones_that_the_first_page_uses(reader: dict[str, str]) -> None:
    declarations, *rest = [block.text for block in code(FIRST) if block.language == "bash"]

    assert set(re.findall(r"^(\w+)=", declarations, flags=re.MULTILINE)) == set(reader)
    assert set(re.findall(r"\$(\w+)", "".join(rest))) == set(reader)


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_what_a_page_says_can_be_done(page: Path, walked: Path, reader: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "work"
    shutil.copytree(walked, folder)

    follow(code(page), folder, reader)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_yaml_is_yaml(page: Path) -> None:
    for block in code(page):
        if block.language == "yaml":
            assert isinstance(yaml.safe_load(block.text), dict), block.place


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly: a warning is an error."""

    def build(folder: Path) -> None:
        built = subprocess.run(
            [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert built.returncode == 0, built.stdout + built.stderr

    return once(tmp_path_factory, "site", build)


def pages_of(site: Path) -> list[Path]:
    return [page for page in sorted(site.glob("*.html")) if page.stem != "404"]  # which has links for a server


def test_the_site_is_built_without_a_warning_and_loads_nothing_from_elsewhere(site: Path) -> None:
    assert {page.stem for page in pages_of(site)} >= {page.stem for page in PAGES if page.parent.name == "docs"}
    for page in pages_of(site):
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r'<(?:script|img|iframe)[^>]*src="https?:[^"]*"', text), page.name
        assert not re.findall(r'<link[^>]*rel="(?:stylesheet|preconnect)"[^>]*href="https?:[^"]*"', text), page.name


def test_every_page_fits_a_phone_and_complains_of_nothing(site: Path, tmp_path: Path) -> None:
    with browser(tmp_path / "profile") as tab:
        for page in pages_of(site):
            troubles = [one for one in tab.open(page, width=390) if not one.startswith("request: file:")]

            assert not troubles, page.name
            assert tab.evaluate("document.documentElement.scrollWidth") <= 390, page.name


def test_the_script_for_srun_hands_on_the_rank_and_the_exit_status(tmp_path: Path) -> None:
    (script,) = [block for page in PAGES for block in code(page) if block.file == "as-rank.sh"]
    (tmp_path / script.file).write_text(script.text, encoding="utf-8")
    slurm = {"SLURM_PROCID": "11", "SLURM_LOCALID": "3", "SLURM_NTASKS": "32", "SLURM_NTASKS_PER_NODE": "8"}

    said = "import os, sys; print(*(os.environ[n] for n in sys.argv[1:])); sys.exit(75)"
    asked = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"]
    ran = subprocess.run(
        ["bash", script.file, sys.executable, "-c", said, *asked],
        cwd=tmp_path,
        env=os.environ | slurm,
        capture_output=True,
        text=True,
        check=False,
    )

    assert (ran.stdout.split(), ran.returncode) == (["11", "3", "32", "8"], 75)
