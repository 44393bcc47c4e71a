"""A store in another container or as numpy files: nothing is lost, nothing is harmed, and a kill costs little."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_stores import DECODER, PRODUCER, column_of, files_of, fill, hash_of, new_store, write

from mvd_offline.cli.main import main
from mvd_offline.shards import CorruptionError, IdentityError, MissingRowError, NotSealedError, Store, open_store
from mvd_offline.shards.claims import Claims
from mvd_offline.shards.codecs import CODECS
from mvd_offline.shards.errors import ClaimError
from mvd_offline.shards.export import export_npy, export_store
from mvd_offline.shards.schema import open_document
from mvd_offline.shards.verify import verify

# Shards of 4 rows; views 6 and 7 are a gap, the last shard is short, and four rows failed.
VIEWS = (0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13)
FAILED = {2: "unreadable", 9: "timeout", 12: "too_short", 13: "missing"}


def filled(folder: Path, container: str = "zarr", codec: str = "int8") -> Store:
    """Two columns; view 5 failed in the second only."""
    columns = [column_of(name, codec=codec, container=container) for name in ("image", "video")]
    store = new_store(folder, columns, view_ids=VIEWS, rows_per_shard=4)
    fill(store, FAILED, columns=["image"])
    fill(store, {**FAILED, 5: "timeout"}, columns=["video"])
    store.seal()
    return open_store(folder)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return filled(tmp_path / "store")


# ---- another container -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("one", "other"), [("zarr", "tar"), ("tar", "zarr")])
def test_there_and_back_gives_the_same_store_to_the_byte(tmp_path: Path, one: str, other: str, codec: str) -> None:
    source = filled(tmp_path / "source", one, codec)
    export_store(source, tmp_path / "there", other)
    export_store(open_store(tmp_path / "there"), tmp_path / "back", one)
    assert files_of(tmp_path / "back") == files_of(source.root)
    assert files_of(tmp_path / "there") == files_of(filled(tmp_path / "straight", other, codec).root)


def test_the_new_store_is_whole_and_says_the_same(store: Store, tmp_path: Path) -> None:
    summary = export_store(store, tmp_path / "tar", "tar")
    made = open_store(tmp_path / "tar")
    assert made.store_id == store.store_id
    assert {spec.container for spec in made.header.columns.values()} == {"tar"}
    assert verify(made.root, "full").ok
    for column in store.columns:
        np.testing.assert_array_equal(
            made.read_coded(column, made.ok_rows([column])), store.read_coded(column, store.ok_rows([column]))
        )
        for shard in range(4):
            assert made.record(column, shard).producer == PRODUCER
    assert (summary.shards, summary.shards_kept, summary.rows, summary.rows_without_target) == (8, 0, 15, 9)
    assert summary.bytes_written == sum(path.stat().st_size for path in made.root.glob("*/*.tar"))


def test_some_columns_may_be_exported_and_others_later(store: Store, tmp_path: Path) -> None:
    export_store(store, tmp_path / "tar", "tar", columns=["video"])
    assert open_store(tmp_path / "tar").columns == ("video",)
    summary = export_store(store, tmp_path / "tar", "tar", columns=["image"])
    assert (summary.shards, summary.shards_kept) == (4, 4)
    assert files_of(tmp_path / "tar") == files_of(filled(tmp_path / "straight", "tar").root)


def test_notes_about_this_machine_go_along(store: Store, tmp_path: Path) -> None:
    (store.root / "local.json").write_bytes(b"notes")
    export_store(store, tmp_path / "tar", "tar")
    assert (tmp_path / "tar" / "local.json").read_bytes() == b"notes"


def made_again(store: Store) -> Store:
    """The same store after row 9 of its last written column was tried again."""
    write(store, "video", 2, {12: "too_short"}, replace=True)
    store.seal()
    return open_store(store.root)


def killed_export(store: Store, out: Path, form: str, renames: int) -> None:
    """An export that dies before this rename."""
    code = CHILD.format(renames=renames, form=form, store=str(store.root), out=str(out))
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL


def unfinished_export(store: Store, out: Path) -> Store:
    """All shards but the last: the folder takes some renames, then each shard two."""
    killed_export(store, out, "tar", 17)
    assert len(list((out / "commits").glob("*/0*.json"))) == 7
    return open_store(out, sealed=False)


def test_rows_that_were_made_again_before_an_export_is_finished_are_exported_again(
    store: Store, tmp_path: Path
) -> None:
    unfinished_export(store, tmp_path / "tar")
    assert [f.what for f in verify(tmp_path / "tar", "quick").findings if "no part" in f.what] == []
    summary = export_store(made_again(store), tmp_path / "tar", "tar")
    assert (summary.shards, summary.shards_kept) == (2, 6)
    export_store(store, tmp_path / "straight", "tar")
    assert files_of(tmp_path / "tar") == files_of(tmp_path / "straight")


@pytest.mark.parametrize("step", range(4))
def test_an_export_that_was_killed_while_it_exchanged_a_shard_goes_on(store: Store, tmp_path: Path, step: int) -> None:
    unfinished_export(store, tmp_path / "tar")
    source = made_again(store)
    export_store(source, tmp_path / "straight", "tar")
    # An exchange is three renames: the next record, the file, the record.
    killed_export(source, tmp_path / "tar", "tar", step)
    exchanging = list((tmp_path / "tar").rglob("*.next"))
    assert len(exchanging) == (step in (1, 2))
    export_store(source, tmp_path / "tar", "tar")
    assert files_of(tmp_path / "tar") == files_of(tmp_path / "straight")


@pytest.mark.parametrize("complete", [True, False])
def test_a_store_of_its_own_with_other_rows_is_refused_and_left_alone(
    store: Store, tmp_path: Path, complete: bool
) -> None:
    own = filled(tmp_path / "own", "tar")
    made_again(own)
    if not complete:
        own.withdraw("image", 1)
    before = files_of(own.root)
    with pytest.raises(IdentityError, match=r"column video, shard 2 differs.*no unfinished export.*another folder"):
        export_store(store, own.root, "tar", columns=["video"])
    with pytest.raises(IdentityError, match="holds a store with other rows"):
        export_store(store, own.root, "tar")
    assert files_of(own.root) == before


def test_a_finished_export_is_kept_and_never_exchanged(store: Store, tmp_path: Path) -> None:
    export_store(store, tmp_path / "tar", "tar")
    before = files_of(tmp_path / "tar")
    assert "export.json" not in before
    assert export_store(store, tmp_path / "tar", "tar").shards == 0
    with pytest.raises(IdentityError, match="remove this one if it is an older export"):
        export_store(made_again(store), tmp_path / "tar", "tar")
    assert files_of(tmp_path / "tar") == before


CHILD = """
    import os, signal, sys
    from pathlib import Path
    from mvd_offline.shards import open_store
    from mvd_offline.shards.export import export_npy, export_store
    rename, left = os.rename, {renames}
    def rename_or_die(source, target):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)
    os.rename = rename_or_die
    if {form!r} == "npy":
        export_npy(open_store({store!r}), Path({out!r}))
    else:
        export_store(open_store({store!r}), Path({out!r}), {form!r})
