"""The numbers of a report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_stores import DECODER, PRODUCER, TOKENS, column_of, features_of, fill, hash_of, new_store, write

from mvd_offline.shards import CorruptionError, Store
from mvd_offline.shards.report import MOST_BINS, MOST_REASONS, coverage, failure_groups, report_numbers, sizes
from mvd_offline.shards.statistics import FeatureStatistics, drawn_rows


@pytest.fixture
def store(tmp_path: Path) -> Store:
    columns = [column_of("image", codec="float16", width=3), column_of("video")]
    return new_store(tmp_path / "store", columns, view_ids=[0, 1, 2, 3, 4, 8], rows_per_shard=4)


def test_coverage_counts_every_view_once_in_each_column(store: Store) -> None:
    fill(store, {3: "timeout"}, columns=["image"])
    write(store, "video", 1)
    found = coverage(store)
    assert (found["views"], found["complete"]) == (6, 1)
    image, video = found["columns"]["image"], found["columns"]["video"]
    assert {kind: n for kind, n in image["rows"].items() if n} == {"ok": 5, "timeout": 1}
    assert {kind: n for kind, n in video["rows"].items() if n} == {"ok": 1, "pending": 5}
    assert [piece["rows"]["ok"] for piece in image["strip"]] == [3, 1, 1]
    assert [piece["rows"]["pending"] for piece in video["strip"]] == [4, 0, 1]


def test_a_strip_of_many_shards_has_few_pieces_that_lose_nothing(tmp_path: Path) -> None:
    store = new_store(tmp_path / "store", [column_of()], view_ids=range(500), rows_per_shard=1)
    strip = coverage(store)["columns"]["video"]["strip"]
    assert len(strip) == MOST_BINS
    assert sum(piece["rows"]["pending"] for piece in strip) == 500
    assert [piece["first_shard"] for piece in strip[1:]] == [piece["last_shard"] + 1 for piece in strip[:-1]]
    assert strip[-1]["last_shard"] == 499


def test_failures_are_grouped_by_reason_whatever_their_numbers(store: Store) -> None:
    fill(store, {1: "timeout", 3: "timeout", 8: "unreadable"})
    found = failure_groups(store)
    assert (found["rows"], found["views"], found["reasons"], found["reasons_left_out"]) == (6, 3, 2, 0)
    first, second = found["groups"]
    assert (first["status"], first["reason"], first["other_texts"]) == ("timeout", "broken at frame 1", 1)
    assert (first["rows"], first["columns"], first["first_views"]) == (4, {"image": 2, "video": 2}, [1, 3])
    assert (second["status"], second["views"]) == ("unreadable", 1)


def test_the_rarest_of_very_many_reasons_are_left_out_and_counted(tmp_path: Path) -> None:
    count = MOST_REASONS + 3
    store = new_store(tmp_path / "store", [column_of()], view_ids=range(count + 1), rows_per_shard=64)
    with store.write_shard("video", 0, producer=PRODUCER) as writer:
        for view in range(count):
            writer.fail(view, "unreadable", "x" * (view + 1))
        writer.fail(count, "unreadable", "x" * count)
    found = failure_groups(store)
    assert (found["rows"], found["reasons"], found["reasons_left_out"]) == (count + 1, count, 3)
    assert (len(found["groups"]), found["groups"][0]["rows"]) == (MOST_REASONS, 2)


def test_sizes_are_those_of_the_files_and_of_the_uncoded_values(store: Store) -> None:
    fill(store, {3: "timeout"})
    found = sizes(store, "image")
    assert found["payload_bytes"] == found["float16_bytes"] == 5 * TOKENS * 3 * 2
    assert found["float32_bytes"] == 2 * found["float16_bytes"]
    assert found["file_bytes"] == sum(store.shard_path("image", shard).stat().st_size for shard in range(3))
    store.shard_path("image", 0).unlink()
    assert sizes(store, "image")["files_gone"] == 1


def test_features_are_those_of_the_rows_drawn(store: Store) -> None:
    fill(store, {3: "timeout"})
    found = report_numbers(store, rows=2, seed=5)["features"]["video"]
    chosen = drawn_rows(store.ok_rows(["video"]), 2, 5)
    values = np.stack([features_of(int(view), store.header.columns["video"]) for view in chosen]).astype(np.float64)
    assert found["rows"] == 2
    assert found["rms_by_channel"] == pytest.approx(np.sqrt((values**2).mean((0, 1))))
    counts, edges = found["norm_histogram"]["counts"], found["norm_histogram"]["edges"]
    assert sum(counts) == 2 * TOKENS
    assert (edges[0], edges[-1]) == pytest.approx((found["token_norm"]["min"], found["token_norm"]["max"]))


def test_the_seed_decides_which_rows_are_drawn_and_each_comes_once() -> None:
    ids = np.arange(10, 1000)
    drawn = [drawn_rows(ids, 50, seed) for seed in (0, 0, 1)]
    assert (drawn[0] == drawn[1]).all()
    assert set(drawn[0].tolist()) != set(drawn[2].tolist())
    assert (np.diff(drawn[0]) > 0).all()
    assert drawn_rows(ids, 5000, 0).tolist() == ids.tolist()


def test_cosines_of_slices_are_means_over_places_and_rows() -> None:
    statistics = FeatureStatistics(tokens=4, width=2, slices=2)
    # Two slices of two places: at the first the vectors are equal but for their length, at the second at right angles.
    statistics.add(np.array([[1, 0], [0, 2], [3, 0], [5, 0]], np.float32))
    assert statistics.slice_cosines() == pytest.approx(np.array([[1, 0.5], [0.5, 1]]))
    statistics.add(np.array([[1, 1], [1, 1], [-1, -1], [-2, -2]], np.float32))
    assert statistics.slice_cosines() == pytest.approx(np.array([[1, -0.25], [-0.25, 1]]))


def test_an_empty_column_has_no_statistics(store: Store) -> None:
    fill(store, columns=["image"])
    found = report_numbers(store)
    assert found["features"]["video"] is found["coding"]["video"] is None
    assert found["features"]["image"]["rows"] == 6


def test_numbers_of_a_damaged_row_are_refused(store: Store) -> None:
    fill(store)
    path = store.shard_path("video", 0)
    path.write_bytes(b"\xff" + path.read_bytes()[1:])
    with pytest.raises(CorruptionError, match=r"column video, shard 0, row 0"):
        report_numbers(store)


def test_channels_that_stand_out_are_counted(tmp_path: Path) -> None:
    column = replace(column_of(), width=16)
    store = new_store(tmp_path / "store", [column], view_ids=[0], rows_per_shard=1)
    features = np.ones((TOKENS, 16), np.float32)
    features[:, [3, 7]] = 60.0
    with store.write_shard("video", 0, producer=PRODUCER) as writer:
        writer.add(0, features, pixels=hash_of(0), decoder=DECODER)
    found = report_numbers(store)["features"]["video"]
    assert found["outliers"] == 2
    assert {channel["channel"] for channel in found["outlier_channels"][:2]} == {3, 7}
