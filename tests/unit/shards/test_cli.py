"""`mvd-offline shards`: what it prints, and the status it leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from small_stores import column_of, fill, new_store

from mvd_offline.cli.main import main, main_shards
from mvd_offline.shards import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = new_store(tmp_path / "store", [column_of()], view_ids=range(6), rows_per_shard=4)
    fill(store, {3: "timeout"})
    store.seal()
    return store


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*words: object, status: int = 0) -> str:
        assert main(["shards", *map(str, words)]) == status
        return capsys.readouterr().out

    return call


def test_info_prints_identity_and_columns(store: Store, run: Any) -> None:
    text = run("info", store.root)
    assert store.store_id in text
    assert "5 ok, 1 timeout" in text
    assert json.loads(run("info", store.root, "--json"))["store_id"] == store.store_id


def test_ls_prints_shards_or_the_rows_without_target(store: Store, run: Any) -> None:
    assert "c.1.0.0" in run("ls", store.root)
    assert "broken at frame 3" in run("ls", store.root, "--rows")
    assert [entry["view_id"] for entry in json.loads(run("ls", store.root, "--rows", "--json"))] == [3]


def test_stats_prints_ranges_and_channels(store: Store, run: Any) -> None:
    assert "largest channels" in run("stats", store.root)
    (entry,) = json.loads(run("stats", store.root, "--rows", 2, "--json"))
    assert entry["rows"] == 2


def test_verify_of_a_sound_store_leaves_0(store: Store, run: Any) -> None:
    assert "all is well" in run("verify", store.root, "--level", "full")
    assert json.loads(run("verify", store.root, "--json"))["ok"] is True


def test_verify_names_the_damage_leaves_1_and_repairs_when_asked(store: Store, run: Any) -> None:
    store.shard_path("video", 1).write_bytes(b"short")
    text = run("verify", store.root, status=1)
    assert "c.1.0.0 has 5 bytes" in text
    assert "--repair" in text
    assert store.pending("video") == []
    assert "withdrawn: video 1" in run("verify", store.root, "--repair", status=1)
    assert store.pending("video") == [1]


def test_seal_writes_the_index_anew(store: Store, run: Any) -> None:
    store.index_path.unlink()
    run("verify", store.root, status=1)
    assert "is sealed" in run("seal", store.root)
    run("verify", store.root)


def test_a_folder_without_store_is_one_line_and_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shards", "info", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "holds no store" in captured.err


def test_show_prints_the_row_and_writes_the_picture(extracted: Store, run: Any, tmp_path: Path) -> None:
    view, picture = int(extracted.ok_rows()[0]), tmp_path / "view.png"
    text = run("show", extracted.root, view, "--out", picture)
    assert extracted.pixel_hash(view) in text
    assert Image.open(picture).width > 300
    row = json.loads(run("show", extracted.root, view, "--out", picture, "--json"))
    assert row["view"]["view_id"] == view


def test_verify_recompute_runs_the_teachers_again(extracted: Store, run: Any) -> None:
    report = json.loads(run("verify", extracted.root, "--level", "recompute", "--rows", 1, "--json"))
    assert report["ok"] is True
    assert report["recompute"]["columns"]["image"]["identical"] >= 1


def test_mvd_shards_is_the_same_tool(store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr("sys.argv", ["mvd-shards", "info", str(store.root)])
    assert main_shards() == 0
    assert store.store_id in capsys.readouterr().out
