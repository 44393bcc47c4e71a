"""FORMAT.md's example is what the code writes and reads, and its reader reads what the code writes."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from small_stores import PRODUCER, column_of, fill, new_store, plan_of

import mvd_offline.shards
from mvd_offline.recipe import ViewSection
from mvd_offline.shards import CommitRecord, RowRecord, Store, StoreHeader, create_store, open_store
from mvd_offline.shards.codecs import CODECS, get_codec
from mvd_offline.shards.containers import CONTAINERS
from mvd_offline.shards.schema import RESERVED_NAMES, SCHEMA_VERSION, STATUSES, ColumnSpec, SealRecord
from mvd_offline.video.catalog import Catalog
from mvd_offline.video.views import Plan

FORMAT = (Path(mvd_offline.shards.__file__).parent / "FORMAT.md").read_text(encoding="utf-8")
STORE_JSON, COMMIT_JSON, SEAL_JSON, ROWS = (
    (text + "\n").encode() for text in re.findall(r"```json\n(.*?)\n```", FORMAT, re.DOTALL)
)
SHARD, INT8 = (
    bytes.fromhex("".join(re.findall(r"^((?:[0-9a-f]{2} )*[0-9a-f]{2})(?:   .*)?$", block, re.MULTILINE)))
    for block in re.findall(r"```hex\n(.*?)\n```", FORMAT, re.DOTALL)
)
FEATURES = np.array([[1, 2], [3, 4]], np.float32)
(READER,) = re.findall(r"```python\n(.*?)```", FORMAT, re.DOTALL)


# ---- the example -------------------------------------------------------------------------------------------------


def test_the_examples_documents_parse_and_their_digests_hold() -> None:
    header = StoreHeader.from_bytes(STORE_JSON)
    commit = CommitRecord.from_bytes(COMMIT_JSON)
    seal = SealRecord.from_bytes(SEAL_JSON)
    assert commit.store_id == seal.store_id == header.store_id
    assert commit.column_id == seal.columns["video"] == header.columns["video"].column_id
    assert (header.to_bytes(), commit.to_bytes(), seal.to_bytes()) == (STORE_JSON, COMMIT_JSON, SEAL_JSON)


@pytest.mark.parametrize("data", [STORE_JSON, COMMIT_JSON, SEAL_JSON], ids=["store", "commit", "seal"])
def test_the_digest_is_that_of_the_bytes_without_it(data: bytes) -> None:
    digest = json.loads(data)["digest"]
    assert hashlib.sha256(data.replace(f'"digest":"{digest}",'.encode(), b"")).hexdigest() == digest


def written(folder: Path, container: str) -> Store:
    """The example's first shard in a new store."""
    example, record = StoreHeader.from_bytes(STORE_JSON), CommitRecord.from_bytes(COMMIT_JSON)
    column = dataclasses.replace(example.columns["video"], container=container)
    plan = plan_of([0, 1, 2], example.rows_per_shard)
    # Another release of pyarrow may write other bytes for the same plan; the shard does not depend on it.
    sha256 = hashlib.sha256(plan).hexdigest()
    store = create_store(folder, dataclasses.replace(example, plan_sha256=sha256, columns={"video": column}), plan)
    row, failed = record.rows
    with store.write_shard("video", 0, producer=PRODUCER) as writer:
        writer.add(0, FEATURES, pixels=row.pixels, decoder=row.decoder)
        writer.fail(1, failed.status, failed.detail)
    return store


def test_the_code_writes_the_examples_zarr_shard_to_the_byte(tmp_path: Path) -> None:
    store = written(tmp_path, "zarr")
    assert store.shard_path("video", 0).read_bytes() == SHARD
    example = CommitRecord.from_bytes(COMMIT_JSON)
    assert dataclasses.replace(store.record("video", 0), store_id=example.store_id) == example


def test_the_code_writes_the_examples_tar_members(tmp_path: Path) -> None:
    with tarfile.open(written(tmp_path, "tar").shard_path("video", 0)) as tar:
        names = tar.getnames()
        contents = [tar.extractfile(name).read() for name in names]  # type: ignore[union-attr]
    assert names == ["000000000.json", "000000000.video.npy", "000000001.json"]
    assert contents[0] + contents[2] == ROWS
    assert contents[1].endswith(SHARD[:8])
    np.testing.assert_array_equal(np.load(io.BytesIO(contents[1]), allow_pickle=False), FEATURES)


def test_the_code_writes_the_examples_int8_payload() -> None:
    assert get_codec("int8").encode(FEATURES).tobytes() == INT8


