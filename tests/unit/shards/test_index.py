"""The index of a store of any height: written and read by row groups, a column of it when it is asked for."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_stores import column_of, fill, new_store

from mvd_offline.bench import growth_data as data
from mvd_offline.shards import Store, open_store
from mvd_offline.shards.indexfile import CODING_MEASURES, GROUP_ROWS, IndexFile, build_table, index_bytes
from mvd_offline.shards.schema import STATUSES

ROWS = 600_000
"""Of two columns: the first row group has rows of both."""


@pytest.fixture(scope="module")
def tall(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return data.sealed_store(tmp_path_factory.mktemp("tall") / "store", ROWS)


def table_of(store: Store) -> pa.Table:
    assert store.seal_record is not None
    return IndexFile(store.index_path, store.header, store.seal_record, "").table()


def test_row_groups_are_those_of_the_whole_table(tall: Store) -> None:
    table, sink = table_of(tall), io.BytesIO()
    pq.write_table(table, sink, compression="zstd", compression_level=3, version="2.6", row_group_size=GROUP_ROWS)

    assert pq.read_metadata(tall.index_path).num_row_groups == 2
    assert tall.index_path.read_bytes() == sink.getvalue()
    for rows in (GROUP_ROWS + 1, 70_001):
        assert index_bytes(tall.header, tall.columns, table.to_batches(rows)) == sink.getvalue()


def test_an_index_of_several_row_groups_says_what_its_rows_say(tall: Store) -> None:
    table = table_of(tall)
    assert len(table) == 2 * ROWS
    for place, name in enumerate(tall.columns):
        index, rows = open_store(tall.root).status(name), table.slice(place * ROWS, ROWS)
        assert np.array_equal(index.view_ids, rows["view_id"])
        status = np.array([STATUSES.index(one) for one in rows["status"].unique().to_pylist()])
        assert np.array_equal(index.status[:ROWS], status[rows["status"].combine_chunks().dictionary_encode().indices])
        assert index.counts() == {"ok": ROWS - len(index.details), "unreadable": len(index.details)}
        for number in ("offset", "length", "crc32c"):
            assert np.array_equal(getattr(index, number)[:ROWS], rows[number])
        for measure in CODING_MEASURES:
            assert np.array_equal(index.coding[measure][:ROWS], rows[measure])
        for view, row in zip(range(0, ROWS, 59_999), rows.take(list(range(0, ROWS, 59_999))).to_pylist(), strict=True):
            assert index.row(view).to_json() == {key: row[key] for key in index.row(view).to_json()}
        broken = next(iter(index.details))
        assert index.row(broken).detail == rows["detail"][broken].as_py() != ""


def test_an_index_without_rows_is_written_as_an_empty_table(tmp_path: Path) -> None:
    store, sink = new_store(tmp_path / "store", [column_of()], view_ids=[5], rows_per_shard=2, rows=6), io.BytesIO()
    table = build_table(store.header, {"video": []})
    pq.write_table(table, sink, compression="zstd", compression_level=3, version="2.6", row_group_size=GROUP_ROWS)
    assert index_bytes(store.header, ["video"], []) == sink.getvalue()


def test_rows_with_gaps_and_failures_are_read_from_a_file_as_from_records(tmp_path: Path) -> None:
    views = [0, 1, 4, 5, 6, 9]
    store = new_store(tmp_path / "store", [column_of(), column_of("image")], view_ids=views, rows_per_shard=4)
    fill(store, {4: "timeout", 9: "missing"})
    from_records = {name: store.status(name) for name in store.columns}
    assert store.seal_record is None
    store.seal()

    for name, expected in from_records.items():
        index = open_store(store.root).status(name)
        assert index.view_ids.tolist() == expected.view_ids.tolist() == views
        assert [index.row(view) for view in views] == [expected.row(view) for view in views]
        assert index.details == expected.details
        assert index.pixels.tolist() == expected.pixels.tolist()
