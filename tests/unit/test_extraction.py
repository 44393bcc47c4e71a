"""The parts of an extraction: shares of the work, what coding may cost, which column is whose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import make_videos, once, plan_small, small_recipe
from small_stores import column_of, fill, write

from mvd_offline.errors import RecipeError
from mvd_offline.extraction.batches import Afterwards
from mvd_offline.extraction.coding import CodedBatch, CodingWatch, ColumnCoding
from mvd_offline.extraction.rates import Rates, available_cores, most_decode_workers
from mvd_offline.extraction.summary import ExtractSummary
from mvd_offline.extraction.work import Entry, ShardWork
from mvd_offline.recipe import teacher_kind
from mvd_offline.shards import CodecError, IdentityError, Store, open_store
from mvd_offline.shards.claims import Claims
from mvd_offline.shards.codecs import CODECS, get_codec, measure_error
from mvd_offline.shards.dropping import drop_column
from mvd_offline.shards.errors import ClaimError
from mvd_offline.shards.schema import RowRecord
from mvd_offline.video.views import Plan


def row(view_id: int, error: float) -> RowRecord:
    return RowRecord(view_id=view_id, status="ok", relative_error=error)


FEATURES = torch.from_numpy(np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32))


# ---- what coding may cost --------------------------------------------------------------------------------------------


def test_the_first_shard_above_the_bound_is_refused_with_the_codecs_that_keep_to_it() -> None:
    watch = CodingWatch(column_of(codec="int8"), ColumnCoding(1e-3))
    watch.see(row(3, 0.002), FEATURES)
    watch.see(row(4, 0.0001), FEATURES)
    with pytest.raises(CodecError, match=r"costs view 3 a relative error of 0\.002, .*float32 costs 0 .*float16 costs"):
        watch.close_shard(0)


def test_a_later_shard_above_the_bound_is_counted_and_stored() -> None:
    coding = ColumnCoding(1e-3)
    watch = CodingWatch(column_of(codec="int8"), coding)
    for shard, error in enumerate((0.0009, 0.002, 0.0002, 0.003)):
        watch.see(row(shard, error), FEATURES)
        watch.close_shard(shard)
    assert coding.shards_over == [1, 3]
    assert coding.to_json()["worst_relative_error"] == 0.003
    assert coding.to_json()["worst_view"] == 3
    assert coding.to_json()["mean_relative_error"] == pytest.approx(0.001525)


def test_a_shard_without_a_target_is_no_first_shard() -> None:
    watch = CodingWatch(column_of(), ColumnCoding(1e-3))
    watch.close_shard(0)
    watch.see(row(1, 0.5), FEATURES)
    with pytest.raises(CodecError, match="shard 1"):
        watch.close_shard(1)


def test_the_summaries_of_all_processes_are_joined() -> None:
    parts = [ExtractSummary(shards=2, coding={"video": ColumnCoding(None)}) for _ in range(2)]
    CodingWatch(column_of(), parts[0].coding["video"]).see(row(0, 0.1), FEATURES)
    CodingWatch(column_of(), parts[1].coding["video"]).see(row(9, 0.3), FEATURES)
    parts[0].take_in(parts[1:])
    assert parts[0].shards == 4
    found = parts[0].to_json()["coding"]["video"]
    assert (found["rows"], found["worst_view"], found["mean_relative_error"]) == (2, 9, pytest.approx(0.2))


# ---- shares of the work ----------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Planned and empty: 24 views in 6 shards of two columns."""
    catalog = once(tmp_path_factory, "videos", make_videos) / "catalog.parquet"
    return open_store(plan_small(catalog, tmp_path / "store"), sealed=False)


def work_of(store: Store, retry: tuple[str, ...] = ()) -> ShardWork:
    return ShardWork(store, Plan.read(store.plan_path), retry)


