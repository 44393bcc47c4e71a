"""`mvd-offline shards`: what it prints, and the status it leaves."""

from __future__ import annotations

import json
from dataclasses import replace
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


def test_ls_joins_shards_that_would_be_too_many_lines(store: Store, run: Any) -> None:
    assert "0 to 1" in run("ls", store.root, "--limit", 1)
    assert "c.1.0.0" in run("ls", store.root, "--limit", 0)
    assert len(json.loads(run("ls", store.root, "--json"))) == 2
    assert len(json.loads(run("ls", store.root, "--json", "--limit", 1))) == 1
    run("ls", store.root, "--limit", -1, status=2)


def test_ls_prints_the_first_failures_and_how_many_there_are(tmp_path: Path, run: Any) -> None:
    store = new_store(tmp_path / "many", [column_of()], view_ids=range(60), rows_per_shard=60)
    fill(store, dict.fromkeys(range(60), "timeout"))
    text = run("ls", store.root, "--rows")
    assert "broken at frame 49" in text
    assert "broken at frame 50" not in text
    assert "and 10 more" in text
    assert "broken at frame 59" in run("ls", store.root, "--rows", "--limit", 0)


def test_what_comes_from_data_is_printed_as_it_is(tmp_path: Path, run: Any) -> None:
    column = column_of()
    source = {"weights": "[bold]x[/bold]", "nested": {"[red]key": "[/]"}}
    store = new_store(tmp_path / "[b]", [replace(column, source=source)], view_ids=[0, 1], rows_per_shard=2)
    with store.write_shard("video", 0, producer={"device": "[cpu]"}) as writer:
        for view in (0, 1):
            writer.fail(view, "unreadable", "[italic]no frames[/italic]")
    text = run("info", store.root)
    for part in ("[b]", "[bold]x[/bold]", "[red]key", "[/]", "[cpu]"):
        assert part in text
    assert "[italic]no frames[/italic]" in run("ls", store.root, "--rows")


def test_info_prints_who_computed_the_targets(store: Store, run: Any) -> None:
    assert "torch 2.11.0: 2 of the shards" in run("info", store.root)


def test_stats_prints_what_coding_cost(tmp_path: Path, run: Any) -> None:
    store = new_store(tmp_path / "int8", [column_of(codec="int8")], view_ids=range(3), rows_per_shard=4)
    fill(store)
    text = run("stats", store.root)
    assert "relative error in int8" in text
    assert f"(view {store.status('video').coding['relative_error'].argmax()})" in text


def test_stats_of_an_exact_codec_say_so(store: Store, run: Any) -> None:
    assert "float32 kept every value of 5 rows" in run("stats", store.root)


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
    text = run("verify", store.root, "--repair", status=1)
    assert f"put aside: {store.root}/quarantine/video/c.1.0.0." in text
    assert "to be made again: video 1" in text
    assert f"next: mvd-offline extract {store.root}" in text
    assert store.pending("video") == [1]
    assert f"{store.root}/quarantine holds 2 files, " in run("verify", store.root, status=1)
    report = json.loads(run("verify", store.root, "--repair", "--json", status=1))
    assert (report["findings"][0]["remedy"], report["repaired"]["set_aside"]) == ("extract", [])


def test_seal_writes_the_index_anew(store: Store, run: Any) -> None:
    store.index_path.unlink()
    run("verify", store.root, status=1)
    assert "is sealed" in run("seal", store.root)
    run("verify", store.root)


def test_a_folder_without_store_is_one_line_and_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shards", "info", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "holds no store (no store.json)" in captured.err
    assert f"`mvd-offline plan RECIPE --videos CATALOG --store {tmp_path}` makes one" in captured.err


def test_what_is_something_else_is_not_offered_as_a_stores_folder(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "recipe.yaml").write_text("kind: distill", encoding="utf-8")
    assert main(["shards", "info", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "Give the folder that" in said
    assert f"--store {tmp_path}" not in said


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


def test_verify_recompute_names_a_teacher_with_other_weights(extracted: Store, run: Any) -> None:
    other = ("--rows", 1, "--teacher", "video=random:vit_tiny:9")
    text = run("verify", extracted.root, "--level", "recompute", *other, status=1)
    assert "  weights_sha256: teacher has " in text
    assert "views rendered again, see above" in text


def test_mvd_shards_is_the_same_tool(store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr("sys.argv", ["mvd-shards", "info", str(store.root)])
    assert main_shards() == 0
    assert store.store_id in capsys.readouterr().out
