"""What every store promises, whatever its container and codec."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from small_stores import (
    DECODER,
    PRODUCER,
    TOKENS,
    WIDTH,
    column_of,
    features_of,
    files_of,
    fill,
    hash_of,
    header_of,
    new_store,
    write,
)

from mvd_offline.shards import (
    CodecError,
    ColumnSpec,
    CommitError,
    CorruptionError,
    IdentityError,
    MissingRowError,
    NotAStoreError,
    NotSealedError,
    Store,
    create_store,
    open_store,
)
from mvd_offline.shards.codecs import CODECS, get_codec
from mvd_offline.shards.containers import CONTAINERS
from mvd_offline.shards.reader import OPEN_FILES

# Shards of 4 rows; the first group ends at view 5 (6 and 7 are a gap), the last shard is short.
VIEWS = (0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13)
FAILED = {2: "unreadable", 9: "timeout", 12: "too_short", 13: "missing"}
OK = [view for view in VIEWS if view not in FAILED]


@pytest.fixture(params=[(container, codec) for container in CONTAINERS for codec in CODECS], ids="-".join)
def column(request: pytest.FixtureRequest) -> ColumnSpec:
    container, codec = request.param
    return column_of(codec=codec, container=container)


@pytest.fixture
def empty(tmp_path: Path, column: ColumnSpec) -> Store:
    return new_store(tmp_path / "store", [column], view_ids=VIEWS, rows_per_shard=4)


@pytest.fixture
def store(empty: Store) -> Store:
    """A sealed store in which four rows failed."""
    fill(empty, FAILED)
    empty.seal()
    return open_store(empty.root)


def coded(view_ids: list[int], column: ColumnSpec) -> NDArray[np.generic]:
    """What the codec stores for the targets of these views."""
    return np.stack([get_codec(column.codec).encode(features_of(view, column)) for view in view_ids])


def stored(view_ids: list[int], column: ColumnSpec) -> NDArray[np.generic]:
    """What the codec makes of the targets of these views."""
    return get_codec(column.codec).decode(coded(view_ids, column))


# ---- reading -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("view_ids", [OK, OK[::-1], [5, 0, 5, 11, 5], [8], []], ids=str)
def test_rows_are_read_in_the_order_asked_for_duplicates_too(
    store: Store, column: ColumnSpec, view_ids: list[int]
) -> None:
    read = store.read(view_ids)["video"]
    assert read.dtype == (np.float16 if column.codec == "float16" else np.float32)
    assert read.shape == (len(view_ids), TOKENS, WIDTH)
    if view_ids:
        np.testing.assert_array_equal(read, stored(view_ids, column))


def test_some_tokens_of_each_row_are_read_in_the_order_asked_for(store: Store, column: ColumnSpec) -> None:
    tokens = np.array([[5, 0, 0], [1, 2, 3]])
    expected = stored([10, 4], column)[np.arange(2)[:, None], tokens]
    read = get_codec(column.codec).decode(store.read_tokens("video", [10, 4], tokens))
    np.testing.assert_array_equal(read, expected)


def test_rows_are_read_into_an_array_that_is_given(store: Store, column: ColumnSpec) -> None:
    expected = coded([0, 1, 3, 11], column)
    out = np.empty_like(expected)
    assert store.read_coded("video", [0, 1, 3, 11], out=out) is out
    np.testing.assert_array_equal(out, expected)
    for other in (out[:3], out.astype(np.float64), out[:, ::-1]):
        with pytest.raises(IdentityError, match="`out` must be a contiguous"):
            store.read_coded("video", [0, 1, 3, 11], out=other)


@pytest.mark.parametrize("view_ids", [OK, OK[::-1], [5, 0, 5, 11, 5]], ids=str)
def test_coded_rows_are_read_in_the_order_asked_for(store: Store, column: ColumnSpec, view_ids: list[int]) -> None:
    np.testing.assert_array_equal(store.read_coded("video", view_ids), coded(view_ids, column))


@pytest.mark.parametrize("tokens", [[[0, TOKENS]], [[-1, 0]], [[0], [1]], [0]], ids=str)
def test_token_indices_outside_the_row_are_refused(store: Store, tokens: list[object]) -> None:
    with pytest.raises(IdentityError, match="token"):
        store.read_tokens("video", [0], np.array(tokens))


@pytest.mark.parametrize("given", [[2.9], [True, False]], ids=["fraction", "mask"])
def test_what_is_no_row_number_is_refused_and_not_rounded(store: Store, given: list[object]) -> None:
    with pytest.raises(IdentityError, match="view_ids must be integers"):
        store.read(given)  # type: ignore[arg-type]
    with pytest.raises(IdentityError, match="token_index must be integers"):
        store.read_tokens("video", [0], np.ones((1, TOKENS), bool))


@pytest.mark.parametrize(("view", "status"), FAILED.items())
def test_a_row_without_target_raises_its_status_and_never_reads_as_zeros(store: Store, view: int, status: str) -> None:
    with pytest.raises(MissingRowError, match=f"row {view}.*status is {status}: broken at frame {view}"):
        store.read([0, view])
    with pytest.raises(MissingRowError, match=status):
        store.read_tokens("video", [view], np.zeros((1, 1), int))


@pytest.mark.parametrize("view", [6, -1, 14, 10**9])
def test_a_row_that_does_not_exist_raises(store: Store, view: int) -> None:
    with pytest.raises(MissingRowError, match=f"row {view}"):
        store.read([view])


def test_a_row_of_zeros_reads_as_zeros(empty: Store, column: ColumnSpec) -> None:
    with empty.write_shard("video", 0, producer=PRODUCER) as writer:
        for view in (0, 1, 2, 3):
            writer.add(view, np.zeros((TOKENS, WIDTH), np.float32), pixels=hash_of(view), decoder=DECODER)
    assert not empty.read([1])["video"].any()


def test_an_unknown_column_is_refused_with_the_known_ones(store: Store) -> None:
    with pytest.raises(MissingRowError, match="no column audio; it has video"):
        store.read([0], ["audio"])


def test_the_ledger_says_what_became_of_every_row(store: Store) -> None:
    ledger = store.status("video")
    assert ledger.view_ids.tolist() == list(VIEWS)
    assert ledger.counts() == {"ok": 8, "unreadable": 1, "too_short": 1, "timeout": 1, "missing": 1}
    assert store.ok_rows().tolist() == OK
    assert ledger.row(9).detail == "broken at frame 9"
    assert ledger.row(11) == store.record("video", 2).rows[3]
    assert store.pixel_hash(11) == hash_of(11)
    assert store.pixel_hash(9) == ""


def test_a_store_can_be_read_by_spawned_and_forked_processes(store: Store, column: ColumnSpec) -> None:
    code = f"""
        import multiprocessing as mp, numpy as np
        from mvd_offline.shards import open_store
        def total(store, view): return store.read([view])["video"].view(np.uint8).astype(int).sum()
        if __name__ == "__main__":
            store = open_store({str(store.root)!r})
            here = total(store, 8)
            for method in ("fork", "spawn"):
                with mp.get_context(method).Pool(1) as pool:
                    assert pool.apply(total, (store, 8)) == here
    """
    script = store.root.parent / "workers.py"
    script.write_text(textwrap.dedent(code))
    subprocess.run([sys.executable, str(script)], check=True, timeout=60)


LOADER = """
    import sys
    import numpy as np, torch
    from torch.utils.data import DataLoader, Dataset
    from mvd_offline.shards import open_store
    from mvd_offline.training.memory import batch_memory
    class Batches(Dataset):
        def __init__(self, store):
            self.store = store
        def __getitem__(self, ids):
            row = self.store.read_coded("video", ids[:1])[0]
            batch, array = batch_memory((len(ids), *row.shape), row.dtype)
            self.store.read_coded("video", ids, out=array)
            return batch
    if __name__ == "__main__":
        store = open_store(sys.argv[1])
        batches = [[0, 1, 3], [11, 4], [5], [10, 8, 0, 3]]
        for method in ("fork", "spawn"):
            loader = DataLoader(Batches(store), sampler=batches, batch_size=None, num_workers=2,
                                multiprocessing_context=method)
            for ids, batch in zip(batches, loader, strict=True):
                assert batch.is_shared(), "read where only the loader process sees it, then copied"
                assert np.array_equal(batch.numpy(), store.read_coded("video", ids))
        here, array = batch_memory((3, 2), np.dtype(np.uint16))
        array[:] = 7
        assert not here.is_shared() and here.dtype is torch.uint16 and bool((here.int() == 7).all())
