"""Reading rows: how many system calls, which memory, and what a damaged file still gives."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from small_stores import TOKENS, column_of, features_of, fill, new_store, write

from mvd_offline.shards import (
    CorruptionError,
    IdentityError,
    MissingRowError,
    NotSealedError,
    Store,
    atomic,
    open_store,
    reader,
    sealing,
)
from mvd_offline.shards.codecs import get_codec
from mvd_offline.shards.containers import CONTAINERS
from mvd_offline.shards.errors import StoreError
from mvd_offline.shards.reader import MOST_RUN_BYTES


@pytest.fixture(params=CONTAINERS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Two shards of six rows, sealed."""
    column = column_of(codec="float16", container=request.param)
    made = new_store(tmp_path / "store", [column], view_ids=range(12), rows_per_shard=6)
    fill(made)
    made.seal()
    return open_store(made.root)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Offsets of the system calls that read from shard files."""
    offsets: list[int] = []
    preadv = os.preadv

    def counted(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        offsets.append(offset)
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", counted)
    return offsets


def expected(view_ids: list[int]) -> np.ndarray:
    return np.stack([features_of(view, column_of(codec="float16")).astype(np.float16) for view in view_ids])


# ---- system calls ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("view_ids", "calls"),
    [([0, 1, 2, 3], 1), ([3, 1, 0, 2], 1), ([4, 5, 6, 7], 2), ([0, 6], 2), ([2, 2], 2), ([9], 1), ([], 0)],
    ids=str,
)
def test_neighbours_in_a_file_take_one_system_call(
    store: Store, reads: list[int], view_ids: list[int], calls: int
) -> None:
    values = store.read_coded("video", view_ids)
    assert len(reads) == calls
    if view_ids:
        np.testing.assert_array_equal(values, expected(view_ids))


def test_large_rows_are_read_one_by_one_and_checked_while_they_are_in_the_cache(
    tmp_path: Path, reads: list[int]
) -> None:
    width = MOST_RUN_BYTES // (2 * TOKENS * 4) + 1
    column = column_of(width=width)
    made = new_store(tmp_path / "store", [column], view_ids=range(4), rows_per_shard=4)
    fill(made)
    row = 4 * TOKENS * width
    assert row < MOST_RUN_BYTES < 2 * row + 4
    np.testing.assert_array_equal(made.read_coded("video", range(4))[3], features_of(3, column))
    assert reads == [number * (row + 4) for number in range(4)]


# ---- memory ------------------------------------------------------------------------------------------------------


def test_memory_for_rows_begins_with_a_page(store: Store) -> None:
    assert store.read_coded("video", [0, 1]).ctypes.data % 4096 == 0


def test_tokens_are_read_into_an_array_that_is_given(store: Store) -> None:
    tokens = np.array([[5, 0], [1, 2], [3, 3]])
    out = np.empty((3, 2, 5), np.float16)
    assert store.read_tokens("video", [7, 0, 4], tokens, out=out) is out
    np.testing.assert_array_equal(out, expected([7, 0, 4])[np.arange(3)[:, None], tokens])
    with pytest.raises(IdentityError, match=r"`out` must be a contiguous float16 array \(3, 2, 5\), not float32"):
        store.read_tokens("video", [7, 0, 4], tokens, out=np.empty((3, 2, 5), np.float32))


def test_threads_share_a_store_that_has_more_files_than_are_kept_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "OPEN_FILES", 4)
    count = 16
    column = column_of(codec="float16")
    made = new_store(tmp_path / "store", [column], view_ids=range(count), rows_per_shard=1)
    fill(made)
    targets = expected(list(range(count)))
    orders = [np.random.default_rng(seed).permutation(np.repeat(np.arange(count), 20)) for seed in range(8)]
    before = len(os.listdir("/proc/self/fd"))

    def read_all(order: np.ndarray) -> list[bool]:
        return [np.array_equal(made.read_coded("video", [view])[0], targets[view]) for view in order]

    with ThreadPoolExecutor(8) as pool:
        for equal in pool.map(read_all, orders):
            assert all(equal)
    assert len(os.listdir("/proc/self/fd")) <= before + 4


# ---- damage ------------------------------------------------------------------------------------------------------


def truncate(store: Store) -> None:
    os.truncate(store.shard_path("video", 0), store.status("video").row(4).offset + 3)


def flip(store: Store) -> None:
    with store.shard_path("video", 0).open("r+b") as stream:
        stream.seek(store.status("video").row(4).offset)
        byte = stream.read(1)[0]
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte ^ 1]))


@pytest.mark.parametrize(("damage", "reason"), [(truncate, "ends too early"), (flip, "does not match its record")])
def test_damage_costs_the_row_it_hit_and_names_it(store: Store, damage: Callable[[Store], None], reason: str) -> None:
    damage(store)
    alive = [0, 1, 2, 3, 6, 7]
    np.testing.assert_array_equal(store.read_coded("video", alive), expected(alive))
    pattern = rf"column video, shard 0, row 4: .*{reason}.*mvd-offline shards verify {store.root} --level full --repair"
    with pytest.raises(CorruptionError, match=pattern):
        store.read_coded("video", [2, 3, 4])
    with pytest.raises(CorruptionError, match=pattern):
        store.read_tokens("video", [4], np.zeros((1, 1), int))


@pytest.mark.parametrize(("replacement", "reason"), [(None, "No such file"), (Path.mkdir, "Is a directory")])
def test_a_shard_that_is_gone_is_named(store: Store, replacement: Callable[[Path], None] | None, reason: str) -> None:
    path = store.shard_path("video", 1)
    path.unlink()
    if replacement:
        replacement(path)
    np.testing.assert_array_equal(store.read_coded("video", [0, 5]), expected([0, 5]))
    with pytest.raises(CorruptionError, match=rf"shard 1, row 7: the file {path} cannot be read \({reason}"):
        store.read_coded("video", [8, 7])


# ---- opening -----------------------------------------------------------------------------------------------------


def test_a_sealed_store_is_read_from_its_index_alone(store: Store) -> None:
    shutil.rmtree(store.root / "commits" / "video")
    again = open_store(store.root)
    np.testing.assert_array_equal(again.read_coded("video", [11, 0]), expected([11, 0]))


def test_the_index_keeps_what_the_records_say(tmp_path: Path) -> None:
    columns = [column_of("image", codec="int8"), column_of("video", container="tar")]
    made = new_store(tmp_path / "store", columns, view_ids=[0, 1, 2, 4, 5, 6], rows_per_shard=4)
    fill(made, {1: "timeout", 6: "unreadable"})
    made.seal()
    for name in ("image", "video"):
        ledger = open_store(made.root).status(name)
        records = [row for shard in range(2) for row in made.record(name, shard).rows]
        assert [ledger.row(row.view_id) for row in records] == records
        assert 3 not in ledger
        for views, message in (
            ([0, 1], "row 1: .*timeout"),
            ([-1], "row -1"),
            ([3], "row 3: no record"),
            ([7], "row 7"),
        ):
            with pytest.raises(MissingRowError, match=message):
                ledger.require_ok(np.array(views))


def test_codecs_that_pack_more_than_tokens_give_their_extra_rows(tmp_path: Path) -> None:
    column = column_of(codec="int8")
    made = new_store(tmp_path / "store", [column], view_ids=range(2), rows_per_shard=2)
    fill(made)
    coded = get_codec("int8").encode(features_of(1, column))
    read = made.read_tokens("video", [1], np.array([[4, 2]]))
    np.testing.assert_array_equal(read[0], coded[[4, 2, TOKENS]])


# ---- while others write ------------------------------------------------------------------------------------------


@pytest.fixture(params=CONTAINERS)
def growing(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A sealed column, and one whose shards are all there but not yet in the index."""
    columns = [column_of(name, codec="float16", container=request.param) for name in ("video", "image")]
    made = new_store(tmp_path / "store", columns[:1], view_ids=range(12), rows_per_shard=6)
    fill(made)
    made.seal()
    grown = new_store(tmp_path / "store", columns, view_ids=range(12), rows_per_shard=6)
    fill(grown)
    return grown


