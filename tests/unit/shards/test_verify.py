"""`verify` finds what is wrong with a store, and says how to repair it; `repair` does so."""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import small_stores
from file_calls import Fault, FileCalls
from small_stores import PRODUCER, TOKENS, WIDTH, column_of, files_of, fill, hash_of, new_store

from mvd_offline.shards import CorruptionError, NotAStoreError, Store, StoreError, create_store, open_store
from mvd_offline.shards.claims import Claims
from mvd_offline.shards.codecs import CodingError
from mvd_offline.shards.errors import ClaimError
from mvd_offline.shards.repair import repair, set_aside
from mvd_offline.shards.verify import VerifyReport, verify

VIEWS = range(10)
FAILED = {6: "unreadable"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    columns = [column_of("image", codec="float16", width=3), column_of("video")]
    store = new_store(tmp_path / "store", columns, view_ids=VIEWS, rows_per_shard=4)
    fill(store, FAILED)
    store.seal()
    return store


def what(report: VerifyReport) -> str:
    return "; ".join(f"{f.column} {f.shard} {f.row} {f.what} -> {f.repair}" for f in report.findings)


def flip_bit(path: Path, position: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


@pytest.mark.parametrize("level", ["quick", "sample", "full"])
def test_a_sound_store_has_no_findings(store: Store, level: str) -> None:
    report = verify(store.root, level)
    assert report.ok, what(report)
    assert report.shards_checked == 6
    assert report.rows_checked == {"quick": 0, "sample": 18, "full": 18}[level]


def test_sample_reads_as_many_rows_of_each_column_as_asked(store: Store) -> None:
    assert verify(store.root, "sample", sample_rows=3).rows_checked in (4, 5, 6)  # a failed row may be drawn


def test_full_finds_a_flipped_bit_anywhere(store: Store) -> None:
    """A bit in every byte of the small files, in one of 149 bytes of the others: eight bits in turn."""
    missed = []
    for name, content in files_of(store.root).items():
        path = store.root / name
        step = 1 if len(content) < 100 else 149
        for position in range(0, len(content), step):
            flip_bit(path, position, position % 8)
            if verify(store.root, "full").ok:
                missed.append((name, position))
            path.write_bytes(content)
    assert missed == []
    assert verify(store.root, "full").ok


def test_a_flipped_bit_in_a_payload_is_traced_to_its_row(store: Store) -> None:
    flip_bit(store.shard_path("video", 1), store.status("video").row(5).offset + 7)
    report = verify(store.root, "full")
    assert "video 1 5 the payload does not match its crc32c" in what(report)
    assert "--repair" in report.findings[0].repair
    assert verify(store.root, "quick").ok


def test_a_value_that_is_not_finite_is_found_even_where_checksums_hold(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        # Another program's store: checksums of whatever it wrote.
        patch.setattr("mvd_offline.shards.codecs._ArrayCodec.encode", lambda self, array: array)
        patch.setattr("mvd_offline.shards.shardfile.measure_error", lambda *arguments: CodingError(0.0, 1.0, 1.0, 0.0))
        patch.setattr("mvd_offline.shards.store.check_file", lambda *arguments: [])
        with store.write_shard("video", 0, producer=PRODUCER, replace=True) as writer:
            for view in range(4):
                writer.add(view, np.full((TOKENS, WIDTH), np.inf, np.float32), pixels=hash_of(view), decoder="d")
    assert "video 0 3 the payload holds values that are not finite" in what(verify(store.root, "full"))


def damage(store: Store) -> dict[str, tuple[Callable[[], object], str]]:
    shard, other = store.shard_path("video", 1), store.shard_path("video", 0)
    record = store.record_path("video", 1)
    return {
        "truncated shard": (lambda: shard.write_bytes(shard.read_bytes()[:-1]), "video 1 None the file c.1.0.0 has"),
        "deleted shard": (shard.unlink, "video 1 None the file c.1.0.0 is gone"),
        "deleted record": (record.unlink, "1 of 3 shards are not committed, the first is shard 1"),
        "record of another shard": (
            lambda: shutil.copy(store.record_path("video", 0), record),
            "video 1 None the commit record cannot be used",
        ),
        "record of another column": (
            lambda: shutil.copy(store.record_path("image", 1), record),
            "video 1 None the commit record cannot be used",
        ),
        "edited zarr.json": (
            lambda: flip_bit(store.root / "video/zarr.json", 20),
            "video/zarr.json is gone or altered",
        ),
        "deleted index": (store.index_path.unlink, "the index cannot be used"),
        "deleted seal": (store.seal_path.unlink, "every shard is committed, but the store is not sealed"),
        "deleted plan": (store.plan_path.unlink, "plan.parquet is gone"),
        "deleted identity": ((store.root / "store.json").unlink, "store.json cannot be used"),
        "extra shard": (lambda: shutil.copy(other, other.with_name("c.9.0.0")), "video/c.9.0.0 is no part"),
        "record that looks alike": (
            lambda: shutil.copy(record, record.with_name("0000001.json")),
            "commits/video/0000001.json is no part",
        ),
        "half an exchange": (
            lambda: shutil.copy(record, record.with_suffix(".next")),
            "1 of 3 shards are not committed, the first is shard 1",
        ),
        "extra folder": ((store.root / "video/c").mkdir, "video/c is no part"),
        "extra file beside the identity": (
            lambda: shutil.copy(store.plan_path, store.root / "plan (1).parquet"),
            "plan (1).parquet is no part",
        ),
        "extra file beside the seal": (
            lambda: shutil.copy(store.seal_path, store.root / "commits/index.json.bak"),
            "commits/index.json.bak is no part",
        ),
        "unreadable shard": (lambda: (shard.unlink(), shard.mkdir()), "video 1 None the file c.1.0.0 has"),
        "unreadable record": (lambda: (record.unlink(), record.mkdir()), "cannot be read (Is a directory)"),
        "extra record": (lambda: shutil.copy(record, record.with_name("000009.json")), "000009.json is no part"),
        "abandoned file": (lambda: (store.root / "video/.tmp-c.1.0.0-00").touch(), "left behind by a killed writer"),
    }


CASES = [
    "truncated shard",
    "deleted shard",
    "unreadable shard",
    "deleted record",
    "unreadable record",
    "record of another shard",
    "record of another column",
    "record that looks alike",
    "half an exchange",
    "edited zarr.json",
    "deleted index",
    "deleted seal",
    "deleted plan",
    "deleted identity",
    "extra shard",
    "extra record",
    "extra folder",
    "extra file beside the identity",
    "extra file beside the seal",
    "abandoned file",
]


@pytest.mark.parametrize("case", CASES)
def test_quick_finds(store: Store, case: str) -> None:
    act, expected = damage(store)[case]
    act()
    assert expected in what(verify(store.root, "quick"))


def test_full_finds_shard_files_that_changed_places(store: Store) -> None:
    first, second = (store.shard_path("video", shard).read_bytes() for shard in (0, 2))
    assert len(first) != len(second) or first != second
    store.shard_path("image", 0).write_bytes(store.shard_path("image", 1).read_bytes())
    assert not verify(store.root, "full").ok


@pytest.mark.parametrize("stale", ["image", "video"])
def test_where_columns_saw_different_pixels_all_of_them_are_made_again(
    store: Store, stale: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = files_of(store.root)
    with monkeypatch.context() as patched:
        patched.setattr(small_stores, "hash_of", lambda view: f"{view + 77:016x}")
        small_stores.write(store, stale, 2, replace=True)
    store.seal()
    with pytest.raises(
        CorruptionError, match=f"view 8 come from different pixels.*{0x55:016x} with .* in {stale}.*--rep"
    ):
        store.pixels_of(8)
    assert store.pixel_hash(8, ["video"]) == (f"{0x55:016x}" if stale == "video" else hash_of(8))

    report, repaired = repair(store.root, "quick")

    assert {(f.column, f.shard, f.row) for f in report.findings} == {
        (c, 2, v) for c in ("image", "video") for v in (8, 9)
    }
    assert f"{hash_of(8)} in " in what(report)
    assert f"{0x55:016x} in {stale}" in what(report)
    assert repaired.remake == (("image", 2), ("video", 2))
    assert whole_again(store, whole)


def test_a_damaged_record_is_one_finding(store: Store) -> None:
    """The index says more than the other records, and is right."""
    flip_bit(store.record_path("video", 1), 50)
    (finding,) = verify(store.root, "full").findings
    assert (finding.column, finding.shard, finding.remedy) == ("video", 1, "remake")
    assert finding.what.endswith("does not match the digest it carries")
    assert str(store.root) in finding.repair


@pytest.mark.parametrize("name", ["index.parquet", "commits/index.json", "video/zarr.json"])
def test_sealing_repairs_what_is_derived(store: Store, name: str) -> None:
    whole = files_of(store.root)
    flip_bit(store.root / name, 11)
    assert "shards seal" in what(verify(store.root))
    open_store(store.root, sealed=False).seal()
    assert files_of(store.root) == whole


def test_planning_again_repairs_the_identity(store: Store) -> None:
    whole, plan = files_of(store.root), store.plan_path.read_bytes()
    (store.root / "store.json").unlink()
    store.plan_path.unlink()
    create_store(store.root, store.header, plan)
    assert files_of(store.root) == whole


def test_an_unfinished_store_says_what_is_missing(tmp_path: Path) -> None:
    store = new_store(tmp_path / "store", [column_of()], view_ids=VIEWS, rows_per_shard=4)
    report = verify(store.root)
    assert "3 of 3 shards are not committed" in what(report)
    assert "mvd-offline extract" in what(report)


def test_a_folder_without_store_cannot_be_checked(tmp_path: Path) -> None:
    with pytest.raises(NotAStoreError):
        verify(tmp_path)


def test_an_unknown_level_is_refused(store: Store) -> None:
    with pytest.raises(StoreError, match="known: quick, sample, full"):
        verify(store.root, "deep")  # type: ignore[arg-type]


# ---- repairing -------------------------------------------------------------------------------------------------------


def whole_again(store: Store, whole: dict[str, bytes]) -> bool:
    """Make what is missing, as extraction does; the store is what it was, but for what lies in quarantine."""
    again = open_store(store.root, sealed=False)
    fill(again, FAILED if len(again.view_ids) == len(VIEWS) else {})
    again.seal()
    return {name: data for name, data in files_of(store.root).items() if not name.startswith("quarantine/")} == whole


def test_damaged_shards_are_put_aside_and_only_they_are_made_again(store: Store) -> None:
    whole = files_of(store.root)
    flip_bit(store.shard_path("video", 1), 3)
    store.shard_path("image", 2).unlink()
    flip_bit(store.record_path("video", 0), 30)
    damaged = {store.root / name: data for name, data in files_of(store.root).items()}

    report, repaired = repair(store.root, "full")

    assert not report.ok
    assert repaired.remake == (("image", 2), ("video", 0), ("video", 1))
    assert repaired.next_step == f"mvd-offline extract {store.root}"
    again = open_store(store.root, sealed=False)
    assert (again.pending("image"), again.pending("video")) == ([2], [0, 1])
    aside = {name: data for name, data in files_of(store.root).items() if name.startswith("quarantine/")}
    assert sorted(name.rpartition(".")[0] for name in aside) == [
        "quarantine/commits/image/000002.json",
        "quarantine/commits/video/000000.json",
        "quarantine/commits/video/000001.json",
        "quarantine/video/c.0.0.0",
        "quarantine/video/c.1.0.0",
    ]
    for name, data in aside.items():
        assert data == damaged[store.root / name.removeprefix("quarantine/").rpartition(".")[0]]
        assert name.rpartition(".")[2] == hashlib.sha256(data).hexdigest()[:8]
    assert whole_again(store, whole)
    after = verify(store.root, "full")
    assert after.ok
    assert after.quarantine_files == 5
    assert after.quarantine_bytes == sum(map(len, aside.values()))


def test_strays_are_put_aside_and_nothing_else_is_touched(store: Store) -> None:
    whole = files_of(store.root)
    strays = ["notes.txt", "video/c.9.0.0", "video/more/deep", "commits/image/000009.json", "commits/index.json.bak"]
    for name in strays:
        (store.root / name).parent.mkdir(exist_ok=True)
        (store.root / name).write_text(name)
    (store.root / "video/.tmp-c.1.0.0-00").touch()

    report, repaired = repair(store.root)

    assert len(report.findings) == len(strays) + 1
    assert repaired.removed == ("video/.tmp-c.1.0.0-00",)
    assert repaired.next_step == f"mvd-offline shards verify {store.root} --level full"
    assert {name: data for name, data in files_of(store.root).items() if not name.startswith("quarantine/")} == whole
    assert {data.decode() for name, data in files_of(store.root).items() if name.startswith("quarantine/")} == {*strays}
    assert verify(store.root, "full").ok


@pytest.mark.parametrize("name", ["index.parquet", "commits/index.json", "video/zarr.json"])
@pytest.mark.parametrize("act", [lambda path: flip_bit(path, 11), Path.unlink], ids=["flipped", "deleted"])
def test_what_is_derived_is_written_anew(store: Store, name: str, act: Callable[[Path], object]) -> None:
    whole = files_of(store.root)
    act(store.root / name)
    repair(store.root)
    assert files_of(store.root) == whole


def test_a_lost_folder_comes_back(store: Store) -> None:
    whole = files_of(store.root)
    shutil.rmtree(store.root / "video")
    shutil.rmtree(store.root / "commits/image")
    repair(store.root)
    assert whole_again(store, whole)


@pytest.mark.parametrize("name", ["plan.parquet", "store.json"])
def test_what_nothing_can_replace_is_left_with_how_to_restore_it(store: Store, name: str) -> None:
    whole, plan = files_of(store.root), store.plan_path.read_bytes()
    flip_bit(store.root / name, 11)
    flip_bit(store.record_path("video", 1), 11)
    damaged = (store.root / name).read_bytes()

    for _ in range(2):
        _, repaired = repair(store.root, "full")
        assert repaired.next_step.startswith(name)
        assert "Restore the file from a copy, or remove it and run `mvd-offline plan" in repaired.next_step
        assert str(store.root) in repaired.next_step
        assert (store.root / name).read_bytes() == damaged

    (store.root / name).unlink()
    create_store(store.root, store.header, plan)
    repair(store.root, "full")
    assert whole_again(store, whole)


def test_a_sound_store_is_left_as_it_is(store: Store) -> None:
    before = {path: path.stat().st_mtime_ns for path in store.root.rglob("*")}
    report, repaired = repair(store.root, "full")
    assert (report.ok, repaired.set_aside, repaired.next_step) == (True, (), "")
    assert {path: path.stat().st_mtime_ns for path in store.root.rglob("*")} == before


def test_the_same_damage_twice_finds_room_for_both(store: Store) -> None:
    path = store.root / "notes.txt"
    places = []
    for _ in range(3):
        path.write_text("the same")
        places.append(set_aside(store.root, path))
    assert places == [f"quarantine/notes.txt.{digest}" for digest in ("fa0487f2", "fa0487f2-2", "fa0487f2-3")]
    assert set_aside(store.root, path) == ""


def test_a_store_that_a_run_works_on_is_not_repaired(store: Store) -> None:
    flip_bit(store.shard_path("video", 1), 3)
    before = files_of(store.root)
    with Claims(store.plan_path) as claims:
        claims.take(2)
        with pytest.raises(ClaimError, match="another run is at work"):
            repair(store.root, "full")
    assert files_of(store.root) == before


def test_a_repair_that_fails_at_any_step_can_be_repeated(tmp_path: Path) -> None:
    """An error of the system at the nth call that changes something, for every n: what a kill there leaves."""
    store = new_store(tmp_path / "store", [column_of(container="tar")], view_ids=range(3), rows_per_shard=1)
    fill(store)
    store.seal()
    whole = files_of(store.root)
    flip_bit(store.shard_path("video", 1), 3)
    flip_bit(store.record_path("video", 2), 30)
    (store.root / "video/000009.tar").touch()
    damaged = {*files_of(store.root)} - {"index.parquet", "commits/index.json"}
    with FileCalls(shutil.copytree(store.root, tmp_path / "free")) as calls:
        repair(tmp_path / "free", "full")
    assert len(calls.calls) > 20
    for step, call in enumerate(calls.texts):
        copy = shutil.copytree(store.root, tmp_path / f"{step}")
        with FileCalls(copy, Fault(step, error=errno.EIO)), pytest.raises(OSError, match="Input/output"):
            repair(copy, "full")
        found = {*files_of(copy)}
        assert damaged <= found | {name.removeprefix("quarantine/").rpartition(".")[0] for name in found}, call
        repair(copy, "full")
        assert whole_again(open_store(copy, sealed=False), whole), call
        shutil.rmtree(copy)
