"""Damage to a store, thousands of times: is all of it found, is nothing false ever read, does the repair heal it?

Each try damages one thing in a copy of a store, reads every row, checks and repairs the store (`verify --level full
--repair`), makes again what was put aside, and compares all files with those of before.
"""

from __future__ import annotations

import hashlib
import io
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mvd_offline.bench.damage import Damage, copy_over
from mvd_offline.bench.measure import machine
from mvd_offline.errors import UsageError
from mvd_offline.progress import WorkProgress
from mvd_offline.shards.codecs import CODECS, CodingError, get_codec
from mvd_offline.shards.containers import CONTAINERS
from mvd_offline.shards.creation import LOCAL_FILE
from mvd_offline.shards.errors import MissingRowError, MvdError
from mvd_offline.shards.repair import Repaired, repair
from mvd_offline.shards.schema import CLIPS, QUARANTINE, ColumnSpec, StoreHeader
from mvd_offline.shards.store import Store, create_store, open_store
from mvd_offline.shards.verify import verify

MOST_BYTES: Final = 256 << 20
"""Of a store given: every try reads all of it several times."""


@dataclass
class Tally:
    """What became of the tries on one kind of bytes."""

    tried: int = 0
    found: int = 0
    """By `verify` at level full."""
    healed: int = 0
    """Byte for byte as before, after `verify --repair` and making shards again."""
    rows: Counter[str] = field(default_factory=Counter)
    """Reads of a row by outcome: see `Reads.row`."""


@dataclass
class CorruptionReport:
    """`failures` says what went wrong and how to repeat it; none when all is as it should be."""

    seed: int
    tries: int
    seconds: float
    kinds: dict[str, Tally]
    failures: list[str]
    machine: dict[str, Any]

    @property
    def total(self) -> Tally:
        """Of all kinds of bytes."""
        total = Tally()
        for tally in self.kinds.values():
            total.tried += tally.tried
            total.found += tally.found
            total.healed += tally.healed
            total.rows += tally.rows
        return total

    def to_json(self) -> dict[str, Any]:
        kinds = {kind: {**vars(tally), "rows": dict(tally.rows)} for kind, tally in self.kinds.items()}
        return {**vars(self), "kinds": kinds}


def damage_and_look(tries: int, seed: int, *, store: Path | None = None, quiet: bool = False) -> CorruptionReport:
    """Damage a store `tries` times: a copy of `store`, or one that is made for it with every container and codec.

    Raises:
        UsageError: the store is too large to be copied and read that often.
    """
    began = time.perf_counter()
    report = CorruptionReport(seed, tries, 0.0, {}, [], machine())
    with tempfile.TemporaryDirectory(prefix="mvd-corruption-", dir=_memory()) as folder:
        pristine = _checked(store) if store else make_store(Path(folder) / "made")
        trial = Trial(pristine, Path(folder) / "damaged")
        cases = trial.damage.cases
        with WorkProgress("bench corruption", tries, unit="tries", enabled=not quiet) as progress:
            for number in range(tries):
                kind, act = cases[number % len(cases)]
                tally = report.kinds.setdefault(kind, Tally())
                report.failures += trial.run(kind, act, random.Random(f"{seed} {number}"), tally)
                progress.reach(number + 1, f"{len(report.failures)} failures")
    report.kinds = dict(sorted(report.kinds.items()))
    report.seconds = time.perf_counter() - began
    return report