"""


@pytest.mark.parametrize("renames", [1, 7, 14])
@pytest.mark.parametrize("form", ["tar", "npy"])
def test_an_export_that_was_killed_goes_on(store: Store, tmp_path: Path, form: str, renames: int) -> None:
    def run(folder: Path) -> Any:
        return export_npy(store, folder) if form == "npy" else export_store(store, folder, form)

    killed_export(store, tmp_path / "out", form, renames)
    before = {path: path.stat().st_ino for path in (tmp_path / "out").glob("*/*.[nt][pa][yr]")}
    summary = run(tmp_path / "out")
    run(tmp_path / "straight")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "straight")
    # Two renames a shard, after a few for the folder: what was finished is still the same file.
    kept = [path for path, inode in before.items() if path.stat().st_ino == inode]
    assert summary.shards_kept == len(kept)
    assert len(kept) >= (renames - 4) // 2 - 1


# ---- numpy files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", CODECS)
def test_numpy_files_hold_what_the_store_reads_and_no_row_for_what_is_missing(tmp_path: Path, codec: str) -> None:
    store = filled(tmp_path / "store", codec=codec)
    export_npy(store, tmp_path / "npy")
    for column in store.columns:
        seen = []
        for shard in range(4):
            array = np.load(tmp_path / "npy" / column / f"{shard:06d}.npy", allow_pickle=False)
            ledger = document(tmp_path / "npy" / column / f"{shard:06d}.json")
            expected = store.read(ledger["view_ids"], [column])[column]
            assert array.dtype == expected.dtype == ledger["dtype"]
            np.testing.assert_array_equal(array, expected)
            statuses = {row["view_id"]: row["status"] for row in ledger["rows"]}
            assert list(statuses) == store.shard_view_ids(shard).tolist()
            assert [view for view, status in statuses.items() if status == "ok"] == ledger["view_ids"]
            seen += ledger["view_ids"]
        assert seen == store.ok_rows([column]).tolist()
    assert (tmp_path / "npy" / "plan.parquet").read_bytes() == store.plan_path.read_bytes()
    assert document(tmp_path / "npy" / "export.json")["store_id"] == store.store_id


def test_the_numpy_ledger_says_what_the_array_is(store: Store, tmp_path: Path) -> None:
    export_npy(store, tmp_path / "npy", columns=["video"])
    assert sorted(path.name for path in (tmp_path / "npy").iterdir()) == ["export.json", "plan.parquet", "video"]
    content, ledger = (tmp_path / "npy/video/000002.npy").read_bytes(), document(tmp_path / "npy/video/000002.json")
    assert (ledger["file"], ledger["size"]) == ("000002.npy", len(content))
    assert ledger["sha256"] == hashlib.sha256(content).hexdigest()
    assert ledger["producer"] == PRODUCER
    first = ledger["rows"][0]
    assert (first["pixels"], first["decoder"]) == (hash_of(8), DECODER)
    assert ledger["rows"][1]["detail"] == "broken at frame 9"


def test_a_shard_without_any_target_is_an_array_without_rows(tmp_path: Path) -> None:
    store = new_store(tmp_path / "store", [column_of()], view_ids=range(4), rows_per_shard=2)
    fill(store, {0: "timeout", 1: "timeout"})
    store.seal()
    export_npy(store, tmp_path / "npy")
    assert np.load(tmp_path / "npy/video/000000.npy", allow_pickle=False).shape == (0, 6, 5)


@pytest.mark.parametrize("harm", ["array", "record", "source"])
def test_a_numpy_file_that_is_not_as_it_should_be_is_made_again(store: Store, tmp_path: Path, harm: str) -> None:
    export_npy(store, tmp_path / "npy")
    if harm == "array":
        (tmp_path / "npy/video/000001.npy").write_bytes(b"short")
    elif harm == "record":
        (tmp_path / "npy/video/000001.json").write_bytes(b"{}")
    else:
        write(store, "video", 1, {4: "missing"}, replace=True)
        store.seal()
    summary = export_npy(open_store(store.root), tmp_path / "npy")
    assert (summary.shards, summary.shards_kept) == (1, 7)
    export_npy(open_store(store.root), tmp_path / "straight")
    assert files_of(tmp_path / "npy") == files_of(tmp_path / "straight")


def document(path: Path) -> dict[str, Any]:
    return open_document(path.read_bytes(), path.name)


# ---- what is refused ---------------------------------------------------------------------------------------------


@pytest.fixture(params=["tar", "zarr", "npy"])
def export(request: pytest.FixtureRequest) -> Any:
    def run(store: Store, out: Path, **options: Any) -> Any:
        if request.param == "npy":
            return export_npy(store, out, **options)
        return export_store(store, out, request.param, **options)

    return run


def test_a_folder_with_something_else_is_refused_and_left_alone(export: Any, store: Store, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("...")
    with pytest.raises(IdentityError, match=r"not empty.*thesis\.tex.*Choose another folder"):
        export(store, out)
    assert files_of(out) == {"thesis.tex": b"..."}


def test_the_folder_of_another_store_is_refused_and_left_alone(export: Any, store: Store, tmp_path: Path) -> None:
    other = new_store(tmp_path / "other", [column_of("image")], view_ids=range(4), rows_per_shard=4)
    fill(other)
    other.seal()
    export(open_store(other.root), tmp_path / "out")
    before = files_of(tmp_path / "out")
    with pytest.raises(IdentityError, match=r"holds another (store|export)"):
        export(store, tmp_path / "out")
    assert files_of(tmp_path / "out") == before


@pytest.mark.parametrize("place", [".", "video", "new", "new/deep"])
def test_nothing_is_exported_into_the_store_itself(export: Any, store: Store, place: str) -> None:
    before = files_of(store.root)
    with pytest.raises(IdentityError, match="lies inside the store"):
        export(store, store.root / place)
    assert files_of(store.root) == before


def test_two_exports_into_one_store_do_not_meet(store: Store, tmp_path: Path) -> None:
    export_store(store, tmp_path / "out", "tar")
    with Claims(tmp_path / "out" / "plan.parquet") as claims:
        assert claims.try_take(3)
        with pytest.raises(ClaimError, match="another run is at work"):
            export_store(store, tmp_path / "out", "tar")


def test_an_unknown_column_is_refused_before_anything_is_made(export: Any, store: Store, tmp_path: Path) -> None:
    with pytest.raises(MissingRowError, match="no column audio; it has image, video"):
        export(store, tmp_path / "out", columns=["audio"])
    assert not (tmp_path / "out").exists()


def test_a_damaged_row_stops_the_export_with_its_name(export: Any, store: Store, tmp_path: Path) -> None:
    path = store.shard_path("video", 2)
    content = bytearray(path.read_bytes())
    content[store.status("video").row(10).offset] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptionError, match="column video, shard 2, row 10"):
        export(store, tmp_path / "out")
    assert not list((tmp_path / "out" / "video").glob("*000002*"))
    assert not list((tmp_path / "out").rglob(".tmp-*"))


def test_records_that_are_not_those_of_the_index_stop_the_export(export: Any, store: Store, tmp_path: Path) -> None:
    seal, index = store.seal_path.read_bytes(), store.index_path.read_bytes()
    write(store, "video", 1, {4: "missing"}, replace=True)
    store.index_path.write_bytes(index)
    store.seal_path.write_bytes(seal)
    with pytest.raises(CorruptionError, match=r"column video, shard 1: the commit record and index\.parquet"):
        export(open_store(store.root), tmp_path / "out")


# ---- the command -------------------------------------------------------------------------------------------------


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    def call(*words: object, status: int = 0) -> tuple[str, str]:
        assert main(["shards", "export", *map(str, words)]) == status
        return tuple(capsys.readouterr())  # type: ignore[return-value]

    return call


def test_the_command_exports_and_says_what_it_did(store: Store, run: Any, tmp_path: Path) -> None:
    text, progress = run(store.root, "--to", "tar", "--out", tmp_path / "tar")
    assert "15 rows in 8 shard files (0 were there)" in text
    assert "9 rows have no target" in text
    assert "export: 24/24 rows" in progress
    facts = json.loads(run(store.root, "--to", "npy", "--out", tmp_path / "npy", "--columns", "video", "--json")[0])
    assert (facts["shards"], facts["rows"], facts["out"]) == (4, 7, str(tmp_path / "npy"))
    assert not (tmp_path / "npy" / "image").exists()
    assert "(8 were there), 0 B written" in run(store.root, "--to", "tar", "--out", tmp_path / "tar")[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "either --to tar, zarr or npy, or --webdataset"),
        (("--to", "tar", "--webdataset"), "either --to tar, zarr or npy, or --webdataset"),
        (("--to", "tar", "--columns", ","), "names no column"),
        (("--to", "npy", "--frames", "jpg"), "go with --webdataset"),
        (("--to", "hdf5"), "'hdf5' is not one of"),
    ],
)
def test_wrong_usage_leaves_2(store: Store, run: Any, tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    assert message in run(store.root, "--out", tmp_path / "out", *options, status=2)[1]
    assert not (tmp_path / "out").exists()


def test_a_store_that_is_not_complete_leaves_1(run: Any, tmp_path: Path) -> None:
    new_store(tmp_path / "store", [column_of()], view_ids=VIEWS, rows_per_shard=4)
    with pytest.raises(NotSealedError):
        open_store(tmp_path / "store")
    assert "is not complete" in run(tmp_path / "store", "--to", "tar", "--out", tmp_path / "out", status=1)[1]
