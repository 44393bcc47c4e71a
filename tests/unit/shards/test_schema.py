"""Documents of a store: canonical, with a digest that any change breaks."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_stores import PRODUCER, column_of, header_of, plan_of

from mvd_offline.shards import ColumnSpec, CommitRecord, CorruptionError, IdentityError, RowRecord, StoreError
from mvd_offline.shards.schema import (
    SealRecord,
    StoreHeader,
    all_differences,
    canonical_json,
    list_differences,
    seal_document,
)

HEADER = header_of(plan_of([0, 1, 2], 2), [column_of("video"), column_of("image", width=3)], rows=3, rows_per_shard=2)
ROWS = (
    RowRecord(view_id=0, status="ok", offset=0, length=8, crc32c=7, pixels="0" * 16, decoder="decord 0.6.0"),
    RowRecord(view_id=1, status="timeout", detail="longer than 60 s"),
)
COMMIT = CommitRecord(
    HEADER.store_id, "video", HEADER.columns["video"].column_id, 0, "c.0.0.0", 44, "ab" * 32, PRODUCER, ROWS
)
SEAL = SealRecord(HEADER.store_id, {"video": HEADER.columns["video"].column_id}, 10, "cd" * 32)
DOCUMENTS = [HEADER, COMMIT, SEAL]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: type(d).__name__)
def test_a_document_reads_back_as_it_was(document: StoreHeader | CommitRecord | SealRecord) -> None:
    again = type(document).from_bytes(document.to_bytes())
    assert again == document
    assert again.to_bytes() == document.to_bytes()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: type(d).__name__)
def test_a_changed_bit_anywhere_is_found(document: StoreHeader | CommitRecord | SealRecord) -> None:
    content = document.to_bytes()
    for position in range(len(content)):
        for bit in range(8):
            changed = bytearray(content)
            changed[position] ^= 1 << bit
            with pytest.raises(StoreError):
                type(document).from_bytes(bytes(changed))


@pytest.mark.parametrize("data", [b"", b"[]", b"null\n", b"{}\n", b"{" * 10_000, b"\xff", COMMIT.to_bytes()[:-1]])
def test_what_is_no_document_is_corruption(data: bytes) -> None:
    with pytest.raises(CorruptionError, match="damaged or edited"):
        CommitRecord.from_bytes(data)


def test_a_document_of_another_version_is_refused_with_both_versions() -> None:
    data = seal_document({**json.loads(SEAL.to_bytes()), "schema_version": 1})
    data = seal_document({k: v for k, v in json.loads(data).items() if k != "digest"})
    with pytest.raises(StoreError, match="schema version 1; this release reads version 2"):
        SealRecord.from_bytes(data)


def test_fields_that_are_missing_or_unknown_are_refused() -> None:
    fields = {k: v for k, v in json.loads(SEAL.to_bytes()).items() if k != "digest"}
    for changed in ({**fields, "colour": 1}, {k: v for k, v in fields.items() if k != "size"}):
        with pytest.raises(CorruptionError, match="expected the fields"):
            SealRecord.from_bytes(seal_document(changed))


def test_columns_do_not_count_towards_the_identity_and_everything_else_does() -> None:
    assert dataclasses.replace(HEADER, columns={}).store_id == HEADER.store_id
    changes = {
        "plan_sha256": "0" * 64,
        "rows": 4,
        "rows_per_shard": 3,
        "batch_rows": 5,
        "grid": (1, 3, 2),
        "view": {"frames": 8},
    }
    identities = {dataclasses.replace(HEADER, **{name: value}).store_id for name, value in changes.items()}
    assert len(identities | {HEADER.store_id}) == len(changes) + 1


def test_a_columns_id_depends_on_everything_in_it() -> None:
    column = column_of()
    changes = {"name": "image", "tokens": 7, "width": 9, "codec": "float16", "container": "tar", "source": {}}
    identities = {dataclasses.replace(column, **{name: value}).column_id for name, value in changes.items()}
    assert len(identities | {column.column_id}) == len(changes) + 1


@pytest.mark.parametrize("name", ["", "Video", "a-b", "../up", "commits", "index", "9lives", "a" * 64])
def test_a_column_name_that_could_be_mistaken_is_refused(name: str) -> None:
    with pytest.raises(IdentityError, match="column name"):
        ColumnSpec(name=name, tokens=1, width=1, codec="float32", container="zarr", source={})


def test_a_source_compares_as_it_is_stored() -> None:
    column = dataclasses.replace(column_of(), source={"mean": (0.5, 0.25)})
    assert column.source == {"mean": [0.5, 0.25]}


def test_an_unknown_status_is_refused_with_the_known() -> None:
    with pytest.raises(IdentityError, match="'lost' is none of ok, unreadable, too_short, timeout, missing"):
        RowRecord(view_id=0, status="lost")


def test_every_difference_is_named_by_its_path() -> None:
    ours = {"a": 1, "b": {"c": [1, 2], "d": None}}
    assert all_differences(ours, {"a": 1, "b": {"c": [1, 2], "d": None}}) == []
    found = all_differences(ours, {"a": 2, "b": {"c": [1, 3]}, "e": "x"})
    assert list_differences(found, "recipe", "store").splitlines() == [
        "",
        "  a: recipe has 1, store has 2",
        "  b.c: recipe has [1, 2], store has [1, 3]",
        "  b.d: recipe has None, store has nothing",
        "  e: recipe has nothing, store has 'x'",
    ]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=100, derandomize=True)
@given(json_values)
def test_canonical_json_is_a_fixed_point(value: object) -> None:
    data = canonical_json(value)
    assert canonical_json(json.loads(data)) == data
    assert data.isascii()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_json_does_not_know_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"x": value})