def test_each_process_begins_with_its_share_and_goes_on_with_the_others_from_the_end(store: Store) -> None:
    work = work_of(store)
    listed = work.list_all()
    assert listed == [(shard, ["image", "video"]) for shard in range(6)]
    orders = [[entry.shard for entry in work.entries(listed, rank, 2)] for rank in (0, 1)]
    assert orders == [[0, 2, 4, 5, 3, 1], [1, 3, 5, 4, 2, 0]]


def test_a_shard_is_claimed_when_it_is_reached_and_what_others_did_or_do_is_left_out(store: Store) -> None:
    work, busy, done = work_of(store), list[Entry](), list[int]()
    entries = [Entry(shard, may_retry=True) for shard in range(4)]
    with Claims(store.plan_path) as ours, Claims(store.plan_path) as theirs:
        assert theirs.try_take(1) is not None
        tasks = work.tasks(entries, ours, busy=busy, on_done=lambda entry: done.append(entry.shard))
        first = next(tasks)
        assert (first.shard, sorted(first.wanted)) == (0, ["image", "video"])
        assert theirs.try_take(0) is None
        assert theirs.try_take(2) is not None, "not reached yet"
        for column in store.columns:
            write(store, column, 3)

        assert list(tasks) == []
        assert [entry.shard for entry in busy] == [1, 2]
        assert done == [3]
        assert theirs.try_take(3) is not None, "nothing to do there, so the claim is released"


def test_failed_rows_are_tried_again_once_and_by_one_process(store: Store) -> None:
    fill(store, {5: "timeout", 6: "missing"}, columns=["video"])
    fill(store, {9: "timeout"}, columns=["image"])
    work, done = work_of(store, ("timeout",)), list[int]()
    assert work.list_all() == [(1, ["video"]), (2, ["image"])]
    with Claims(store.plan_path) as claims:
        entries = work.entries(work.list_all(), 0, 2)
        (task,) = work.tasks(entries, claims, busy=[], on_done=lambda entry: done.append(entry.shard))
    assert (task.shard, task.wanted) == (1, {"video": {5}})
    assert task.kept["video"] == store.record("video", 1)
    assert done == [2], "the other process's share"


def test_a_run_whose_column_is_dropped_ends_with_an_error(store: Store) -> None:
    work = work_of(store)
    with Claims(store.plan_path) as claims:
        tasks = work.tasks(work.entries(work.list_all(), 0, 1), claims, busy=[], on_done=lambda entry: None)
        assert next(tasks).shard == 0
        with pytest.raises(ClaimError, match="another run is at work"):
            drop_column(store.root, "image")
    drop_column(store.root, "image")
    with Claims(store.plan_path) as claims, pytest.raises(IdentityError, match="column image was dropped while this"):
        next(work.tasks([Entry(0, may_retry=True)], claims, busy=[], on_done=lambda entry: None))


# ---- which column is whose -------------------------------------------------------------------------------------------


def test_a_columns_name_begins_with_the_kind_of_its_teacher() -> None:
    kinds = [teacher_kind(name) for name in ("image", "video", "image_b14", "video_h", "videos", "sound", "")]
    assert kinds == ["image", "video", "image", "video", None, None, None]


def test_a_recipe_may_name_another_column_of_the_same_kind() -> None:
    assert small_recipe().active_columns == {"image": "image", "video": "video"}
    assert small_recipe({"teachers.video.column": "video_h"}).active_columns["video"] == "video_h"
    with pytest.raises(RecipeError, match=r"teachers\.video\.column is 'image_b'; allowed: video, or video_ and more"):
        small_recipe({"teachers.video.column": "image_b"})


