"""The real extraction, killed at chosen steps of a commit."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from file_calls import struck_command
from remains import damage, temporary_files, wrong_rows
from small_runs import contents, descendants, fill, make_store, once, plan_small, started, wait_until


def test_a_real_extraction_killed_at_steps_of_its_commits_ends_with_the_same_bytes(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    made = once(tmp_path_factory, "store", make_store)
    store = plan_small(made / "catalog.parquet", tmp_path / "store")
    # Each kill is a shard further, so that every run has something to go on from.
    for step, moment in (
        ("write image/c.1.0.0~", "half"),
        ("rename video/c.2.0.0", "after"),
        ("rename commits/image/000003.json", "before"),
        ("rename index.parquet", "after"),
    ):
        words = struck_command(store, "--at", step, "--moment", moment)
        with started(words, tmp_path / "log") as process:
            assert process.wait(60) == -signal.SIGKILL, f"{step}: {(tmp_path / 'log').read_text()}"
            assert wait_until(lambda mark=process.mark: not descendants(mark), seconds=5, step=0.1)  # type: ignore[misc]
        assert not wrong_rows(store, made / "store")
        assert not damage(store)

    fill(store)
    assert contents(store) == contents(made / "store")
    assert not temporary_files(store)
