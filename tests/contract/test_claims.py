"""Claims: who is at work on a shard, and who is not any more."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from small_stores import column_of, files_of, new_store

from mvd_offline.shards import Store, StoreError
from mvd_offline.shards.claims import Claims
from mvd_offline.shards.errors import ClaimError


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return new_store(tmp_path / "store", [column_of()], view_ids=range(12), rows_per_shard=4)


def test_a_shard_is_claimed_by_one_run_at_a_time(store: Store) -> None:
    with Claims(store.plan_path) as ours, Claims(store.plan_path) as theirs:
        claim = ours.try_take(1)
        assert claim is not None
        assert theirs.try_take(1) is None
        assert ours.try_take(1) is None, "nor twice by the same run"
        assert theirs.try_take(0) is not None
        assert ours.try_take(0) is None
        claim.release()
        assert theirs.try_take(1) is not None
    with Claims(store.plan_path) as later:
        assert later.try_take(1) is not None


def test_claims_leave_no_trace_in_the_store(store: Store) -> None:
    before = files_of(store.root)
    with Claims(store.plan_path) as claims:
        assert claims.try_take(2) is not None
        assert files_of(store.root) == before
    assert files_of(store.root) == before


def test_a_claim_outlives_other_uses_of_the_plan_in_the_same_process(store: Store) -> None:
    with Claims(store.plan_path) as ours, Claims(store.plan_path) as theirs:
        assert ours.try_take(1) is not None
        store.plan_path.read_bytes()
        with Claims(store.plan_path) as others:
            assert others.try_take(2) is not None
        assert theirs.try_take(1) is None


def test_the_claims_of_a_killed_process_are_free(store: Store) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom mvd_offline.shards.claims import Claims\n"
        "claims = Claims(Path(sys.argv[1]))\nassert claims.try_take(1)\nprint('ready', flush=True)\ntime.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(store.plan_path)], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        with Claims(store.plan_path) as claims:
            assert claims.try_take(1) is None
            os.kill(child.pid, signal.SIGKILL)
            child.wait(30)
            assert claims.try_take(1) is not None


def test_a_claim_can_be_waited_for(store: Store) -> None:
    asked: list[int] = []
    with Claims(store.plan_path) as ours, Claims(store.plan_path) as theirs:
        held = theirs.try_take(1)
        assert held is not None

        def waiting() -> None:
            asked.append(1)
            if len(asked) == 2:
                threading.Thread(target=held.release).start()  # any thread may do this

        assert ours.take(1, waiting).shard == 1
    assert len(asked) >= 2


def test_what_is_raised_while_waiting_ends_the_wait(store: Store) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with Claims(store.plan_path) as ours, Claims(store.plan_path) as theirs:
        assert theirs.try_take(1) is not None
        with pytest.raises(KeyboardInterrupt):
            ours.take(1, interrupt)


def test_all_shards_are_had_only_when_nobody_is_at_work(store: Store) -> None:
    with Claims(store.plan_path) as ours, Claims(store.plan_path) as theirs:
        held = theirs.try_take(2)
        assert held is not None
        with pytest.raises(ClaimError, match="another run is at work"), ours.all_of(3):
            pass
        held.release()
        with ours.all_of(3):
            assert theirs.try_take(0) is None
        assert theirs.try_take(0) is not None


def test_a_plan_that_cannot_be_opened_for_writing_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "plan.parquet").mkdir()
    with pytest.raises(StoreError, match=r"plan\.parquet: cannot be opened for writing \(Is a directory\)"):
        Claims(tmp_path / "plan.parquet")