"""


def test_loader_processes_read_into_memory_that_the_training_process_shares(tmp_path: Path) -> None:
    store = new_store(tmp_path / "store", [column_of(codec="int8")], view_ids=VIEWS, rows_per_shard=4)
    fill(store)
    store.seal()
    script = tmp_path / "loader.py"
    script.write_text(textwrap.dedent(LOADER))
    subprocess.run([sys.executable, str(script), str(store.root)], check=True, timeout=120)


def test_more_files_than_are_kept_open_can_be_read(tmp_path: Path) -> None:
    column = column_of()
    store = new_store(tmp_path / "store", [column], view_ids=range(150), rows_per_shard=1)
    fill(store)
    before = len(os.listdir("/proc/self/fd"))
    np.testing.assert_array_equal(store.read(range(150))["video"], stored(list(range(150)), column))
    assert len(os.listdir("/proc/self/fd")) <= before + OPEN_FILES < before + 150


def test_the_recorded_offset_and_length_give_the_payload(store: Store, column: ColumnSpec) -> None:
    row = store.status("video").row(10)
    content = store.shard_path("video", 2).read_bytes()
    payload = content[row.offset : row.offset + row.length]
    assert payload == coded([10], column).tobytes()


# ---- committing --------------------------------------------------------------------------------------------------


def test_a_shard_is_done_when_its_record_exists(empty: Store) -> None:
    assert empty.pending("video") == [0, 1, 2, 3]
    write(empty, "video", 2)
    assert empty.committed("video") == {2}
    assert empty.pending("video") == [0, 1, 3]
    empty.record_path("video", 2).unlink()
    assert empty.pending("video") == [0, 1, 2, 3]


def test_the_finished_store_does_not_depend_on_the_order_of_its_shards(tmp_path: Path, column: ColumnSpec) -> None:
    stores = []
    for name, order in (("a", (0, 1, 2, 3)), ("b", (3, 1, 0, 2))):
        store = new_store(tmp_path / name, [column], view_ids=VIEWS, rows_per_shard=4)
        for shard in order:
            write(store, "video", shard, FAILED)
        store.seal()
        stores.append(files_of(store.root))
    assert stores[0] == stores[1]


def test_an_exception_while_writing_publishes_nothing(empty: Store, column: ColumnSpec) -> None:
    def interrupted() -> None:
        with empty.write_shard("video", 0, producer=PRODUCER) as writer:
            writer.add(0, features_of(0, column), pixels=hash_of(0), decoder=DECODER)
            raise KeyboardInterrupt

    before = files_of(empty.root)
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert files_of(empty.root) == before


def test_a_shard_with_rows_left_out_is_not_published(empty: Store) -> None:
    before = files_of(empty.root)
    with pytest.raises(CommitError, match="3 of 4 views were neither added nor failed, the first is 1"):
        fail_all(empty, 0, [0])
    assert files_of(empty.root) == before


@pytest.mark.parametrize(("views", "wrong"), [([1], 1), ([0, 0], 0), ([0, 2], 2), ([0, 1, 2, 3, 4], 4)])
def test_views_out_of_order_are_refused(empty: Store, views: list[int], wrong: int) -> None:
    with pytest.raises(CommitError, match=f"view {wrong} came where"):
        fail_all(empty, 0, views)


def test_views_in_a_gap_are_refused(empty: Store) -> None:
    with pytest.raises(CommitError, match="view 6 came where no more"):
        fail_all(empty, 1, [4, 5, 6])


def fail_all(store: Store, shard: int, views: list[int]) -> None:
    with store.write_shard("video", shard, producer=PRODUCER) as writer:
        for view in views:
            writer.fail(view, "missing", "gone")


def test_features_that_cannot_be_stored_are_refused(empty: Store) -> None:
    for features, error in (
        (np.full((TOKENS, WIDTH), np.nan, np.float32), CodecError),
        (np.zeros((TOKENS, WIDTH), np.float64), CodecError),
        (np.zeros((TOKENS + 1, WIDTH), np.float32), CommitError),
    ):
        with pytest.raises(error), empty.write_shard("video", 0, producer=PRODUCER) as writer:
            writer.add(0, features, pixels=hash_of(0), decoder=DECODER)
    assert empty.pending("video") == [0, 1, 2, 3]


def test_a_committed_shard_is_rewritten_only_when_asked(store: Store) -> None:
    with pytest.raises(CommitError, match="committed already"):
        write(store, "video", 0)
    write(store, "video", 0, replace=True)
    assert not store.sealed
    with pytest.raises(NotSealedError):
        open_store(store.root)
    store.seal()
    assert 2 in open_store(store.root).ok_rows()


def test_a_file_that_does_not_read_back_is_not_published(empty: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from mvd_offline.shards import store as module

    monkeypatch.setattr(module, "forget_cached_pages", lambda path: flip_bit(path, 3))
    before = files_of(empty.root)
    with pytest.raises(CorruptionError, match="does not read back"):
        write(empty, "video", 0)
    assert files_of(empty.root) == before


# ---- killed writers ----------------------------------------------------------------------------------------------

CHILD = """
    import os, signal, sys, time
    sys.path.insert(0, {helpers!r})
    from small_stores import DECODER, PRODUCER, features_of, hash_of
    from mvd_offline.shards import open_store
    from mvd_offline.shards import atomic
    store = open_store({root!r}, sealed=False)
    rename, point = os.rename, {point!r}
    def at(name):
        if name == point:
            print("ready", flush=True)
            time.sleep(60)
    def slow_rename(source, target):
        kind = "record" if str(target).endswith(".json") else "shard"
        at("before " + kind)
        rename(source, target)
        at("after " + kind)
    os.rename = slow_rename
    with store.write_shard("video", 0, producer=PRODUCER) as writer:
        for view in range(4):
            writer.add(view, features_of(view, store.header.columns["video"]), pixels=hash_of(view), decoder=DECODER)
            at("after row " + str(view))
    at("done")