def _memory() -> str | None:
    """A folder in memory, where flushing costs nothing."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def _checked(root: Path) -> Store:
    store = open_store(root)
    size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    if size > MOST_BYTES:
        raise UsageError(
            f"{root} holds {size / 1e6:.0f} MB; every try reads all of it several times, so at most "
            f"{MOST_BYTES / 1e6:.0f} MB are allowed. Leave STORE out, and a small store is made for it."
        )
    if not verify(root, "full").ok:
        raise UsageError(f"{root} is damaged already: run `mvd-offline shards verify {root} --level full`.")
    return store


class Trial:
    """One store, and a copy of it that is damaged and healed again and again."""

    def __init__(self, pristine: Store, root: Path) -> None:
        self.damage = Damage(pristine, root)
        self._pristine, self._root = pristine, root
        self._reads = Reads(pristine)
        self._start_over()
        self._files = _digests(root)

    def _start_over(self) -> None:
        copy_over(self._pristine.root, self._root)
        shutil.rmtree(self._root / QUARANTINE, ignore_errors=True)

    def run(self, kind: str, act: str, draw: random.Random, tally: Tally) -> list[str]:
        """One try; counts it and returns what went wrong."""
        done = self.damage.strike(kind, act, draw)
        wrong = []
        for outcome, detail in self._reads.all_of(self._root):
            tally.rows[outcome] += 1
            if outcome not in ("right", "refused"):
                wrong.append(f"{outcome}: {detail}")
        tally.tried += 1
        try:
            report, repaired = repair(self._root, "full")
            tally.found += not report.ok
            if report.ok:
                wrong.append("not found by verify")
            if self._heal(repaired):
                tally.healed += 1
            else:
                wrong.append("not healed by the repair")
        except Exception as error:
            wrong.append(f"verify or repair crashed: {error!r}")
        if wrong:
            self._start_over()
        return [f"{kind}, {act}: {done}: {problem}" for problem in wrong]

    def _heal(self, repaired: Repaired) -> bool:
        """Do what the repair leaves to do, and make again what it put aside; is the store what it was?"""
        if repaired.remaining:
            for name in ("store.json", "plan.parquet"):  # restored from a copy
                (self._root / name).write_bytes((self._pristine.root / name).read_bytes())
            repair(self._root, "full")
        store = open_store(self._root, sealed=False)
        for column in store.columns:
            for shard in store.pending(column):
                store.settle(column, shard)
                if not store.is_committed(column, shard):
                    remake(store, self._pristine, column, shard)
        if not store.sealed:
            store.seal()
        shutil.rmtree(self._root / QUARANTINE, ignore_errors=True)
        return _digests(self._root) == self._files


def remake(store: Store, pristine: Store, column: str, shard: int) -> None:
    """Write a shard as extraction did, with the rows of a store that is whole."""
    record = pristine.record(column, shard)
    with store.write_shard(column, shard, producer=record.producer) as writer:
        for row in record.rows:
            if row.status == "ok":
                writer.keep(row, pristine.read_payloads(column, [row.view_id])[0])
            else:
                writer.fail(row.view_id, row.status, row.detail)


def _digests(root: Path) -> dict[str, str]:
    """Every file of a store, but for the notes about this machine."""
    files = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items() if name != LOCAL_FILE}


# ---- reading -----------------------------------------------------------------------------------------------------


class Reads:
    """Reads a damaged copy of a store, and knows what should come."""

    def __init__(self, pristine: Store) -> None:
        self._wanted = {
            (column, view): pristine.read_coded(column, [view]).tobytes() if pristine.status(column).ok[view] else None
            for column in pristine.columns
            for view in pristine.view_ids.tolist()
        }
        self._places = {
            (column, view): (pristine.shard_path(column, shard).relative_to(pristine.root), pristine)
            for column, view in self._wanted
            for shard in (view // pristine.header.rows_per_shard,)
        }

    def all_of(self, root: Path) -> Iterator[tuple[str, str]]:
        """(outcome, detail) of the read of each row, and of batches that are wrong.

        `right`; `refused`, with an error that says what to do; and what must never be: `silent` (other values),
        `refused without need`, `unnamed` (an error that does not say where and what to do), `crashed`.
        """
        try:
            store = open_store(root)
        except MvdError as error:
            outcome = "refused" if "mvd-offline" in str(error) else "unnamed"
            yield from ((outcome, str(error)) for _ in self._wanted)
            return
        except Exception as error:
            yield "crashed", repr(error)
            return
        for column, view in self._wanted:
            yield self._row(store, column, view)
        for column in store.columns:
            yield from self._batch(store, column)

    def _row(self, store: Store, column: str, view: int) -> tuple[str, str]:
        wanted, where = self._wanted[column, view], f"column {column}, row {view}"
        try:
            read = store.read_coded(column, [view]).tobytes()
        except MissingRowError as error:
            return ("right", "") if wanted is None else ("refused without need", str(error))
        except MvdError as error:
            if wanted is None or self._is_whole(store.root, column, view):
                return "refused without need", str(error)
            shard = view // store.header.rows_per_shard
            named = (
                f"column {column}, shard {shard}, row {view}",
                f"mvd-offline shards verify {store.root}",
                "--repair",
            )
            return ("refused" if all(text in str(error) for text in named) else "unnamed"), str(error)
        except Exception as error:
            return "crashed", f"{where}: {error!r}"
        return ("right", "") if read == wanted else ("silent", where)

    def _batch(self, store: Store, column: str) -> Iterator[tuple[str, str]]:
        """All rows of a column at once: neighbours are read together."""
        views = [view for name, view in self._wanted if name == column and self._wanted[name, view] is not None]
        try:
            read = store.read_coded(column, views)
        except MvdError:
            return  # row by row it was looked at above
        for view, row in zip(views, read, strict=True):
            if row.tobytes() != self._wanted[column, view]:
                yield "silent", f"column {column}, row {view}, in a batch"

    def _is_whole(self, root: Path, column: str, view: int) -> bool:
        """Whether the file still holds the payload in its place."""
        path, pristine = self._places[column, view]
        start = int(pristine.status(column).offset[view])
        (payload,) = pristine.read_payloads(column, [view])
        data = (root / path).read_bytes() if (root / path).is_file() else b""
        return data[start : start + payload.nbytes] == payload


# ---- a store to damage -------------------------------------------------------------------------------------------


ROWS_PER_SHARD: Final = 4
VIEWS: Final = (0, 1, 2, 3, 4, 5, 6, 8, 9, 10)
"""Three shards; row 7 is a gap, the last shard is short."""
FAILED: Final = {2: "unreadable", 9: "timeout"}
CLIPS_CODEC: Final = "jpeg-90-444"


def make_store(root: Path, *, tokens: int = 6, width: int = 5) -> Store:
    """A sealed store with a column for each container and codec, clips too, rows that failed, a gap and a short last
    shard."""
    views = np.array(VIEWS, np.int64)
    plan = io.BytesIO()
    pq.write_table(pa.table({"view_id": views, "shard": (views // ROWS_PER_SHARD).astype(np.int32)}), plan)
    columns = [
        ColumnSpec(f"{container}_{codec}", tokens, width, codec, container, {"kind": "drawn"})
        for container in CONTAINERS
        for codec in CODECS
    ]
    columns += [
        ColumnSpec(f"{container}_{CLIPS}", tokens=2, width=16, codec=CLIPS_CODEC, container=container, source={})
        for container in CONTAINERS
    ]
    header = StoreHeader(
        plan_sha256=hashlib.sha256(plan.getvalue()).hexdigest(),
        rows=VIEWS[-1] + 1,
        rows_per_shard=ROWS_PER_SHARD,
        batch_rows=2,
        grid=(1, 1, tokens),
        view={},
        columns={column.name: column for column in columns},
    )
    store = create_store(root, header, plan.getvalue())
    for name in store.columns:
        for shard in range(store.shard_count):
            _fill(store, name, shard)
    store.seal()
    return store


def _fill(store: Store, column: str, shard: int) -> None:
    spec = store.header.columns[column]
    with store.write_shard(column, shard, producer={"device": "drawn"}) as writer:
        for view in store.shard_view_ids(shard).tolist():
            if view in FAILED:
                writer.fail(view, FAILED[view], "drawn")
                continue
            drawn, seen = np.random.default_rng([view, *column.encode()]), {"pixels": f"{view + 1:016x}"}
            packing = get_codec(spec.codec).packing
            if packing is None:
                features = drawn.standard_normal((spec.tokens, spec.width)).astype(np.float32)
                writer.add(view, features, decoder="drawn", **seen)
            else:
                clip = drawn.integers(0, 256, get_codec(spec.codec).shape(spec.tokens, spec.width)).astype(np.uint8)
                writer.add_packed(view, packing.pack(clip), CodingError(0.1, 0.9, 0.9, 9.0), decoder="drawn", **seen)
