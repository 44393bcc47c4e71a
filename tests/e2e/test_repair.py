"""A store that was damaged, on the real command line: found, put aside, made again to the bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from small_runs import contents, make_store, once

from mvd_offline.cli.main import main
from mvd_offline.shards import CorruptionError, open_store


def flip_bit(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 4
    path.write_bytes(content)


def test_verify_repair_and_extract_bring_back_exactly_what_was_damaged(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Path(shutil.copytree(once(tmp_path_factory, "store", make_store) / "store", tmp_path / "store"))
    whole = contents(store)
    opened = open_store(store)
    flip_bit(opened.shard_path("video", 1), opened.status("video").row(5).offset)
    opened.shard_path("image", 4).unlink()
    flip_bit(opened.record_path("image", 0), 100)

    with pytest.raises(CorruptionError, match=f"column video, shard 1, row 5: .*shards verify {store} .*--repair"):
        open_store(store).read([5], ["video"])
    assert main(["shards", "verify", str(store), "--level", "full", "--repair"]) == 1
    out = capsys.readouterr().out
    assert "to be made again: image 0, image 4, video 1" in out
    assert f"next: mvd-offline extract {store}" in out
    assert main(["extract", str(store), "--workers", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["shards"] == 3

    assert {name: data for name, data in contents(store).items() if not name.startswith("quarantine/")} == whole
    assert main(["shards", "verify", str(store), "--level", "full"]) == 0
    assert f"{store}/quarantine holds 5 files" in capsys.readouterr().out
