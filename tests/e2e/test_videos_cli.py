"""`mvd-offline videos`, as a user runs it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mvd_offline.video.catalog import Catalog


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mvd_offline", "videos", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A train and a test set of four classes."""
    folder = tmp_path_factory.mktemp("made")
    size = ("--classes", "4", "--short-side", "48", "64", "--frames", "20", "70", "--workers", "1")
    done = run("synth", folder, "--videos-per-class", "2", "--test-videos-per-class", "1", *size)
    assert done.returncode == 0, done.stderr
    assert "train: 8 videos of 4 classes" in done.stdout
    assert "test: 4 videos of 4 classes" in done.stdout
    return folder


def test_synth_writes_a_train_and_a_test_set_with_the_same_classes(made: Path) -> None:
    train, test = ({path.parent.name for path in (made / name).rglob("*.mp4")} for name in ("train", "test"))
    assert train == test
    assert len(train) == 4


def test_scan_writes_a_catalog_and_says_counts(made: Path, tmp_path: Path) -> None:
    done = run("scan", made / "train", "--out", tmp_path / "c.parquet", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert "8 videos: 8 ok, 0 unreadable, 0 too_short, 0 timeout, 0 missing" in done.stdout
    assert "scan: 8/8 videos" in done.stderr
    catalog = Catalog.read(tmp_path / "c.parquet")
    assert len(catalog.classes) == 4
    assert catalog.root == made / "train"


def test_scan_lists_what_is_wrong_and_still_succeeds(made: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    os.mkfifo(tmp_path / "pipe.mp4")
    root = Path(os.path.commonpath([made, tmp_path]))
    listed = [tmp_path / "broken.mp4", tmp_path / "pipe.mp4", tmp_path / "gone", next(made.rglob("*.mp4"))]
    lines = [f"{path.relative_to(root)} {label}\n" for label, path in enumerate(listed)]
    (tmp_path / "list.csv").write_text("".join(lines), encoding="utf-8")
    out = tmp_path / "c.parquet"
    done = run("scan", tmp_path / "list.csv", "--root", root, "--out", out, "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert "4 videos: 1 ok, 2 unreadable, 0 too_short, 0 timeout, 1 missing" in done.stdout
    assert "not a regular file" in done.stdout
    again = json.loads(run("scan", tmp_path / "list.csv", "--root", root, "--out", out, "--json").stdout)
    assert again["counts"] == {"ok": 1, "unreadable": 2, "too_short": 0, "timeout": 0, "missing": 1}
    assert {row["status"] for row in again["problems"]} == {"unreadable", "missing"}


def test_show_tells_a_file_from_a_catalog_entry(made: Path, tmp_path: Path) -> None:
    run("scan", made / "train", "--out", tmp_path / "c.parquet", "--workers", "1")
    path = sorted((made / "train").rglob("*.mp4"))[0]
    from_file = json.loads(run("show", path, "--json").stdout)
    known = json.loads(
        run("show", f"{path.parent.name}/00000.mp4", "--catalog", tmp_path / "c.parquet", "--json").stdout
    )
    assert {from_file[k] == known[k] for k in ("frames", "fps", "width", "height", "size", "sha256")} == {True}
    assert known["label_name"] == path.parent.name
    assert "frames" in run("show", path).stdout
    marked = shutil.copy(path, tmp_path / "[old]x[b].mp4")
    assert Path(marked).name in run("show", marked).stdout


def test_mistakes_are_one_line_and_an_exit_status(made: Path, tmp_path: Path) -> None:
    unknown = run("show", "checks_left/99.mp4", "--catalog", tmp_path / "none.parquet")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "no such catalog" in unknown.stderr
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    broken = run("show", tmp_path / "broken.mp4")
    assert broken.returncode == 1
    assert "broken.mp4" in broken.stderr
    assert "Traceback" not in broken.stderr
    (tmp_path / "bad.csv").write_text("only-a-path\n")
    assert (
        "line 1: expected a path, a blank or comma" in run("scan", tmp_path / "bad.csv", "--out", tmp_path / "c").stderr
    )
    assert run("synth", tmp_path, "--classes", "3").returncode == 2
