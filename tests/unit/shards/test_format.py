"""FORMAT.md's example is what the code writes and reads."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from small_stores import PRODUCER, plan_of

import mvd_offline.shards
from mvd_offline.shards import CommitRecord, RowRecord, StoreHeader, create_store
from mvd_offline.shards.codecs import CODECS
from mvd_offline.shards.containers import CONTAINERS
from mvd_offline.shards.schema import STATUSES, ColumnSpec, SealRecord

FORMAT = (Path(mvd_offline.shards.__file__).parent / "FORMAT.md").read_text(encoding="utf-8")
STORE_JSON, COMMIT_JSON, SEAL_JSON = ((text + "\n").encode() for text in re.findall(r"```json\n(.*?)\n```", FORMAT))
SHARD = bytes.fromhex("".join(re.findall(r"^((?:[0-9a-f]{2} )*[0-9a-f]{2})(?:   .*)?$", FORMAT, re.MULTILINE)))


def test_the_examples_documents_parse_and_their_digests_hold() -> None:
    header = StoreHeader.from_bytes(STORE_JSON)
    commit = CommitRecord.from_bytes(COMMIT_JSON)
    seal = SealRecord.from_bytes(SEAL_JSON)
    assert commit.store_id == seal.store_id == header.store_id
    assert commit.column_id == seal.columns["video"] == header.columns["video"].column_id
    assert (header.to_bytes(), commit.to_bytes(), seal.to_bytes()) == (STORE_JSON, COMMIT_JSON, SEAL_JSON)


def test_the_code_writes_the_examples_shard_to_the_byte(tmp_path: Path) -> None:
    example = StoreHeader.from_bytes(STORE_JSON)
    record = CommitRecord.from_bytes(COMMIT_JSON)
    plan = plan_of([0, 1, 2], example.rows_per_shard)
    # Another release of pyarrow may write other bytes for the same plan; the shard does not depend on it.
    header = dataclasses.replace(example, plan_sha256=hashlib.sha256(plan).hexdigest())
    store = create_store(tmp_path / "store", header, plan)
    row, failed = record.rows
    with store.write_shard("video", 0, producer=PRODUCER) as writer:
        features = np.array([[1, 2], [3, 4]], np.float32)
        writer.add(0, features, pixels=row.pixels, decoder=row.decoder)
        writer.fail(1, failed.status, failed.detail)
    assert store.shard_path("video", 0).read_bytes() == SHARD
    written = store.record("video", 0)
    assert dataclasses.replace(written, store_id=record.store_id) == record


@pytest.mark.parametrize(
    "names",
    [
        [f.name for f in dataclasses.fields(StoreHeader)],
        [f.name for f in dataclasses.fields(ColumnSpec)],
        [f.name for f in dataclasses.fields(CommitRecord)],
        [f.name for f in dataclasses.fields(RowRecord)],
        [f.name for f in dataclasses.fields(SealRecord)],
        STATUSES,
        list(CODECS),
        list(CONTAINERS),
    ],
    ids=["header", "column", "commit", "row", "seal", "statuses", "codecs", "containers"],
)
def test_every_field_and_name_is_documented(names: Sequence[str]) -> None:
    missing = [name for name in names if f"`{name}`" not in FORMAT]
    assert missing == []
