"""Files appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mvd_offline.shards import atomic


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "index.json"
    target.write_bytes(b"old")
    with atomic.temporary_file(target) as temporary:
        temporary.stream.write(b"new")
        assert target.read_bytes() == b"old"
        temporary.publish()
        assert target.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["index.json"]


def test_without_publishing_nothing_is_left(tmp_path: Path) -> None:
    with atomic.temporary_file(tmp_path / "a") as temporary:
        temporary.stream.write(b"x")
    assert os.listdir(tmp_path) == []


def test_a_failed_rename_leaves_nothing_behind(tmp_path: Path) -> None:
    target = tmp_path / "taken"
    target.mkdir()
    with pytest.raises(OSError, match="taken"):
        atomic.publish_bytes(target, b"x")
    assert os.listdir(tmp_path) == ["taken"]


def test_an_error_names_the_file_that_was_to_be_and_not_the_temporary_one(tmp_path: Path) -> None:
    target = tmp_path / "nowhere" / "a"
    with pytest.raises(FileNotFoundError) as raised:
        atomic.publish_bytes(target, b"x")
    assert raised.value.filename == str(target)

    with atomic.temporary_file(tmp_path / "b") as temporary, open("/dev/full", "wb") as full:
        os.dup2(full.fileno(), temporary.stream.fileno())
        temporary.stream.write(b"x")
        with pytest.raises(OSError, match="No space left on device") as refused:
            temporary.flush_to_disk()
    assert refused.value.filename == str(tmp_path / "b")
    assert os.listdir(tmp_path) == []


def test_a_folder_is_made_with_those_above_it_and_may_be_there_already(tmp_path: Path) -> None:
    for _ in range(2):
        atomic.make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def test_only_abandoned_temporary_files_are_cleaned(tmp_path: Path) -> None:
    abandoned, other = tmp_path / ".tmp-c.0.0.0-00000000", tmp_path / "c.0.0.0"
    abandoned.write_bytes(b"half")
    other.write_bytes(b"whole")
    with atomic.temporary_file(tmp_path / "c.1.0.0") as living:
        assert atomic.abandoned_files(tmp_path) == [abandoned]
        assert atomic.clean_folder(tmp_path) == [abandoned]
        assert living.path.exists()
    assert os.listdir(tmp_path) == ["c.0.0.0"]


def test_a_writer_whose_file_was_cleaned_before_it_could_lock_takes_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_lock, cleaned = atomic._try_lock, []

    def cleaner_comes_first(descriptor: int) -> bool:
        if not cleaned:
            cleaned.append(next(tmp_path.glob(".tmp-*")))
            cleaned[0].unlink()
        return real_lock(descriptor)

    monkeypatch.setattr(atomic, "_try_lock", cleaner_comes_first)
    with atomic.temporary_file(tmp_path / "a") as temporary:
        assert temporary.path != cleaned[0]
        temporary.stream.write(b"x")
        temporary.publish()
    assert (tmp_path / "a").read_bytes() == b"x"


def test_a_folder_that_is_not_there_holds_nothing_abandoned(tmp_path: Path) -> None:
    assert atomic.clean_folder(tmp_path / "nowhere") == []
