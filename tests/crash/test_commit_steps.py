"""Killed, failed or without power at each step by which a store changes: what is left, and what becomes of it."""

from __future__ import annotations

import errno
import itertools
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from disk_model import states_after_power_loss
from file_calls import Call, Fault, FileCalls
from operations import OPERATIONS, Victims, store_at
from remains import damage, temporary_files
from small_stores import features_of, files_of, write

from mvd_offline.shards import MissingRowError, NotAStoreError, NotSealedError, Store, open_store
from mvd_offline.shards.errors import DiskFullError
from mvd_offline.shards.verify import verify

CONTAINERS = ("zarr", "tar")


@dataclass(frozen=True)
class Case:
    """An operation on a container, the store before it, and the same when all is done, never interrupted."""

    operation: str
    container: str
    prepared: Path
    wanted: dict[str, bytes]

    def start(self, root: Path) -> Path:
        shutil.rmtree(root, ignore_errors=True)
        if self.prepared.exists():
            shutil.copytree(self.prepared, root)
        return root

    def change(self, root: Path) -> None:
        OPERATIONS[self.operation].change(root, self.container)

    def recorded(self, root: Path) -> list[Call]:
        """The calls of the operation; no file may come or change by other ones."""
        before = files_of(self.start(root)) if self.prepared.exists() else {}
        with FileCalls(root) as calls:
            self.change(root)
        after = files_of(root)
        moved = {os.path.relpath(call.target, os.path.realpath(root)) for call in calls.calls if call.target}
        assert {name for name in after if after[name] != before.get(name)} <= moved, "written past the recorder"
        return calls.calls

    def check_remains(self, root: Path) -> None:
        """Nothing is read that was not committed, and there is no damage."""
        if not (root / "store.json").exists():
            with pytest.raises(NotAStoreError):
                open_store(root, sealed=False)
            return
        assert damage(root) == []
        check_reading(open_store(root, sealed=False))
        try:
            store = open_store(root)
        except NotSealedError:
            return
        check_reading(store)

    def check_finished(self, root: Path) -> None:
        OPERATIONS[self.operation].finish(root, self.container)
        assert files_of(root) == self.wanted, "not what an uninterrupted run makes, or with something left over"


def check_reading(store: Store) -> None:
    """A row of a committed shard is its target or has its status; a row of another shard is not there."""
    for name, column in store.header.columns.items():
        for shard in range(store.shard_count):
            for view_id in store.shard_view_ids(shard).tolist():
                if store.is_committed(name, shard) and store.status(name).row(view_id).status == "ok":
                    assert np.array_equal(store.read([view_id], [name])[name][0], features_of(view_id, column))
                else:
                    with pytest.raises(MissingRowError):
                        store.read([view_id], [name])


@pytest.fixture(scope="module", params=itertools.product(OPERATIONS, CONTAINERS), ids=" in ".join)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    name, container = request.param
    operation, folder = OPERATIONS[name], tmp_path_factory.mktemp("case")
    operation.prepare(folder / "prepared", container)
    uninterrupted = folder / "uninterrupted"
    if (folder / "prepared").exists():
        shutil.copytree(folder / "prepared", uninterrupted)
    operation.change(uninterrupted, container)
    operation.finish(uninterrupted, container)
    assert not verify(uninterrupted, "full").findings
    return Case(name, container, folder / "prepared", files_of(uninterrupted))


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory where there is one: on a disk most of the time would go to thousands of fsyncs."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as path:
        yield Path(path)


@pytest.fixture(scope="module")
def victims() -> Iterator[Victims]:
    with Victims() as process:
        yield process


# ---- killed ------------------------------------------------------------------------------------------------------


def test_killed_at_any_call_it_is_as_if_it_had_not_begun_or_is_done(case: Case, victims: Victims, folder: Path) -> None:
    root = folder / "store"
    calls = case.recorded(root)
    # After a call is before the next one, as far as the disk can tell; so the last one alone is taken on both sides.
    faults = [Fault(number) for number in range(len(calls))]
    faults += [Fault(number, "half") for number, call in enumerate(calls) if call.operation == "write"]
    faults += [Fault(len(calls) - 1, "after")]

    for fault in faults:
        case.start(root)
        assert victims.change(case.operation, case.container, root, fault) == -signal.SIGKILL, fault
        case.check_remains(root)
        case.check_finished(root)


# ---- failed ------------------------------------------------------------------------------------------------------


def test_a_call_that_fails_is_an_error_with_a_path_and_leaves_a_valid_store(case: Case, folder: Path) -> None:
    root = folder / "store"
    calls = case.recorded(root)
    for number, call in enumerate(calls):
        code = errno.EIO if number % 2 else errno.ENOSPC
        case.start(root)
        with pytest.raises(OSError, match=re.escape(str(root))) as raised, FileCalls(root, Fault(number, error=code)):
            case.change(root)
        assert raised.value.errno == code or isinstance(raised.value, DiskFullError), call
        assert not temporary_files(root), call
        case.check_remains(root)
        case.check_finished(root)


# ---- without power -----------------------------------------------------------------------------------------------


def test_what_a_disk_may_hold_after_power_is_lost_is_a_valid_store(case: Case, folder: Path) -> None:
    before = files_of(case.start(folder / "store")) if case.prepared.exists() else {}
    folders = [path.relative_to(case.prepared).as_posix() for path in case.prepared.rglob("*") if path.is_dir()]
    calls = case.recorded(folder / "store")
    states = states_after_power_loss(calls, str(folder / "store"), before, folders)
    assert len(states) > len(calls) / 4

    for number, state in enumerate(states):
        root = folder / str(number)
        state.write(root)
        case.check_remains(root)
        case.check_finished(root)
        shutil.rmtree(root)


def test_a_commit_flushes_data_before_names_and_the_file_before_its_record(tmp_path: Path) -> None:
    for container, file in (("zarr", "c.1.0.0"), ("tar", "000001.tar")):
        root = tmp_path / container
        store = store_at(root, container, ("video",))
        with FileCalls(root) as calls:
            write(store, "video", 1)

        changes = [text for text in calls.texts if not text.startswith("unlink")]
        assert list(without_repeats(changes)) == [
            f"create video/{file}~",
            f"write video/{file}~",
            f"fsync video/{file}~",
            f"rename video/{file}",
            "fsync video",
            "create commits/video/000001.json~",
            "write commits/video/000001.json~",
            "fsync commits/video/000001.json~",
            "rename commits/video/000001.json",
            "fsync commits/video",
        ]


def without_repeats(items: list[str]) -> Iterator[str]:
    return (item for item, _ in itertools.groupby(items))
