"""What `growth` measures, one part in a process: `python -m mvd_offline.bench.growth_parts PART FOLDER ROWS`.

The process prints a JSON object: seconds, memory, and facts that show what was done.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import psutil
from numpy.typing import NDArray

from mvd_offline.bench import growth_data as data
from mvd_offline.shards.store import Store, open_store
from mvd_offline.video.views import Plan

if TYPE_CHECKING:
    from mvd_offline.distillation.samples import StoreSamples

Facts: TypeAlias = dict[str, Any]
Work: TypeAlias = Callable[[], Facts]

PLANNED, COMMITTED, SEALED = "planned", "committed", "sealed"
"""Folders below the one that is given."""

MEMORY: Final = "memory"
"""Under which facts have the memory of a process that the part began, where it is that one's which counts."""


def plan(folder: Path, rows: int) -> Work:
    """Views drawn, and the store with their plan written; the catalog is in memory."""
    from mvd_offline.planner import make_store

    catalog, recipe = data.catalog(rows), data.recipe()

    def work() -> Facts:
        store = make_store(folder / PLANNED, catalog, recipe.view, recipe.store, data.columns(), {})
        return {"plan_sha256": store.header.plan_sha256, "rows": store.header.rows}

    return work


def seal(folder: Path, rows: int) -> Work:
    """Commit records of both columns to the index."""
    store = open_store(folder / COMMITTED, sealed=False)

    def work() -> Facts:
        store.seal()
        assert store.seal_record is not None
        return {"index_sha256": store.seal_record.sha256, "index_bytes": store.seal_record.size}

    return work


def open_(folder: Path, rows: int) -> Work:
    """A sealed store opened for reading.

    Plan and index are checked against their hashes, the status of every row of both columns is known, the plan is open.
    """

    def work() -> Facts:
        store = open_store(folder / SEALED)
        ok = [int(store.status(name).ok.sum()) for name in store.columns]
        plan = Plan.read(store.plan_path)
        return {"ok": ok, "views": len(plan), "plan_bytes": store.plan_path.stat().st_size, **_index_facts(store)}

    return work


def order(folder: Path, rows: int) -> Work:
    """The order of one epoch of the whole store, which is open."""
    samples = _samples(folder)

    def work() -> Facts:
        rows = samples.order(3)
        return {"rows": len(rows), "order_sha256": _hash(rows)}

    return work


def resume(folder: Path, rows: int) -> Work:
    """What `distill` does with a store before it goes on in the middle of an epoch.

    It opens the store, finds the usable rows, reads what loader processes will share, and goes to its place in the
    epoch's order.
    """
    from mvd_offline.training.feeding import Requests
    from mvd_offline.training.order import BatchShape

    def work() -> Facts:
        samples = _samples(folder)
        names, batch_size = samples.names(), max(1, rows // 1000)
        steps = samples.per_epoch() // batch_size
        requests = Requests(
            order=samples.order,
            shape=BatchShape(batch_size=batch_size, world_size=1, micro_batch_size=batch_size),
            rank=0,
            steps_per_epoch=steps,
            stop_step=10 * steps,
            step=3 * steps + steps // 2,
            epoch=3,
            batch=steps // 2,
        )
        (request,) = islice(requests, 1)
        view = samples.plan[request.rows[0]]
        return {
            "epoch": request.epoch,
            "batch": request.batch,
            "batch_rows_sha256": _hash(np.array(request.rows)),
            "first_view": view.view_id,
            "usable_rows": names["usable_rows"],
        }

    return work


def load(folder: Path, rows: int) -> Work:
    """What a loader process looks up for 1000 rows in random order: their view, their pixels' hash, their place.

    Memory is what the process has for itself; plan and index are its parent's, who read them before it forked.
    """
    samples, store = _samples(folder), open_store(folder / SEALED)
    for name in store.columns:
        store.status(name).load_for_reading()
    wanted = np.random.default_rng(0).permutation(store.ok_rows())[:1000].tolist()

    def in_loader(pipe: Connection) -> None:
        before = _own_mb()
        known = [(samples.plan[row].video_id, store.pixels_of(row).pixels) for row in wanted]
        facts = {"rows": len(known), "known_sha256": hashlib.sha256(repr(known).encode()).hexdigest()}
        pipe.send(json.dumps({**facts, MEMORY: {"start_mb": before, "peak_mb": _own_mb()}}))

    def work() -> Facts:
        receiver, sender = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("fork").Process(target=in_loader, args=(sender,))
        process.start()
        sender.close()
        found: Facts = json.loads(receiver.recv())
        process.join()
        return found

    return work


PARTS: Final[dict[str, Callable[[Path, int], Work]]] = {
    "plan": plan,
    "seal": seal,
    "open": open_,
    "order": order,
    "resume": resume,
    "load": load,
}


def make_committed(folder: Path, rows: int) -> Work:
    return lambda: {"rows": data.committed_store(folder / COMMITTED, rows).header.rows}


def make_sealed(folder: Path, rows: int) -> Work:
    return lambda: {"rows": data.sealed_store(folder / SEALED, rows).header.rows}


MAKERS: Final[dict[str, Callable[[Path, int], Work]]] = {"make-committed": make_committed, "make-sealed": make_sealed}


def _samples(folder: Path) -> StoreSamples:
    from mvd_offline.distillation.samples import StoreSamples

    return StoreSamples(data.recipe(), open_store(folder / SEALED))


def _index_facts(store: Store) -> Facts:
    assert store.seal_record is not None
    return {"index_bytes": store.seal_record.size, "index_sha256": store.seal_record.sha256}


def _hash(rows: NDArray[np.int64]) -> str:
    return hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()


def _own_mb() -> float:
    """What of this process's memory no other process shares, 10^6 bytes."""
    own: int = psutil.Process().memory_full_info().uss
    return own / 1e6


def memory_mb() -> tuple[float, float]:
    """Resident memory of this process now, and the most it ever had, 10^6 bytes."""
    status = Path("/proc/self/status")
    if not status.exists():
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
        return peak, peak
    # The system's `ru_maxrss` counts the process that started this one as well, until this program is loaded.
    lines = dict(line.split(":", 1) for line in status.read_text(encoding="ascii").splitlines())
    now, most = (int(lines[name].split()[0]) * 1024 / 1e6 for name in ("VmRSS", "VmHWM"))
    return now, most


def main(part: str, folder: str, rows: str) -> None:
    make = {**PARTS, **MAKERS}[part]
    work = make(Path(folder), int(rows))
    before, _ = memory_mb()
    start, cpu = time.perf_counter(), time.process_time()
    facts = work()
    times = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
    memory = facts.pop(MEMORY, {"start_mb": before, "peak_mb": memory_mb()[1]})
    found = {**times, **memory, "facts": facts}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
