"""Exchanging a shard: what is kept, and what a kill in the middle leaves."""

from __future__ import annotations

from pathlib import Path

import pytest
from dying import dies_after
from small_stores import (
    DECODER,
    PRODUCER,
    column_of,
    features_of,
    files_of,
    fill,
    hash_of,
    new_store,
)

from mvd_offline.shards import CorruptionError, MissingRowError, Store, open_store
from mvd_offline.shards.containers import CONTAINERS
from mvd_offline.shards.shardfile import ShardFile, ShardWriter
from mvd_offline.shards.verify import verify

FAILED = {2: "timeout", 5: "unreadable"}


@pytest.fixture(params=CONTAINERS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A sealed store of two shards, each with a failed row."""
    made = new_store(tmp_path / "store", [column_of(container=request.param)], view_ids=range(8), rows_per_shard=4)
    fill(made, FAILED)
    made.seal()
    return open_store(made.root)


def heal(store: Store, shard: int = 0) -> None:
    """Exchange a shard for one in which the failed row has a target and the others are what they were."""
    column, record = store.header.columns["video"], store.record("video", shard)
    before = ShardFile(str(store.shard_path("video", shard)))
    with store.write_shard("video", shard, producer=PRODUCER, replace=True) as writer:
        for row in record.rows:
            if row.status == "ok":
                writer.keep(row, before.payload(row))
            else:
                view = row.view_id
                writer.add(view, features_of(view, column), pixels=hash_of(view), decoder=DECODER)


def healthy(store: Store, root: Path) -> dict[str, bytes]:
    """The files of the same store, had no row failed."""
    other = new_store(root, [store.header.columns["video"]], view_ids=range(8), rows_per_shard=4)
    fill(other)
    other.seal()
    return files_of(root)


def test_rows_that_are_kept_are_as_if_they_had_been_written_anew(store: Store, tmp_path: Path) -> None:
    heal(store, 0)
    heal(store, 1)
    assert not store.sealed
    store.seal()
    assert files_of(store.root) == healthy(store, tmp_path / "healthy")


def test_a_kept_row_that_is_damaged_is_found(store: Store) -> None:
    row = store.record("video", 0).rows[1]
    path = store.shard_path("video", 0)
    content = bytearray(path.read_bytes())
    content[row.offset] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptionError, match="crc32c"):
        heal(store)
    assert store.sealed, "the exchange had not begun"


def test_a_discarded_exchange_changes_nothing(store: Store) -> None:
    before = files_of(store.root)

    def discard(writer: ShardWriter) -> None:
        writer.discarded = True

    with store.write_shard("video", 0, producer=PRODUCER, replace=True) as writer:
        discard(writer)
    assert files_of(store.root) == before
    assert store.sealed


def test_an_exchange_that_dies_anywhere_leaves_the_old_shard_or_the_new(tmp_path: Path, store: Store) -> None:
    """Whatever is committed is true at every moment, and nothing needs to be made again."""
    store.view_ids  # noqa: B018 - read before the fork
    old, outcomes, deaths = files_of(store.root), [], 0
    goal = healthy(store, tmp_path / "healthy")
    name = store.shard_path("video", 0).relative_to(store.root).as_posix()
    while dies_after(deaths, lambda: heal(store)):
        deaths += 1
        left = open_store(store.root, sealed=False)
        if not left.is_committed("video", 0):
            with pytest.raises(MissingRowError, match="not committed"):
                left.record("video", 0)
        assert [f for f in verify(store.root, "full").findings if "record" in f.what or "file" in f.what] == []

        left.clean_temporary()
        left.settle("video", 0)
        assert left.is_committed("video", 0)
        left.seal()
        outcomes.append(files_of(store.root)[name])
        assert not verify(store.root, "full").findings
        for path, data in old.items():
            (store.root / path).write_bytes(data)
        store.refresh()
    # Unseal, next record, file, record: each is done, or not yet, when the process dies.
    assert deaths >= 4
    assert set(outcomes) == {old[name], goal[name]}
    assert outcomes == sorted(outcomes, key=lambda content: content == goal[name])


def test_an_exchange_whose_file_is_neither_the_old_nor_the_new_is_taken_back(store: Store) -> None:
    record = store.record_path("video", 0)
    store.next_record_path("video", 0).write_bytes(record.read_bytes())
    store.shard_path("video", 0).write_bytes(b"something else")

    store.settle("video", 0)

    assert store.pending("video") == [0]
    assert sorted(path.name for path in record.parent.iterdir()) == ["000001.json"]
    assert not store.sealed


def test_a_shard_that_is_being_exchanged_is_pending(store: Store) -> None:
    store.next_record_path("video", 1).write_bytes(store.record_path("video", 1).read_bytes())
    assert store.committed("video") == {0}
    assert not store.is_committed("video", 1)
    store.settle("video", 1)
    assert store.committed("video") == {0, 1}
