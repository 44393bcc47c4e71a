"""Other people's software reads the shards: zarr-python, webdataset, GNU tar and Python's tarfile, as they are."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as wds
import zarr
from numpy.typing import NDArray
from small_stores import (
    DECODER,
    PRODUCER,
    TOKENS,
    WIDTH,
    column_of,
    features_of,
    fill,
    hash_of,
    new_store,
    write,
)

from mvd_offline.shards import ColumnSpec, Store, open_store
from mvd_offline.shards.codecs import CODECS, get_codec

# Shards of 4 rows; the first group ends at view 5 (6 and 7 are a gap), the last shard is short.
VIEWS = (0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13)
FAILED = {2: "unreadable", 9: "timeout", 12: "too_short", 13: "missing"}
OK = [view for view in VIEWS if view not in FAILED]


@pytest.fixture(params=CODECS)
def codec(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def filled(folder: Path, container: str, codec: str, *, names: tuple[str, ...] = ("video",)) -> Store:
    columns = [column_of(name, codec=codec, container=container) for name in names]
    store = new_store(folder, columns, view_ids=VIEWS, rows_per_shard=4)
    fill(store, FAILED)
    store.seal()
    return open_store(folder)


def coded(view_ids: list[int], column: ColumnSpec) -> NDArray[Any]:
    """What the codec stores for the targets of these views."""
    return np.stack([get_codec(column.codec).encode(features_of(view, column)) for view in view_ids])


# ---- both containers ---------------------------------------------------------------------------------------------


def test_a_rows_payload_has_the_same_bytes_in_both_containers(tmp_path: Path, codec: str) -> None:
    stores = [filled(tmp_path / container, container, codec) for container in ("zarr", "tar")]
    for view in OK:
        payloads = []
        for store in stores:
            row = store.status("video").row(view)
            content = store.shard_path("video", view // 4).read_bytes()
            payloads.append(content[row.offset : row.offset + row.length])
        assert payloads[0] == payloads[1] == coded([view], stores[0].header.columns["video"]).tobytes()


@pytest.mark.parametrize("container", ["zarr", "tar"])
def test_a_row_of_zeros_is_there_for_other_software_too(tmp_path: Path, container: str, codec: str) -> None:
    store = new_store(tmp_path, [column_of(codec=codec, container=container)], view_ids=range(4), rows_per_shard=4)
    with store.write_shard("video", 0, producer=PRODUCER) as writer:
        for view in range(3):
            writer.add(view, np.zeros((TOKENS, WIDTH), np.float32), pixels=hash_of(view), decoder=DECODER)
        writer.fail(3, "missing", "gone")
    if container == "zarr":
        array = zarr.open_array(store.root / "video", mode="r")
        assert not array[:3].any()
        assert absent(array[3:], codec)
    else:
        arrays = [sample.get("video.npy") for sample in samples(store.shard_path("video", 0))]
        assert not any(array.any() for array in arrays[:3])
        assert arrays[3] is None


# ---- zarr --------------------------------------------------------------------------------------------------------


def test_stock_zarr_reads_the_same_values(tmp_path: Path, codec: str) -> None:
    store = filled(tmp_path, "zarr", codec)
    column = store.header.columns["video"]
    array = zarr.open_array(store.root / "video", mode="r")
    assert array.shape == (14, *get_codec(codec).shape(TOKENS, WIDTH))
    np.testing.assert_array_equal(array[:][OK], coded(OK, column))
    np.testing.assert_array_equal(array[11], coded([11], column)[0])
    assert absent(array[:][[2, 6, 7, 9, 12, 13]], codec)


def test_stock_zarr_reads_what_is_committed_so_far(tmp_path: Path, codec: str) -> None:
    column = column_of(codec=codec)
    store = new_store(tmp_path, [column], view_ids=VIEWS, rows_per_shard=4)
    write(store, "video", 1)
    array = zarr.open_array(store.root / "video", mode="r")
    np.testing.assert_array_equal(array[4:6], coded([4, 5], column))
    assert absent(array[8:], codec)


def test_stock_zarr_finds_a_flipped_bit(tmp_path: Path, codec: str) -> None:
    store = filled(tmp_path, "zarr", codec)
    path = store.shard_path("video", 0)
    content = bytearray(path.read_bytes())
    content[store.status("video").row(1).offset] ^= 1
    path.write_bytes(content)
    with pytest.raises(Exception, match="checksum"):
        zarr.open_array(store.root / "video", mode="r")[1]


def absent(values: NDArray[Any], codec: str) -> bool:
    """Whether these are no values that a payload can hold."""
    if codec == "int8":
        return bool((values == -128).all())
    return bool(np.isnan(get_codec(codec).decode(values)).all())


# ---- webdataset --------------------------------------------------------------------------------------------------


def samples(*shards: Path) -> list[dict[str, Any]]:
    """What webdataset makes of tar files, decoded by its own defaults."""
    return list(wds.WebDataset([str(path) for path in shards], shardshuffle=False).decode())


def test_stock_webdataset_reads_the_same_values(tmp_path: Path, codec: str) -> None:
    store = filled(tmp_path, "tar", codec)
    column = store.header.columns["video"]
    found = samples(*(store.shard_path("video", shard) for shard in range(4)))
    assert [sample["__key__"] for sample in found] == [f"{view:09d}" for view in VIEWS]
    for view, sample in zip(VIEWS, found, strict=True):
        fields = {name for name in sample if not name.startswith("__")}
        assert fields == ({"json"} if view in FAILED else {"json", "video.npy"})
        if view not in FAILED:
            expected = coded([view], column)[0]
            assert sample["video.npy"].dtype == expected.dtype
            np.testing.assert_array_equal(sample["video.npy"], expected)


def test_the_json_of_a_sample_is_the_rows_record(tmp_path: Path, codec: str) -> None:
    store = filled(tmp_path, "tar", codec)
    for sample in samples(*(store.shard_path("video", shard) for shard in range(4))):
        record = store.status("video").row(int(sample["__key__"])).to_json()
        del record["offset"]
        assert sample["json"] == {**record, "column": "video", "codec": codec}


def test_each_column_is_a_dataset_of_its_own(tmp_path: Path) -> None:
    # `image` sorts before `json`, `video` after it.
    store = filled(tmp_path, "tar", "float16", names=("image", "video"))
    for name in ("image", "video"):
        (first, *_) = samples(store.shard_path(name, 0))
        np.testing.assert_array_equal(first[f"{name}.npy"], coded([0], store.header.columns[name])[0])


# ---- tar ---------------------------------------------------------------------------------------------------------


def test_pythons_tarfile_lists_plain_sorted_timeless_files(tmp_path: Path, codec: str) -> None:
    store = filled(tmp_path, "tar", codec, names=("image", "video"))
    for column in store.columns:
        for shard in range(4):
            with tarfile.open(store.shard_path(column, shard)) as tar:
                members = tar.getmembers()
            names = [member.name for member in members]
            assert names == sorted(names)
            assert {name.partition(".")[2] for name in names} <= {"json", f"{column}.npy"}
            assert all(name.partition(".")[0].isdigit() for name in names)
            assert all(member.isreg() for member in members)
            facts = {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode, len(m.pax_headers)) for m in members}
            assert facts == {(0, 0, 0, "", "", 0o644, 0)}


def test_gnu_tar_lists_and_unpacks_a_shard(tmp_path: Path, codec: str) -> None:
    if shutil.which("tar") is None:
        pytest.skip("needs the tar program, which is not on this machine")
    store = filled(tmp_path / "store", "tar", codec)
    shard = str(store.shard_path("video", 0))

    def tar(*options: str) -> str:
        done = subprocess.run(["tar", *options], capture_output=True, text=True, check=True)
        assert done.stderr == ""
        return done.stdout

    expected = [
        f"{view:09d}.{name}" for view in range(4) for name in ("json", "video.npy") if (view, name) != (2, "video.npy")
    ]
    assert tar("--list", "--file", shard).split() == expected
    lines = tar("--list", "--verbose", "--utc", "--full-time", "--numeric-owner", "--file", shard).splitlines()
    assert all(line.startswith("-rw-r--r-- 0/0 ") and " 1970-01-01 00:00:00 " in line for line in lines)
    (tmp_path / "out").mkdir()
    tar("--extract", "--directory", str(tmp_path / "out"), "--file", shard)
    array = np.load(tmp_path / "out" / "000000003.video.npy", allow_pickle=False)
    np.testing.assert_array_equal(array, coded([3], store.header.columns["video"])[0])


def test_a_shard_written_twice_has_the_same_bytes(tmp_path: Path, codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = filled(tmp_path / "first", "tar", codec)
    monkeypatch.setattr("time.time", lambda: 2_000_000_000.0)
    second = filled(tmp_path / "second", "tar", codec)
    for shard in range(4):
        assert first.shard_path("video", shard).read_bytes() == second.shard_path("video", shard).read_bytes()


def test_an_npy_member_is_what_numpy_itself_would_write(tmp_path: Path, codec: str) -> None:
    store = filled(tmp_path, "tar", codec)
    with tarfile.open(store.shard_path("video", 0)) as tar:
        member = tar.extractfile("000000001.video.npy")
        assert member is not None
        content = member.read()
    sink = io.BytesIO()
    np.save(sink, coded([1], store.header.columns["video"])[0], allow_pickle=False)
    assert content == sink.getvalue()
