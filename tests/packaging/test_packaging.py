"""What is shipped: sdist -> wheel -> a clean environment, and the commands in it, outside the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
FOLDERS = ("mvd_offline", "cli", "shards", "configs")
FILES = ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "constraints.txt")


@dataclass(frozen=True)
class Built:
    sdist: Path
    wheel: Path

    @property
    def names(self) -> set[str]:
        with zipfile.ZipFile(self.wheel) as archive:
            return set(archive.namelist())


@dataclass(frozen=True)
class Installed:
    """A virtual environment that holds the wheel, and finds its dependencies where this environment has them."""

    root: Path
    elsewhere: Path

    def run(self, program: str, *arguments: str) -> str:
        variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        done = subprocess.run(
            [self.root / "bin" / program, *arguments],
            cwd=self.elsewhere,
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


def run(*command: str | Path, cwd: Path) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    source = tmp_path_factory.mktemp("source")
    for folder in FOLDERS:
        shutil.copytree(
            REPOSITORY / folder, source / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    for file in FILES:
        shutil.copy(REPOSITORY / file, source / file)
    # Without --wheel, build makes the wheel from the sdist, as a package index would.
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", source / "dist", source, cwd=source)
    (sdist,) = (source / "dist").glob("*.tar.gz")
    (wheel,) = (source / "dist").glob("*.whl")
    return Built(sdist, wheel)


@pytest.fixture(scope="module")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    root, elsewhere = tmp_path_factory.mktemp("environment"), tmp_path_factory.mktemp("elsewhere")
    run(sys.executable, "-m", "venv", "--without-pip", root, cwd=elsewhere)
    python = root / "bin" / "python"
    run(
        *(sys.executable, "-m", "pip", "--python", python, "install"),
        *("--no-deps", "--no-index", "--quiet", "--disable-pip-version-check", built.wheel),
        cwd=elsewhere,
    )
    (site_packages,) = root.glob("lib/python*/site-packages")
    # The dependencies of this environment come after the wheel; its own .pth files, such as that of an editable
    # install of this very package, are not read from there.
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return Installed(root, elsewhere)


def test_the_links_of_the_repository_are_relative_and_lead_to_its_folders() -> None:
    for name in ("cli", "shards", "configs"):
        link = REPOSITORY / "mvd_offline" / name
        assert os.readlink(link) == f"../{name}"
        assert link.resolve() == REPOSITORY / name


def test_the_wheel_has_one_top_level_name(built: Built) -> None:
    roots = {name.partition("/")[0] for name in built.names}

    assert {root for root in roots if not root.endswith(".dist-info")} == {"mvd_offline"}


def test_the_wheel_holds_every_module_and_data_file_once(built: Built) -> None:
    expected = {
        "mvd_offline/"
        + (
            path.relative_to(REPOSITORY / folder) if folder == "mvd_offline" else path.relative_to(REPOSITORY)
        ).as_posix()
        for folder in FOLDERS
        for suffix in ("*.py", "*.yaml", "*.md", "*.html", "py.typed")
        for path in (REPOSITORY / folder).rglob(suffix)
        if folder != "mvd_offline" or not set(path.relative_to(REPOSITORY / folder).parts[:1]) & set(FOLDERS)
    }

    assert {"mvd_offline/py.typed", "mvd_offline/shards/FORMAT.md", "mvd_offline/cli/main.py"} <= expected
    assert "mvd_offline/configs/distill/vit_s_from_vit_b_k400.yaml" in expected
    assert {name for name in built.names if name.startswith("mvd_offline/")} == expected


def test_the_wheel_and_the_sdist_carry_the_licence(built: Built) -> None:
    assert any(name.endswith("dist-info/licenses/LICENSE") for name in built.names)
    with tarfile.open(built.sdist) as archive:
        members = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", "constraints.txt", "mvd_offline/shards/__init__.py"} <= members


def test_the_installed_package_is_the_wheels(installed: Installed) -> None:
    where = installed.run("python", "-c", "import mvd_offline; print(mvd_offline.__file__)").strip()

    assert Path(where).is_relative_to(installed.root)


def test_the_commands_run_outside_the_repository(installed: Installed) -> None:
    assert "Usage: mvd-offline" in installed.run("mvd-offline", "--help")
    assert "Usage: mvd-shards" in installed.run("mvd-shards", "--help")
    assert installed.run("python", "-m", "mvd_offline", "--version").startswith("mvd-offline ")


def test_the_recipes_are_installed(installed: Installed) -> None:
    listed = installed.run("mvd-offline", "recipes", "list").splitlines()
    shown = installed.run("mvd-offline", "recipes", "show", "distill/vit_s_from_vit_b_k400")

    assert len(listed) == 1 + len(list((REPOSITORY / "configs").glob("*/*.yaml")))
    assert shown == (REPOSITORY / "configs/distill/vit_s_from_vit_b_k400.yaml").read_text(encoding="utf-8")


def test_no_bare_package_is_importable(installed: Installed) -> None:
    code = "import importlib.util as u; print([n for n in ('cli', 'shards', 'configs') if u.find_spec(n)])"

    assert installed.run("python", "-c", code).strip() == "[]"
