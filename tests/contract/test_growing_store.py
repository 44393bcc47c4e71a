"""A store that is read while others fill it: what is committed later can be read by who opened it before."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
from small_stores import column_of, features_of, fill, hash_of, new_store, write

from mvd_offline.shards import Store, open_store
from mvd_offline.shards.errors import MissingRowError
from mvd_offline.shards.index import ColumnIndex

COLUMN = column_of()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Three shards of four rows; the last has two views. Nothing is committed."""
    return new_store(tmp_path / "store", [COLUMN], view_ids=range(10), rows_per_shard=4)


def same(one: ColumnIndex, other: ColumnIndex) -> bool:
    """Whether two ledgers say the same of every row, in whichever order they know the decoders."""
    arrays = ("status", "offset", "length", "crc32c", "pixels")
    rows = [(index.row(view) if view in index else None) for index in (one, other) for view in range(len(one.status))]
    half = len(rows) // 2
    return rows[:half] == rows[half:] and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in arrays
    )


def test_rows_committed_after_opening_can_be_read(store: Store) -> None:
    reader = open_store(store.root, sealed=False)
    write(store, "video", 1)
    assert reader.read([5])["video"].tolist() == [features_of(5, COLUMN).tolist()]
    write(store, "video", 0)

    assert reader.read([5, 2])["video"].tolist() == [features_of(view, COLUMN).tolist() for view in (5, 2)]
    assert reader.pixels_of(3).pixels == hash_of(3)
    tokens = reader.read_tokens("video", [1], np.array([[2, 0]]))
    assert tokens.tolist() == [features_of(1, COLUMN)[[2, 0]].tolist()]


def test_a_row_that_is_not_committed_yet_is_missing_until_it_is(store: Store) -> None:
    reader = open_store(store.root, sealed=False)
    for view in (9, 11, -1, 12):
        with pytest.raises(MissingRowError):
            reader.read([view])
    write(store, "video", 2)

    assert reader.read([9])["video"].shape == (1, 6, 5)
    for view in (11, -1, 12):
        with pytest.raises(MissingRowError):
            reader.read([view])


def test_the_ledger_that_catches_up_is_the_ledger_of_who_comes_later(store: Store) -> None:
    reader = open_store(store.root, sealed=False)
    for shard in (2, 0, 1):
        write(store, "video", shard, {3: "unreadable", 8: "too_short"})
        assert same(reader.catch_up("video", [shard]), open_store(store.root, sealed=False).status("video"))
    store.seal()

    assert same(reader.catch_up("video", range(3)), open_store(store.root).status("video"))
    with pytest.raises(MissingRowError, match="its status is unreadable: broken at frame 3"):
        reader.read([3])


def test_what_was_known_of_a_shard_stays_when_it_is_made_again(store: Store) -> None:
    reader = open_store(store.root, sealed=False)
    write(store, "video", 0, {1: "unreadable"})
    assert not reader.catch_up("video", [0]).ok[1]
    write(store, "video", 0, replace=True)

    assert not reader.catch_up("video", [0]).ok[1]
    assert open_store(store.root, sealed=False).status("video").ok[1]


def test_a_copy_in_another_process_goes_on_by_itself_even_once_the_store_is_sealed(store: Store) -> None:
    write(store, "video", 0)
    reader = open_store(store.root, sealed=False)
    assert reader.ok_rows().tolist() == [0, 1, 2, 3]
    twin = copy.deepcopy(reader)  # by the state that pickling takes
    fill(store)
    store.seal()

    assert twin.read([9, 0])["video"].tolist() == [features_of(view, COLUMN).tolist() for view in (9, 0)]