# ---- what is documented ------------------------------------------------------------------------------------------


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
        sorted(RESERVED_NAMES),
    ],
    ids=["header", "column", "commit", "row", "seal", "statuses", "codecs", "containers", "reserved"],
)
def test_every_field_and_name_is_documented(names: Sequence[str]) -> None:
    missing = [name for name in names if f"`{name}`" not in FORMAT]
    assert missing == []


def test_every_column_of_a_plan_is_documented(known_videos: Any) -> None:
    catalog = Catalog((known_videos.disc, known_videos.ramp), known_videos.root, ())
    section = ViewSection(frames=4, stride=2, image_size=32)
    names = pq.read_schema(io.BytesIO(Plan.from_catalog(catalog, section, 2).to_bytes())).names
    assert [name for name in names if f"`{name}`" not in FORMAT] == []


def test_the_version_is_the_one_documented() -> None:
    assert f"\nVersion {SCHEMA_VERSION} (`schema_version`)" in FORMAT
    assert f"| `schema_version` | {SCHEMA_VERSION} |" in FORMAT


# ---- the reader --------------------------------------------------------------------------------------------------

# Shards of 4 rows; views 6 and 7 are a gap, the last shard is short, and four rows failed.
VIEWS = (0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13)
FAILED = {2: "unreadable", 9: "timeout", 12: "too_short", 13: "missing"}
KINDS = [f"{container}-{codec}" for container in CONTAINERS for codec in CODECS]
DAMAGED = ("store.json", "plan.parquet", "index.parquet", "commits/index.json", "video/000000.tar")

HARNESS = """
import sys
class Refusal:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "mvd_offline":
            raise ImportError(f"the reader imports {name}")
sys.meta_path.insert(0, Refusal())
exec(compile(sys.stdin.read(), "FORMAT.md", "exec"))
root, out = map(pathlib.Path, sys.argv[1:])
said = {}
for store in sorted(root.iterdir()):
    for view in range(14):
        try:
            np.save(out / f"{store.name}-{view}.npy", Reader(store).read("video", view))
        except (LookupError, ValueError) as error:
            said[f"{store.name}-{view}"] = f"{type(error).__name__}: {error}"
assert not any(name.startswith("mvd_offline") for name in sys.modules)
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of each container and codec, and copies of one with a bit flipped in one of its files."""
    folder = tmp_path_factory.mktemp("stores")
    for kind in KINDS:
        container, codec = kind.split("-")
        store = new_store(
            folder / kind, [column_of(codec=codec, container=container)], view_ids=VIEWS, rows_per_shard=4
        )
        fill(store, FAILED)
        store.seal()
    row = open_store(folder / "tar-int8").status("video").row(0)
    for name in DAMAGED:
        copy = shutil.copytree(folder / "tar-int8", folder / f"damaged-{name.replace('/', '-')}")
        content = bytearray((copy / name).read_bytes())
        content[row.offset if name.endswith(".tar") else len(content) // 2] ^= 1
        (copy / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def read(stores: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """What the document's reader, in a process without our package, saves as arrays, and the errors that it raises."""
    out = tmp_path_factory.mktemp("read")
    command = [sys.executable, "-I", "-c", HARNESS, str(stores), str(out)]
    done = subprocess.run(command, input=READER, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return out, json.loads(done.stdout)


def test_the_reader_has_at_most_fifty_lines() -> None:
    assert len(READER.splitlines()) <= 50


@pytest.mark.parametrize("kind", KINDS)
def test_the_documents_reader_reads_what_the_store_reads(
    stores: Path, read: tuple[Path, dict[str, str]], kind: str
) -> None:
    store, (out, said) = open_store(stores / kind), read
    ok = store.ok_rows().tolist()
    assert ok == [view for view in VIEWS if view not in FAILED]
    for view in ok:
        array = np.load(out / f"{kind}-{view}.npy", allow_pickle=False)
        expected = store.read([view])["video"][0]
        assert array.dtype == expected.dtype
        np.testing.assert_array_equal(array, expected)
    for view, status in FAILED.items():
        assert said[f"{kind}-{view}"] == f"LookupError: view {view} has no target: {status}, broken at frame {view}"
    assert {f"{kind}-6", f"{kind}-7"} <= said.keys()
    assert len(list(out.glob(f"{kind}-*.npy"))) == len(ok)


@pytest.mark.parametrize("name", DAMAGED)
def test_the_documents_reader_finds_a_flipped_bit(read: tuple[Path, dict[str, str]], name: str) -> None:
    out, said = read
    kind = f"damaged-{name.replace('/', '-')}"
    assert said[f"{kind}-0"].startswith(("ValueError", "JSONDecodeError", "UnicodeDecodeError"))
    assert not (out / f"{kind}-0.npy").exists()
