"""What `shards info`, `ls` and `stats` say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_stores import DECODER, PRODUCER, TOKENS, WIDTH, column_of, features_of, fill, hash_of, new_store, write

from mvd_offline.shards import MissingRowError, Store
from mvd_offline.shards.inspect import failures, info, join_shards, ls, stats


@pytest.fixture
def store(tmp_path: Path) -> Store:
    columns = [column_of("image", codec="bfloat16", width=3), column_of("video")]
    return new_store(tmp_path / "store", columns, view_ids=[0, 1, 2, 3, 4, 8], rows_per_shard=4)


def test_info_tells_how_far_each_column_is(store: Store) -> None:
    fill(store, {3: "timeout"}, columns=["image"])
    write(store, "video", 1)
    facts = info(store)
    assert (facts["views"], facts["shards"], facts["sealed"]) == (6, 3, False)
    image, video = facts["columns"]["image"], facts["columns"]["video"]
    assert (image["shards_committed"], image["rows"], image["indexed"]) == (3, {"ok": 5, "timeout": 1}, False)
    assert (video["shards_committed"], video["rows"]) == (1, {"ok": 1})
    assert image["row_bytes"] == TOKENS * 3 * 2
    assert image["payload_bytes"] == 5 * TOKENS * 3 * 2


def test_ls_shows_every_shard_with_its_state(store: Store) -> None:
    write(store, "video", 0, {2: "unreadable"})
    entries = {(entry["column"], entry["shard"]): entry for entry in ls(store)}
    assert len(entries) == 6
    assert {key for key, entry in entries.items() if entry["state"] == "committed"} == {("video", 0)}
    done = entries["video", 0]
    assert (done["first_view"], done["last_view"], done["rows"]) == (0, 3, {"ok": 3, "unreadable": 1})
    assert done["size"] == store.shard_path("video", 0).stat().st_size


def test_info_names_who_computed_the_targets(store: Store) -> None:
    other = {"torch": "2.12.0", "device": "cuda " + "H100 " * 2000}  # longer than what is read at once
    write(store, "video", 0)
    write(store, "video", 1)
    with store.write_shard("video", 2, producer=other) as writer:
        writer.fail(8, "timeout", 'a reason with ,"producer":{} in it')
    found = info(store)["columns"]
    assert found["video"]["producers"] == [{"producer": PRODUCER, "shards": 2}, {"producer": other, "shards": 1}]
    assert found["image"]["producers"] == []


def test_ls_shows_a_committed_shard_whose_file_is_gone(store: Store) -> None:
    fill(store)
    store.shard_path("video", 1).unlink()
    entry = next(entry for entry in ls(store) if (entry["column"], entry["shard"]) == ("video", 1))
    assert (entry["state"], entry["size"], entry["rows"]) == ("gone", None, {"ok": 1})


def test_ls_says_the_same_of_a_sealed_store_without_reading_its_records(store: Store) -> None:
    fill(store, {3: "timeout"})
    before = ls(store)
    store.seal()
    for path in (store.root / "commits").glob("*/*.json"):
        path.write_bytes(b"")
    assert ls(store) == before


def test_neighbouring_shards_in_the_same_state_are_joined(store: Store) -> None:
    fill(store, {3: "timeout"}, columns=["image"])
    write(store, "video", 1)
    joined = join_shards(ls(store))
    places = [(entry["column"], entry["shard"], entry["last_shard"], entry["state"]) for entry in joined]
    pending = [("video", 0, 0, "pending"), ("video", 2, 2, "pending")]
    assert places == [("image", 0, 2, "committed"), pending[0], ("video", 1, 1, "committed"), pending[1]]
    whole = joined[0]
    assert (whole["first_view"], whole["last_view"], whole["views"]) == (0, 8, 6)
    assert whole["rows"] == {"ok": 5, "timeout": 1}
    assert whole["size"] == sum(store.shard_path("image", shard).stat().st_size for shard in range(3))


def test_failures_are_listed_with_their_reasons(store: Store) -> None:
    fill(store, {3: "timeout"})
    expected = {"view_id": 3, "status": "timeout", "detail": "broken at frame 3"}
    assert failures(store) == [{"column": name, **expected} for name in ("image", "video")]


def test_stats_are_those_of_the_values(store: Store) -> None:
    fill(store, {3: "timeout"})
    values = np.stack([features_of(view, store.header.columns["video"]) for view in (0, 1, 2, 4, 8)])
    found = stats(store, "video")
    assert found["rows"] == 5
    assert found["mean"] == pytest.approx(values.mean(), rel=1e-5)
    assert found["std"] == pytest.approx(values.std(), rel=1e-5)
    assert (found["min"], found["max"]) == (values.min(), values.max())
    assert found["token_norm"]["max"] == pytest.approx(np.linalg.norm(values, axis=-1).max(), rel=1e-5)


def test_stats_say_what_coding_cost_and_which_row_most(store: Store) -> None:
    fill(store, {3: "timeout"}, columns=["image"])
    with store.write_shard("video", 2, producer=PRODUCER) as writer:
        writer.add(8, np.ones((TOKENS, WIDTH), np.float32), pixels=hash_of(8), decoder=DECODER)
    coding = stats(store, "image", rows=1)["coding"]
    rows = {view: store.status("image").row(view) for view in (0, 1, 2, 4, 8)}
    errors = {view: row.relative_error for view, row in rows.items()}
    assert coding["rows"] == 5
    assert coding["relative_error"]["mean"] == pytest.approx(np.mean(list(errors.values())))
    assert coding["relative_error"]["max"] == errors[coding["worst_view"]] == max(errors.values()) > 0
    assert coding["cosine"]["min"] == min(row.cosine_min for row in rows.values())
    assert coding["max_abs_error"] == max(row.max_abs_error for row in rows.values())
    exact = stats(store, "video")["coding"]
    assert (exact["relative_error"]["max"], exact["cosine"]["min"]) == (0, 1)


def test_an_outlier_channel_is_named_with_its_ratio_to_the_median(store: Store) -> None:
    with store.write_shard("video", 2, producer=PRODUCER) as writer:
        features = np.ones((TOKENS, WIDTH), np.float32)
        features[:, 3] = -100.0
        writer.add(8, features, pixels=hash_of(8), decoder=DECODER)
    first = stats(store, "video", outliers=1)["outlier_channels"]
    assert first == [{"channel": 3, "rms": 100.0, "mean": -100.0, "ratio_to_median": 100.0}]


def test_stats_of_a_column_without_targets_are_refused(store: Store) -> None:
    with pytest.raises(MissingRowError, match="mvd-offline extract"):
        stats(store, "video")
