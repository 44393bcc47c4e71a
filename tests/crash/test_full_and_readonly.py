"""Disks that are full, read-only or broken: a clear error, a valid store, and the same bytes once that is over."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from file_calls import struck_command
from small_disks import Disk, mounted
from small_runs import MVD_OFFLINE, contents, file_names, make_store, once, plan_small, write_recipe

from mvd_offline.shards.verify import verify

EXTRACT = (MVD_OFFLINE, "extract", "--workers", "1")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once(tmp_path_factory, "store", make_store)


@pytest.fixture(scope="module")
def planned(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same store, planned and empty."""
    return plan_small(made / "catalog.parquet", tmp_path_factory.mktemp("planned") / "store")


def paragraph(done: subprocess.CompletedProcess[str]) -> str:
    """The error of a command that failed as it should: status 1, one line, no traceback."""
    assert done.returncode == 1, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert sum(line.startswith("error: ") for line in lines) == 1, done.stderr
    assert lines[-1].startswith("error: "), done.stderr
    assert "Traceback" not in done.stderr
    return lines[-1]


def only_unfinished(store: Path) -> bool:
    """Whether a store is valid, but for the shards that are still to be made."""
    assert not [name for name in file_names(store) if ".tmp-" in name]
    findings = verify(store, "quick").findings
    return bool(findings) and all("are not committed" in finding.what for finding in findings)


# ---- full --------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Disk]:
    (tmp_path / "disk").mkdir()
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=2m", "small") as disk:
        yield disk


def leave(disk: Disk, free: int) -> Path:
    """Fill the disk up, but for so many bytes; returns the file to remove."""
    ballast = disk.seen / "ballast"
    ballast.write_bytes(bytes(disk.free_bytes - free))
    return ballast


def test_a_full_disk_stops_extraction_with_a_valid_store_that_goes_on_once_there_is_room(
    small_disk: Disk, made: Path, planned: Path
) -> None:
    store = small_disk.path / "store"
    shutil.copytree(planned, small_disk.seen / "store")
    ballast = leave(small_disk, 150_000)  # of the 300 kB that it needs

    error = paragraph(small_disk.run(*EXTRACT, store))

    assert f"{store}: the disk is full" in error
    assert "shards, about 0." in error, "how much is still to be written"
    assert "MB are free there" in error
    assert "Make room on that disk, then run the same command again" in error
    assert only_unfinished(small_disk.seen / "store")
    assert any(name.startswith("commits/") for name in file_names(small_disk.seen / "store")), "it began"

    ballast.unlink()
    assert small_disk.run(*EXTRACT, store).returncode == 0
    assert contents(small_disk.seen / "store") == contents(made / "store")


def test_a_full_disk_stops_planning_and_planning_again_makes_the_store(
    small_disk: Disk, made: Path, planned: Path, tmp_path: Path
) -> None:
    store, recipe = small_disk.path / "store", write_recipe(tmp_path / "recipe.yaml")
    plan = (MVD_OFFLINE, "plan", recipe, "--videos", made / "catalog.parquet", "--store", store)
    ballast = leave(small_disk, 8192)  # room for two small files

    error = paragraph(small_disk.run(*plan))

    assert f"error: {store}/" in error
    assert "the disk is full (" in error
    assert not (small_disk.seen / "store" / "store.json").exists(), "there is no store yet"
    assert not [name for name in file_names(small_disk.seen) if ".tmp-" in name]

    ballast.unlink()
    assert small_disk.run(*plan).returncode == 0
    assert contents(small_disk.seen / "store") == contents(planned)


# ---- read-only ---------------------------------------------------------------------------------------------------


@pytest.fixture
def stores(made: Path, planned: Path, tmp_path: Path) -> Path:
    """A folder with a store that is sealed, one that is damaged, one that is only planned, and one without its seal."""
    folder = tmp_path / "stores"
    for name in ("sealed", "damaged", "unsealed"):
        shutil.copytree(made / "store", folder / name)
    shutil.copytree(planned, folder / "planned")
    next((folder / "damaged" / "image").glob("c.*")).write_bytes(b"damage")
    (folder / "unsealed" / "commits" / "index.json").unlink()
    return folder


@pytest.fixture
def read_only(stores: Path) -> Iterator[Disk]:
    with mounted(stores, "--bind", "-o", "ro", str(stores)) as disk:
        done = disk.run("touch", stores / "probe")
        if "Read-only file system" not in done.stderr:
            pytest.skip(f"this machine mounts nothing read-only for its users: {done.stderr or 'touch may write'}")
        yield disk


def test_what_writes_says_that_the_folder_is_read_only(read_only: Disk, made: Path, tmp_path: Path) -> None:
    stores, recipe = read_only.path, write_recipe(tmp_path / "recipe.yaml")
    before = contents(stores)
    plan = (MVD_OFFLINE, "plan", recipe, "--videos", made / "catalog.parquet", "--store", stores / "new")
    commands = {
        stores / "new": plan,
        stores / "planned": (*EXTRACT, stores / "planned"),
        stores / "unsealed": (MVD_OFFLINE, "shards", "seal", stores / "unsealed"),
        stores / "damaged": (MVD_OFFLINE, "shards", "verify", stores / "damaged", "--level", "full", "--repair"),
    }
    for store, command in commands.items():
        error = paragraph(read_only.run(*command)).lower()
        assert str(store).lower() in error
        assert "read-only" in error
    assert contents(stores) == before


def test_reading_works_on_a_read_only_store(read_only: Disk, made: Path, tmp_path: Path) -> None:
    store, recipe = read_only.path / "sealed", write_recipe(tmp_path / "recipe.yaml")
    distill = (MVD_OFFLINE, "distill", recipe, "--store", store, "--run", tmp_path / "run")
    shards = (MVD_OFFLINE, "shards")
    for command in (
        (*shards, "info", store),
        (*shards, "stats", store),
        (*shards, "verify", store, "--level", "full"),
        (*distill, "--set", "optim.stop_after_epochs=1", "--set", "training.workers=0"),
    ):
        done = read_only.run(*command)
        assert done.returncode == 0, f"{command}: {done.stderr}"
    assert (tmp_path / "run" / "student.safetensors").exists()


# ---- broken ------------------------------------------------------------------------------------------------------


def test_a_disk_that_fails_under_the_writing_thread_stops_extraction(planned: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(planned, store)
    words = struck_command(store, "--at", "fsync image/c.1.0.0~", "--error", str(errno.EIO))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}

    done = subprocess.run(words, capture_output=True, text=True, timeout=60, env=environment)

    error = paragraph(done)
    assert f"error: {store}/image/c.1.0.0: the disk failed (input/output error)" in error
    assert only_unfinished(store)
