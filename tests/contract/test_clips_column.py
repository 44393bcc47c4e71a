"""Baked clips, whose rows have lengths of their own, in both containers: written, read, verified, seen by others."""

from __future__ import annotations

import io
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
import zarr
from numpy.typing import NDArray
from small_stores import DECODER, column_of, features_of, hash_of, new_store

import mvd_offline.shards
from mvd_offline.shards import ColumnSpec, Store, open_store
from mvd_offline.shards.codecs import CodingError, get_codec
from mvd_offline.shards.errors import CodecError, CommitError, CorruptionError, MissingRowError
from mvd_offline.shards.export import export_npy, export_store
from mvd_offline.shards.inspect import info, stats
from mvd_offline.shards.report import report_numbers
from mvd_offline.shards.verify import verify

FRAMES, SIDE, ROWS = 2, 16, 6
FAILED = 4
OK = [0, 1, 2, 3, 5]
ERROR = CodingError(0.01, 0.99, 0.995, 7.0)


@pytest.fixture(params=["zarr", "tar"])
def container(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def clips_of(container: str) -> ColumnSpec:
    return ColumnSpec(
        "clips", tokens=FRAMES, width=SIDE, codec="jpeg-90-444", container=container, source={"kind": "clips"}
    )


def payload_of(view: int) -> bytes:
    """Its length differs from view to view."""
    pixels = np.random.default_rng(view).integers(0, 40 * view + 10, (FRAMES, SIDE, SIDE, 3)).astype(np.uint8)
    packing = get_codec("jpeg-90-444").packing
    assert packing is not None
    return packing.pack(pixels)


def pixels_of(view: int) -> NDArray[np.uint8]:
    out = np.empty((FRAMES, SIDE, SIDE, 3), np.uint8)
    packing = get_codec("jpeg-90-444").packing
    assert packing is not None
    packing.unpack(memoryview(payload_of(view)), out)
    return out


def baked(folder: Path, container: str) -> Store:
    """A sealed store with clips and a teacher."""
    video = column_of("video", container=container)
    store = new_store(folder, [clips_of(container), video], view_ids=range(ROWS), rows_per_shard=4)
    for shard in range(2):
        with store.write_shard("clips", shard, producer={"jpeg": "libjpeg"}) as writer:
            for view in store.shard_view_ids(shard).tolist():
                if view == FAILED:
                    writer.fail(view, "unreadable", "no frames")
                else:
                    writer.add_packed(view, payload_of(view), ERROR, pixels=hash_of(view), decoder=DECODER)
        with store.write_shard("video", shard, producer={"torch": "2.11.0"}) as writer:
            for view in store.shard_view_ids(shard).tolist():
                if view == FAILED:
                    writer.fail(view, "unreadable", "no frames")
                else:
                    writer.add(view, features_of(view, video), pixels=hash_of(view), decoder=DECODER)
    store.seal()
    return open_store(folder)


def test_clips_are_read_as_pixels_and_as_they_are_stored(tmp_path: Path, container: str) -> None:
    store = baked(tmp_path, container)

    found = store.read([5, 0, 3])
    assert (found["clips"].dtype, found["clips"].shape) == (np.uint8, (3, FRAMES, SIDE, SIDE, 3))
    for view, pixels in zip([5, 0, 3], found["clips"], strict=True):
        np.testing.assert_array_equal(pixels, pixels_of(view))
    assert [bytes(payload) for payload in store.read_payloads("clips", OK)] == [payload_of(view) for view in OK]
    assert len({len(payload_of(view)) for view in OK}) > 1
    with pytest.raises(MissingRowError):
        store.read([FAILED])
    assert store.target_columns == ("video",)


def test_the_record_has_length_and_checksum_of_the_payload_alone(tmp_path: Path, container: str) -> None:
    store = baked(tmp_path, container)
    for view in OK:
        row = store.status("clips").row(view)
        content = store.shard_path("clips", view // 4).read_bytes()
        assert content[row.offset : row.offset + row.length] == payload_of(view)
        assert (row.relative_error, row.max_abs_error) == (ERROR.relative_error, ERROR.max_abs_error)


def test_a_clip_has_no_tokens(tmp_path: Path, container: str) -> None:
    with pytest.raises(Exception, match="holds clips, which have no tokens"):
        baked(tmp_path, container).read_tokens("clips", [0], np.array([[0]]))


def test_what_is_no_payload_is_not_written(tmp_path: Path, container: str) -> None:
    store = new_store(tmp_path, [clips_of(container)], view_ids=range(4), rows_per_shard=4)
    with (
        pytest.raises(CodecError, match="does not hold 2 frames"),
        store.write_shard("clips", 0, producer={}) as writer,
    ):
        writer.add_packed(0, b"nonsense", ERROR, pixels=hash_of(0), decoder=DECODER)
    with (
        pytest.raises(CommitError, match="no 16-digit pixel hash"),
        store.write_shard("clips", 0, producer={}) as writer,
    ):
        writer.add_packed(0, payload_of(0), ERROR, pixels="", decoder=DECODER)
    assert store.pending("clips") == [0]


def test_features_are_not_packed(tmp_path: Path, container: str) -> None:
    store = new_store(tmp_path, [column_of(container=container)], view_ids=range(4), rows_per_shard=4)
    with pytest.raises(CodecError, match="does not pack"), store.write_shard("video", 0, producer={}) as writer:
        writer.add_packed(0, b"", ERROR, pixels=hash_of(0), decoder=DECODER)


# ---- damage ------------------------------------------------------------------------------------------------------


def test_every_changed_byte_of_a_shard_is_found(tmp_path: Path, container: str) -> None:
    store = baked(tmp_path, container)
    path = store.shard_path("clips", 1)
    content = path.read_bytes()
    assert verify(store.root, "full").ok
    step = max(1, len(content) // 60)
    for position in range(0, len(content), step):
        damaged = bytearray(content)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        report = verify(tmp_path, "full")
        assert not report.ok, f"byte {position}"
        assert {finding.column for finding in report.findings} == {"clips"}
    path.write_bytes(content)
    assert verify(tmp_path, "full").ok


def test_a_damaged_clip_is_not_read(tmp_path: Path, container: str) -> None:
    store = baked(tmp_path, container)
    path, row = store.shard_path("clips", 0), store.status("clips").row(1)
    content = bytearray(path.read_bytes())
    content[row.offset + row.length // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptionError, match="column clips, shard 0, row 1"):
        store.read([0, 1], ["clips"])


# ---- other software ----------------------------------------------------------------------------------------------


def test_stock_zarr_reads_the_payloads(tmp_path: Path) -> None:
    store = baked(tmp_path, "zarr")
    array: Any = zarr.open_array(store.root / "clips", mode="r")
    assert array.shape == (ROWS, 1, 1)
    values = array[:].reshape(-1)
    assert [bytes(values[view]) for view in OK] == [payload_of(view) for view in OK]
    assert values[FAILED] == b""


def test_stock_webdataset_reads_the_payloads(tmp_path: Path) -> None:
    store = baked(tmp_path, "tar")
    shards = [str(store.shard_path("clips", shard)) for shard in range(2)]
    samples = {int(sample["__key__"]): sample for sample in webdataset.WebDataset(shards, shardshuffle=False).decode()}
    assert [samples[view]["clips.npy"].tobytes() for view in OK] == [payload_of(view) for view in OK]
    assert "clips.npy" not in samples[FAILED]


def test_an_npy_member_is_what_numpy_itself_would_write(tmp_path: Path) -> None:
    store = baked(tmp_path, "tar")
    with tarfile.open(store.shard_path("clips", 0)) as tar:
        member = tar.extractfile("000000002.clips.npy")
        assert member is not None
        sink = io.BytesIO()
        np.lib.format.write_array(sink, np.frombuffer(payload_of(2), np.uint8), version=(1, 0))
        assert member.read() == sink.getvalue()


def test_the_reader_of_the_documentation_reads_the_pixels(tmp_path: Path, container: str) -> None:
    store = baked(tmp_path, container)
    text = (Path(mvd_offline.shards.__file__).parent / "FORMAT.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "FORMAT.md", "exec"), names)
    reader = names["Reader"](store.root)
    for view in OK:
        np.testing.assert_array_equal(reader.read("clips", view), pixels_of(view))


# ---- inspection, exports -----------------------------------------------------------------------------------------


def test_what_is_said_of_a_store_tells_clips_from_targets(tmp_path: Path, container: str) -> None:
    store = baked(tmp_path, container)
    mean = sum(len(payload_of(view)) for view in OK) / len(OK)

    facts = info(store)["columns"]["clips"]
    assert facts["row_bytes"] == round(mean)
    assert facts["payload_bytes"] == sum(len(payload_of(view)) for view in OK)
    assert facts["psnr"] == {"mean": pytest.approx(40.0), "worst": pytest.approx(40.0)}
    assert "psnr" not in info(store)["columns"]["video"]
    with pytest.raises(MissingRowError, match="holds frames, not features"):
        stats(store, "clips")
    numbers = report_numbers(store)
    assert set(numbers["features"]) == set(numbers["coding"]) == {"video"}
    assert numbers["sizes"]["clips"]["float16_bytes"] is None


@pytest.mark.parametrize("other", ["zarr", "tar"])
def test_an_exported_store_has_the_same_clips(tmp_path: Path, container: str, other: str) -> None:
    store = baked(tmp_path / "store", container)
    export_store(store, tmp_path / "out", other)
    copied = open_store(tmp_path / "out")
    assert verify(copied.root, "full").ok
    assert [bytes(payload) for payload in copied.read_payloads("clips", OK)] == [payload_of(view) for view in OK]


def test_numpy_files_have_the_pixels(tmp_path: Path, container: str) -> None:
    export_npy(baked(tmp_path / "store", container), tmp_path / "out")
    found = np.load(tmp_path / "out" / "clips" / "000000.npy", allow_pickle=False)
    np.testing.assert_array_equal(found, np.stack([pixels_of(view) for view in range(4)]))