"""


def start_writer(store: Store, point: str) -> subprocess.Popen[str]:
    """A process that writes shard 0 and stands still at `point`."""
    code = CHILD.format(helpers=str(Path(__file__).parent), root=str(store.root), point=point)
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def kill(child: subprocess.Popen[str]) -> None:
    child.send_signal(signal.SIGKILL)
    child.communicate(timeout=30)


def finish(store: Store) -> dict[str, bytes]:
    store.clean_temporary()
    fill(store, {9: "timeout", 12: "too_short", 13: "missing"})
    store.seal()
    return files_of(store.root)


POINTS = ["after row 0", "after row 3", "before shard", "after shard", "before record", "after record", "done"]


@pytest.mark.parametrize("point", POINTS)
def test_a_writer_killed_anywhere_leaves_a_store_that_ends_the_same(tmp_path: Path, point: str) -> None:
    stores = [new_store(tmp_path / n, [column_of()], view_ids=VIEWS, rows_per_shard=4) for n in ("killed", "other")]
    kill(start_writer(stores[0], point))
    assert finish(stores[0]) == finish(stores[1])


def test_cleaning_removes_what_the_dead_left_and_spares_the_living(tmp_path: Path) -> None:
    store = new_store(tmp_path / "store", [column_of()], view_ids=VIEWS, rows_per_shard=4)
    kill(start_writer(store, "after row 1"))
    (dead,) = (store.root / "video").glob(".tmp-*")
    living_writer = start_writer(store, "after row 1")
    try:
        living = next(path for path in (store.root / "video").glob(".tmp-*") if path != dead)
        assert store.clean_temporary() == [dead]
        assert living.exists()
    finally:
        kill(living_writer)
    assert store.clean_temporary() == [living]


# ---- sealing and opening -----------------------------------------------------------------------------------------


def test_a_store_that_is_not_complete_is_refused_with_what_is_missing(empty: Store) -> None:
    write(empty, "video", 1)
    with pytest.raises(NotSealedError, match=r"3 of 4 shards of column video are missing.*mvd-offline extract"):
        open_store(empty.root)
    with pytest.raises(NotSealedError, match=r"column video: 0, 2, 3 of 4"):
        empty.seal()
    assert not empty.index_path.exists()
    assert open_store(empty.root, sealed=False).ok_rows().tolist() == [4, 5]


def test_a_complete_store_without_index_is_refused_with_the_command_that_seals_it(empty: Store) -> None:
    fill(empty, FAILED)
    with pytest.raises(NotSealedError, match="mvd-offline shards seal"):
        open_store(empty.root)


def test_sealing_twice_changes_nothing(store: Store) -> None:
    before = files_of(store.root)
    store.seal()
    assert files_of(store.root) == before


def test_sealing_refuses_a_shard_file_that_is_gone(empty: Store) -> None:
    fill(empty)
    empty.shard_path("video", 3).unlink()
    with pytest.raises(CorruptionError, match="shard 3"):
        empty.seal()


def test_a_folder_without_store_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(NotAStoreError, match="no store"):
        open_store(tmp_path)


# ---- columns and identity ----------------------------------------------------------------------------------------


def test_a_column_added_later_keeps_the_identity_and_the_old_column_readable(store: Store, column: ColumnSpec) -> None:
    image = column_of("image", codec=column.codec, container=column.container, width=3)
    header = type(store.header)(
        **{name: getattr(store.header, name) for name in ("plan_sha256", "rows", "rows_per_shard", "batch_rows")},
        grid=store.header.grid,
        view=store.header.view,
        columns={"image": image},
    )
    grown = create_store(store.root, header, store.plan_path.read_bytes())
    assert grown.store_id == store.store_id
    assert grown.columns == ("image", "video")
    assert grown.pending("image") == [0, 1, 2, 3]
    assert grown.pending("video") == []
    with pytest.raises(NotSealedError, match="4 of 4 shards of column image"):
        open_store(store.root)
    old = open_store(store.root, columns=["video"])
    np.testing.assert_array_equal(old.read([3], ["video"])["video"], stored([3], column))

    fill(grown, {5: "timeout"}, columns=["image"])
    grown.seal()
    both = open_store(store.root)
    assert both.read([0, 11])["image"].shape == (2, TOKENS, 3)
    assert both.ok_rows().tolist() == [view for view in OK if view != 5]
    assert both.ok_rows(["video"]).tolist() == OK


def test_the_same_store_is_found_again(store: Store) -> None:
    before = files_of(store.root)
    again = create_store(store.root, store.header, store.plan_path.read_bytes())
    assert again.sealed
    assert files_of(store.root) == before


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda header: header["view"].update(stride=2), "view.stride"),
        (lambda header: header.update(batch_rows=9), "batch_rows"),
        (
            lambda header: header["columns"]["video"]["source"].update(weights_sha256="ff"),
            "columns.video.source.weights",
        ),
        (lambda header: header["columns"]["video"].update(codec="float32"), "columns.video.codec"),
    ],
)
def test_another_store_in_the_same_folder_is_refused_with_the_field(tmp_path: Path, change, field: str) -> None:
    store = new_store(tmp_path / "store", [column_of(codec="float16")], view_ids=VIEWS, rows_per_shard=4)
    data = json.loads(store.header.to_bytes())
    change(data)
    columns = {name: ColumnSpec(**spec) for name, spec in data.pop("columns").items()}
    other = type(store.header)(**{k: v for k, v in data.items() if k not in ("digest", "store_id")}, columns=columns)
    before = files_of(store.root)
    with pytest.raises(IdentityError, match=field):
        create_store(store.root, other, store.plan_path.read_bytes())
    assert files_of(store.root) == before


def test_another_store_is_refused_with_all_that_differs_what_was_chosen_first(tmp_path: Path) -> None:
    store = new_store(tmp_path / "store", [column_of(codec="float16")], view_ids=VIEWS, rows_per_shard=4)
    plan = store.plan_path.read_bytes()
    changed = column_of(codec="int8", container="tar")
    other = header_of(plan, [changed], rows=20, rows_per_shard=4, stride=2)
    with pytest.raises(IdentityError) as caught:
        create_store(store.root, other, plan)
    assert str(caught.value).splitlines()[1:-1] == [
        "  columns.video.codec: recipe has 'int8', store has 'float16'",
        "  columns.video.container: recipe has 'tar', store has 'zarr'",
        "  view.stride: recipe has 2, store has 4",
        "  rows: recipe has 20, store has 14",
    ]


def test_a_folder_with_something_else_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("...")
    with pytest.raises(IdentityError, match=r"thesis\.tex"):
        new_store(tmp_path, [column_of()], view_ids=VIEWS, rows_per_shard=4)


def test_an_interrupted_creation_can_be_repeated(tmp_path: Path) -> None:
    store = new_store(tmp_path / "store", [column_of()], view_ids=VIEWS, rows_per_shard=4)
    whole = files_of(store.root)
    (store.root / "store.json").unlink()
    new_store(tmp_path / "store", [column_of()], view_ids=VIEWS, rows_per_shard=4)
    assert files_of(store.root) == whole


def test_a_plan_that_is_not_the_headers_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="plan_sha256"):
        create_store(tmp_path / "other", store.header, b"another plan")


def flip_bit(path: Path, position: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)