def test_a_store_can_be_planned_with_a_column_of_another_name(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    catalog = once(tmp_path_factory, "videos", make_videos) / "catalog.parquet"
    changes = {"teachers.video.column": "video_h", "store.max_relative_error": 0.01}
    store = open_store(plan_small(catalog, tmp_path / "store", changes), sealed=False)
    assert store.columns == ("image", "video_h")
    assert store.header.columns["video_h"].source["kind"] == "video"
    assert store.header.columns["video_h"].max_relative_error == 0.01


@pytest.mark.parametrize("codec", CODECS)
def test_a_batch_is_coded_as_the_store_codes_its_rows(codec: str) -> None:
    features = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(0)) * 10
    batch = CodedBatch.of(features, codec)
    for slot, row in enumerate(features.numpy()):
        coded, error = batch.row(slot)
        expected = get_codec(codec).encode(row)
        assert coded.dtype == expected.dtype
        np.testing.assert_array_equal(coded, expected)
        assert error.relative_error == pytest.approx(
            measure_error(row, get_codec(codec).decode(expected)).relative_error, rel=2e-3
        )


def test_a_row_that_the_codec_cannot_hold_is_refused_when_it_is_wanted() -> None:
    features = torch.zeros(2, 7, 5)
    features[1, 6, 0] = 1e6
    batch = CodedBatch.of(features, "float16")
    batch.row(0)
    with pytest.raises(CodecError, match=r"not finite, the first at token 6, channel 0.*bfloat16"):
        batch.row(1)


# ---- how many processes decode ---------------------------------------------------------------------------------------


def rates_of(*, decode: float, teachers: dict[str, float], workers: int = 1) -> Rates:
    rates = Rates(decode_workers=workers)
    for _ in range(3):
        rates.decoded(decode)
        for column, seconds in teachers.items():
            rates.ran(column, seconds)
    return rates


@pytest.mark.parametrize(
    ("decode", "teachers", "wanted"),
    [
        (0.05, {"image": 1.0, "video": 1.0}, 1),
        (0.1, {"image": 0.06, "video": 0.06}, 2),
        (0.1, {"image": 0.03}, 5),
        (0.1, {"video": 0.001}, 8),
        (0.1, {}, 8),
    ],
)
def test_the_fewest_processes_that_keep_up_with_the_teachers_decode(
    decode: float, teachers: dict[str, float], wanted: int
) -> None:
    rates = rates_of(decode=decode, teachers=teachers)
    assert rates.workers_wanted(most=8) == wanted


def test_processes_that_are_there_stay_and_nothing_measured_asks_for_none() -> None:
    assert rates_of(decode=0.1, teachers={"video": 9.0}, workers=4).workers_wanted(most=8) == 4
    assert Rates(decode_workers=3).workers_wanted(most=8) == 3


def test_a_disk_that_holds_the_teachers_up_needs_fewer_processes() -> None:
    rates = rates_of(decode=0.1, teachers={"video": 0.01})
    rates.waited(0.115)
    assert rates.workers_wanted(most=8) == 1


def test_the_first_batch_of_a_teacher_does_not_count() -> None:
    rates = Rates()
    rates.ran("video", 9.0)
    assert rates.teacher_seconds == {"video": 9.0}, "better than nothing"
    for seconds in (0.1, 0.3, 0.2):
        rates.ran("video", seconds)
    assert rates.teacher_seconds == {"video": 0.2}


def test_a_control_group_limits_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quota = tmp_path / "cpu.max"
    quota.write_text("max 100000\n")
    everything = available_cores(quota)
    assert available_cores(tmp_path / "none") == everything >= 1
    quota.write_text("50000 100000\n")
    assert available_cores(quota) == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    assert most_decode_workers() == max(1, available_cores() // 64)


def test_results_are_handed_over_in_order_while_the_next_batch_may_be_computed() -> None:
    done, ready = list[str](), set[str]()
    after = Afterwards()

    def put(name: str, *, result: bool) -> None:
        after.put(lambda: done.append(name), ready=(lambda: name in ready) if result else None)

    put("open", result=False)
    assert done == ["open"]
    put("one", result=True)
    put("commit", result=False)
    assert done == ["open"], "the device is not done"
    put("two", result=True)
    assert done == ["open", "one", "commit"], "one batch may be under way, not two"
    ready.add("two")
    put("end", result=False)
    assert done[3:] == ["two", "end"]
    put("three", result=True)
    after.finish()
    assert done[-1] == "three"