@pytest.mark.parametrize("moment", ["before the index", "after the index", "sealed"])
def test_a_column_opens_while_another_is_sealed(growing: Store, tmp_path: Path, moment: str) -> None:
    """The writer stops where a reader may come; it goes on while the reader waits."""
    early = open_store(growing.root, sealed=False)
    assert early.is_indexed("video")  # it holds the old seal from here on
    copy = shutil.copytree(growing.root, tmp_path / "copy")
    open_store(copy, sealed=False).seal()
    index, seal = (copy / "index.parquet").read_bytes(), (copy / "commits" / "index.json").read_bytes()
    with ThreadPoolExecutor(2) as pool, atomic.folder_lock(growing.root):
        growing.seal_path.unlink()
        if moment != "before the index":
            atomic.publish_bytes(growing.index_path, index)
        if moment == "sealed":
            atomic.publish_bytes(growing.seal_path, seal)
        opened = pool.submit(open_store, growing.root, columns=["video"])
        known = pool.submit(early.require_sealed, ["video"])
        time.sleep(0.2)
        atomic.publish_bytes(growing.index_path, index)
        atomic.publish_bytes(growing.seal_path, seal)
    np.testing.assert_array_equal(opened.result(5).read_coded("video", [3]), expected([3]))
    known.result(5)
    np.testing.assert_array_equal(early.read_coded("video", [3]), expected([3]))


def test_a_store_that_nobody_seals_is_refused_at_once(growing: Store) -> None:
    growing.seal_path.unlink()
    began = time.perf_counter()
    with pytest.raises(NotSealedError, match="no index of column video"):
        open_store(growing.root, columns=["video"])
    assert time.perf_counter() - began < sealing.MOST_SECONDS / 2


def test_an_index_that_is_damaged_is_still_named(store: Store) -> None:
    store.index_path.write_bytes(store.index_path.read_bytes()[:-1])
    with pytest.raises(CorruptionError, match="does not match its digest"):
        open_store(store.root)


@pytest.mark.parametrize("change", ["exchanged", "exchanged and sealed", "taken back"])
def test_a_shard_that_was_made_again_is_no_damage(store: Store, change: str) -> None:
    store.read_coded("video", [6])
    other = open_store(store.root)
    if change == "taken back":
        other.withdraw("video", 0)
        other.shard_path("video", 0).unlink()
    else:
        write(other, "video", 0, {0: "timeout", 1: "timeout"}, replace=True)
    if change == "exchanged and sealed":
        other.seal()
    store._reader.close_files()  # as many other files do
    with pytest.raises(StoreError, match=r"row 5: .*was changed while it was read.*open the store again") as caught:
        store.read_coded("video", [5])
    assert not isinstance(caught.value, CorruptionError)
    np.testing.assert_array_equal(store.read_coded("video", [6]), expected([6]))


def test_a_shard_whose_exchange_begins_after_the_listing_is_left_out_of_the_ledger(growing: Store) -> None:
    records = growing._records("image")
    assert next(records).shard == 0
    growing.next_record_path("image", 1).write_bytes(growing.record_path("image", 1).read_bytes())
    assert list(records) == []
    assert open_store(growing.root, sealed=False).status("image").view_ids.tolist() == list(range(6))
