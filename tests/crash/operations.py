"""Everything that changes a store, and a process that does it and may be killed at any call.

As a program: reads requests from standard input, and has each done by a process of its own, forked from this one, which
is small, so that thousands are no matter.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from file_calls import Fault, FileCalls
from small_stores import column_of, fill, new_store, write

from mvd_offline.shards import Store, open_store
from mvd_offline.shards.dropping import drop_column

VIEWS, ROWS_PER_SHARD = range(5), 3  # shards 0 and 1; the second is short
BROKEN = {4: "timeout"}


def store_at(root: Path, container: str, columns: tuple[str, ...]) -> Store:
    """The store, made or found or with columns added."""
    specs = [column_of(name, container=container) for name in columns]
    return new_store(root, specs, view_ids=VIEWS, rows_per_shard=ROWS_PER_SHARD)


@dataclass(frozen=True)
class Operation:
    """Something that changes a store: on what, by what, and which columns there are in the end."""

    prepare: Callable[[Path, str], object]
    change: Callable[[Path, str], object]
    columns: tuple[str, ...] = ("video",)

    def finish(self, root: Path, container: str) -> None:
        """Whatever was left: to the end, as `extract` and `drop-column` do it."""
        if "image" not in self.columns and (root / "commits" / "image").exists():
            drop_column(root, "image")
        store = store_at(root, container, self.columns)
        store.clean_temporary()
        for name, shard in itertools.product(store.columns, range(store.shard_count)):
            store.settle(name, shard)
            if store.is_committed(name, shard) and any(row.status != "ok" for row in store.record(name, shard).rows):
                write(store, name, shard, replace=True)
        fill(store)
        store.seal()


def sealed(
    root: Path, container: str, columns: tuple[str, ...] = ("video",), failed: dict[int, str] | None = None
) -> None:
    store = store_at(root, container, columns)
    fill(store, failed)
    store.seal()


OPERATIONS = {
    "make a store": Operation(
        lambda root, container: None,
        lambda root, container: store_at(root, container, ("video",)),
    ),
    "commit a shard": Operation(
        lambda root, container: write(store_at(root, container, ("video",)), "video", 0),
        lambda root, container: write(open_store(root, sealed=False), "video", 1),
    ),
    "seal": Operation(
        lambda root, container: fill(store_at(root, container, ("video",))),
        lambda root, container: open_store(root, sealed=False).seal(),
    ),
    "exchange a shard": Operation(
        lambda root, container: sealed(root, container, failed=BROKEN),
        lambda root, container: write(open_store(root), "video", 1, replace=True),
    ),
    "withdraw a shard": Operation(
        lambda root, container: sealed(root, container),
        lambda root, container: open_store(root).withdraw("video", 1),
    ),
    "add a column": Operation(
        lambda root, container: sealed(root, container),
        lambda root, container: store_at(root, container, ("video", "image")),
        columns=("video", "image"),
    ),
    "drop a column": Operation(
        lambda root, container: sealed(root, container, ("video", "image")),
        lambda root, container: drop_column(root, "image"),
    ),
}


class Victims:
    """A process that does operations in processes of its own, which may be killed."""

    def __enter__(self) -> Victims:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        words = [sys.executable, __file__]
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate()

    def change(self, operation: str, container: str, root: Path, fault: Fault) -> int:
        """Do the change of an operation, with a fault; returns the exit status, negative for a signal."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = [operation, container, str(root), dataclasses.asdict(fault)]
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


def serve() -> None:
    import pyarrow.compute
    import pyarrow.parquet  # noqa: F401  the store imports these where it needs them: here once, not in each child

    for line in sys.stdin:
        name, container, root, fault = json.loads(line)
        child = os.fork()
        if not child:
            try:
                with FileCalls(Path(root), Fault(**fault)):
                    OPERATIONS[name].change(Path(root), container)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
