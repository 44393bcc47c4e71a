"""Dropping a column: what goes, what stays, and what a kill in the middle leaves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dying import dies_after
from small_stores import column_of, features_of, files_of, fill, new_store

from mvd_offline.shards import CommitError, MissingRowError, Store, create_store, open_store
from mvd_offline.shards.claims import Claims
from mvd_offline.shards.containers import CONTAINERS
from mvd_offline.shards.dropping import drop_column
from mvd_offline.shards.errors import ClaimError
from mvd_offline.shards.verify import verify


@pytest.fixture(params=CONTAINERS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A sealed store of two columns."""
    columns = [column_of(name, container=request.param) for name in ("image", "video")]
    made = new_store(tmp_path / "store", columns, view_ids=range(8), rows_per_shard=4)
    fill(made)
    made.seal()
    return open_store(made.root)


def add(store: Store, width: int = 5) -> Store:
    """The store with a column `image` again, of a teacher of this width."""
    column = replace(store.header.columns["image"], width=width)
    return create_store(store.root, replace(store.header, columns={"image": column}), store.plan_path.read_bytes())


def without_image(store: Store, root: Path) -> dict[str, bytes]:
    """The files of the same store, had it never had the column."""
    other = new_store(root, [store.header.columns["video"]], view_ids=range(8), rows_per_shard=4)
    fill(other)
    other.seal()
    return files_of(root)


def test_a_dropped_column_leaves_a_store_that_never_had_it(store: Store, tmp_path: Path) -> None:
    before = files_of(store.root)
    gone = [data for name, data in before.items() if name.startswith(("image/", "commits/image/"))]

    dropped = drop_column(store.root, "image")

    assert (dropped.files, dropped.bytes) == (len(gone), sum(map(len, gone)))
    assert files_of(store.root) == without_image(store, tmp_path / "other")
    assert not (store.root / "image").exists()
    again = open_store(store.root)
    assert again.store_id == store.store_id
    np.testing.assert_array_equal(again.read([3])["video"][0], features_of(3, store.header.columns["video"]))


def test_a_drop_that_dies_anywhere_is_finished_by_another(store: Store, tmp_path: Path) -> None:
    full, goal, deaths = files_of(store.root), without_image(store, tmp_path / "other"), 0
    while dies_after(deaths, lambda: drop_column(store.root, "image")):
        deaths += 1
        left = open_store(store.root, sealed=False)
        assert left.read([5], ["video"])["video"].any()
        if "image" in left.columns:
            assert left.read([5], ["image"])["image"].any(), "nothing of it goes before its name"
        left.clean_temporary()
        if "image" not in left.columns and not (store.root / "commits" / "image").exists():
            with pytest.raises(MissingRowError, match="no column image; it has video"):
                drop_column(store.root, "image")
        else:
            drop_column(store.root, "image")
        assert files_of(store.root) == goal
        for name, data in full.items():
            (store.root / name).parent.mkdir(parents=True, exist_ok=True)
            (store.root / name).write_bytes(data)
    assert deaths > 8
    assert files_of(store.root) == goal


def test_what_a_killed_drop_left_is_used_when_the_same_column_comes_back(store: Store) -> None:
    before = files_of(store.root)
    assert dies_after(1, lambda: drop_column(store.root, "image")), "after the new store.json"

    grown = add(store)

    assert grown.pending("image") == []
    grown.seal()
    assert files_of(store.root) == before


def test_what_a_killed_drop_left_goes_when_another_teacher_takes_the_name(store: Store) -> None:
    assert dies_after(1, lambda: drop_column(store.root, "image"))

    grown = add(store, width=3)

    assert grown.pending("image") == [0, 1]
    fill(grown)
    grown.seal()
    assert open_store(store.root).read([0])["image"].shape[2] == 3
    assert not verify(store.root, "full").findings


def test_a_damaged_record_costs_no_shard_when_a_lost_store_json_is_made_again(store: Store) -> None:
    video = replace(store.header, columns={"video": store.header.columns["video"]})
    (store.root / "store.json").unlink()
    create_store(store.root, video, store.plan_path.read_bytes())
    record = store.record_path("image", 0)
    record.write_bytes(record.read_bytes()[:-5])

    grown = add(store)

    assert grown.committed("image") == {0, 1}
    assert grown.shard_path("image", 0).exists()
    assert any(finding.shard == 0 and "record" in finding.what for finding in verify(store.root, "full").findings)


def test_the_rest_stays_readable_while_another_column_is_being_filled(store: Store) -> None:
    third = replace(store.header.columns["video"], name="video_h")
    create_store(store.root, replace(store.header, columns={"video_h": third}), store.plan_path.read_bytes())

    drop_column(store.root, "image")

    left = open_store(store.root, columns=["video"])
    assert left.columns == ("video", "video_h")
    assert left.read([0], ["video"])["video"].any()


def test_the_only_column_stays(store: Store) -> None:
    drop_column(store.root, "image")
    with pytest.raises(CommitError, match="video is the only column"):
        drop_column(store.root, "video")
    assert open_store(store.root).ok_rows().tolist() == list(range(8))


@pytest.mark.parametrize("name", ["sound", "commits", "..", "plan", ""])
def test_what_is_no_column_is_refused(store: Store, name: str) -> None:
    before = files_of(store.root)
    with pytest.raises(MissingRowError, match="it has image, video"):
        drop_column(store.root, name)
    assert files_of(store.root) == before


def test_a_column_is_not_dropped_while_a_run_is_at_work(store: Store) -> None:
    with Claims(store.plan_path) as run:
        assert run.try_take(1) is not None
        with pytest.raises(ClaimError, match="another run is at work"):
            drop_column(store.root, "image")
    assert open_store(store.root).columns == ("image", "video")
