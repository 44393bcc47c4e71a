"""Kill real extractions with SIGKILL, at random moments or at every call of a commit, and look at what is left.

    python tests/benchmarks/crash.py --kills 100 --seed 0
    python tests/benchmarks/crash.py --every-step

After each kill: no process stays, what can be read is what a finished store holds, and verification finds no damage.
The next run goes on from there; each finished store is compared, byte for byte, with one that was made in one go, and
then a new one is begun. Prints a table for each container; ends with status 1 when anything failed.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

TESTS = Path(__file__).parent.parent
sys.path[:0] = [str(TESTS / "e2e"), str(TESTS / "crash")]

from file_calls import struck_command  # noqa: E402
from remains import committed_shards, damage, temporary_files, wrong_rows  # noqa: E402
from small_runs import command, contents, descendants, make_videos, plan_small, run, started, wait_until  # noqa: E402

STAGES = ("start-up", "decoding, writing", "commit", "between shards", "seal", "after the seal")
FINISHED = "finished before its kill"


@dataclass
class Tally:
    """What happened to the extractions into one kind of store."""

    stages: Counter[str] = field(default_factory=Counter)
    completed: int = 0
    failures: list[str] = field(default_factory=list)

    def table(self, container: str) -> str:
        rows = [
            ("kills", sum(self.stages[stage] for stage in STAGES)),
            *((f"hit in: {stage}", self.stages[stage]) for stage in STAGES),
            (f"runs that {FINISHED.replace('its', 'their')}", self.stages[FINISHED]),
            ("stores completed", self.completed),
            ("byte-identical to one made in one go", self.completed - sum("differs" in f for f in self.failures)),
            ("failures", len(self.failures)),
        ]
        return "\n".join([f"| {container} | |", "|---|---:|", *(f"| {name} | {value} |" for name, value in rows)])


@dataclass(frozen=True)
class Subject:
    """A planned store, the same when finished, and how long an extraction takes until it has sealed it."""

    container: str
    planned: Path
    finished: Path
    work: Path
    life_seconds: float
    work_seconds: float

    def check(self, store: Path, tally: Tally, what: str) -> None:
        """Nothing wrong may be readable."""
        problems = wrong_rows(store, self.finished) + damage(store)
        tally.failures += [f"{what}: {problem}" for problem in problems]

    def check_completed(self, store: Path, tally: Tally, what: str) -> None:
        tally.completed += 1
        if contents(store) != contents(self.finished):
            tally.failures.append(f"{what}: the completed store differs from one made in one go")
        tally.failures += [f"{what}: {name} was left behind" for name in temporary_files(store)]


def extraction(store: Path) -> list[str]:
    return command("extract", store, "--workers", "1")


@contextmanager
def victim(words: list[str], log: Path, tally: Tally) -> Iterator[subprocess.Popen[bytes]]:
    """An extraction; none of its processes may outlive it for long."""
    with started(words, log) as process:
        yield process
        process.wait(120)
        if not wait_until(lambda: not descendants(process.mark), seconds=10, step=0.05):  # type: ignore[attr-defined]
            tally.failures.append(f"{log.name}: processes outlived the killed extraction")


def prepare(folder: Path, container: str, catalog: Path) -> Subject:
    planned = plan_small(catalog, folder / "planned", {"store.container": container})
    finished = folder / "finished"
    shutil.copytree(planned, finished)
    began = time.monotonic()
    with started(extraction(finished), folder / "log") as process:
        wait_until(lambda: temporary_files(finished), seconds=60)
        at_work = time.monotonic()
        wait_until((finished / "commits" / "index.json").exists, seconds=60)
        sealed = time.monotonic()
        assert process.wait(120) == 0, (folder / "log").read_text()
    return Subject(container, planned, finished, folder, sealed - began, sealed - at_work)


# ---- random moments ----------------------------------------------------------------------------------------------


def at_random_moments(subject: Subject, kills: int, draw: random.Random) -> Tally:
    """Kill until there were `kills`; half of them anywhere, half after the first file was begun."""
    tally, store, done = Tally(), subject.work / "store", 0
    shutil.copytree(subject.planned, store)
    while done < kills:
        what = f"{subject.container} kill {done}"
        if kill_at_random(store, subject, draw, tally, what):
            done += 1
            subject.check(store, tally, what)
        if (store / "commits" / "index.json").exists():  # nothing is left to do: a new one
            subject.check_completed(store, tally, what)
            shutil.rmtree(store)
            shutil.copytree(subject.planned, store)
        show(f"{what}: {dict(tally.stages)}")
    run(extraction(store), subject.work / "last.log")
    subject.check_completed(store, tally, "the last run")
    return tally


def kill_at_random(store: Path, subject: Subject, draw: random.Random, tally: Tally, what: str) -> bool:
    """One run and one kill; False when the run came to its end first."""
    from_start, share = draw.random() < 0.5, draw.random()
    before, old = committed_shards(store), set(temporary_files(store))
    with victim(extraction(store), subject.work / "kill.log", tally) as process:
        if not from_start:
            wait_until(lambda: set(temporary_files(store)) - old or process.poll() is not None, seconds=120)
        try:
            process.wait(share * (subject.life_seconds if from_start else subject.work_seconds))
        except subprocess.TimeoutExpired:
            process.kill()
        status = process.wait(60)
        if status == -signal.SIGKILL:
            tally.stages[stage_of(store, subject, before, old)] += 1
            return True
    tally.stages[FINISHED] += 1
    if status != 0:
        tally.failures.append(f"{what}: ended with status {status}: {(subject.work / 'kill.log').read_text()}")
    return False


def stage_of(store: Path, subject: Subject, before: int, old: set[str]) -> str:
    """What a run was at when it was killed, by the traces that it left."""
    new, records = set(temporary_files(store)) - old, committed_shards(store)
    if (store / "commits" / "index.json").exists():
        return "after the seal"
    if records == committed_shards(subject.finished):
        return "seal"
    files = sum(path.name.startswith("c.") or path.suffix == ".tar" for path in store.glob("*/*"))
    if any(name.startswith("commits/") for name in new) or files > records:
        return "commit"
    if new:
        return "decoding, writing"
    return "between shards" if records > before else "start-up"


# ---- every step --------------------------------------------------------------------------------------------------


def at_every_step(subject: Subject) -> Tally:
    """Kill once before, and once half-way through, each call by which shard 2 of both columns is committed."""
    tally, trace = Tally(), subject.work / "trace.json"
    store = subject.work / "traced"
    shutil.copytree(subject.planned, store)
    run(struck_command(store, "--trace", str(trace)), subject.work / "trace.log")
    texts: list[str] = json.loads(trace.read_text())
    first = next(number for number, text in enumerate(texts) if is_of_shard(text, 2))
    last = max(number for number, text in enumerate(texts) if is_of_shard(text, 2))
    for number in range(first, last + 2):
        for moment in ("before", "half") if texts[number].startswith("write") else ("before",):
            what = f"{subject.container} call {number} ({texts[number]}), {moment}"
            strike(subject, number, moment, tally, what)
            show(what)
    return tally


def is_of_shard(text: str, shard: int) -> bool:
    return any(name in text for name in (f"/c.{shard}.", f"/{shard:06d}.tar", f"/{shard:06d}.json"))


def strike(subject: Subject, number: int, moment: str, tally: Tally, what: str) -> None:
    store = subject.work / "struck"
    shutil.rmtree(store, ignore_errors=True)
    shutil.copytree(subject.planned, store)
    words = struck_command(store, "--at", str(number), "--moment", moment)
    with victim(words, subject.work / "struck.log", tally) as process:
        status = process.wait(120)
    if status != -signal.SIGKILL:
        tally.failures.append(f"{what}: not killed, status {status}")
    tally.stages["commit"] += 1
    subject.check(store, tally, what)
    run(extraction(store), subject.work / "resumed.log")
    subject.check_completed(store, tally, what)


def show(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="of all containers together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--containers", nargs="+", default=["zarr", "tar"])
    parser.add_argument("--every-step", action="store_true", help="at each call of a commit instead of at random")
    given = parser.parse_args()

    failed = False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_videos(folder / "videos")
        for place, container in enumerate(given.containers):
            (folder / container).mkdir()
            subject = prepare(folder / container, container, folder / "videos" / "catalog.parquet")
            kills = (given.kills + place) // len(given.containers)
            draw = random.Random(f"{given.seed} {container}")
            tally = at_every_step(subject) if given.every_step else at_random_moments(subject, kills, draw)
            sys.stdout.write(f"\n{tally.table(container)}\n")
            sys.stdout.write("".join(f"FAILED {failure}\n" for failure in tally.failures))
            sys.stdout.flush()
            failed |= bool(tally.failures)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
