"""Kill a real distillation with SIGKILL at random moments of its life, go on, and compare it with one left in peace.

    python tests/benchmarks/crash_training.py --kills 20 --seed 0

A run is killed, started again, killed again, until it comes to its end; then its losses (metrics.jsonl, but for times),
its student and the student's average must be those of the uninterrupted run, bit for bit, and no temporary file may be
left; and a new run is begun. Prints a table; ends with status 1 when anything failed.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

TESTS = Path(__file__).parent.parent
sys.path[:0] = [str(TESTS / "e2e")]

from small_runs import command, descendants, make_store, metrics, started, wait_until, write_recipe  # noqa: E402

STAGES = ("start-up", "training", "saving", "after the last checkpoint")
FINISHED = "finished before its kill"
STEPS, EVERY = 60, 4
# Two steps an epoch and two leftovers that join the next one; lines and checkpoints never fall together for long.
CHANGES = {
    "ema.decay": 0.9,
    "quirks.leftover_micro_batch": 2,
    "optim.batch_size": 5,
    "optim.micro_batch_size": 5,
    "optim.epochs": STEPS // 2,
    "training.log_every_steps": EVERY,
    "training.checkpoint_every_epochs": 1.5,
    "training.workers": 1,
}


@dataclass
class Tally:
    """What happened to the killed runs."""

    stages: Counter[str] = field(default_factory=Counter)
    completed: int = 0
    lost_steps: int = 0
    failures: list[str] = field(default_factory=list)

    def table(self) -> str:
        rows = [
            ("kills", sum(self.stages[stage] for stage in STAGES)),
            *((f"hit in: {stage}", self.stages[stage]) for stage in STAGES),
            (f"launches that {FINISHED.replace('its', 'their')}", self.stages[FINISHED]),
            ("logged steps that were done again", self.lost_steps),
            ("runs completed", self.completed),
            ("equal to the uninterrupted run", self.completed - sum("differs" in f for f in self.failures)),
            ("failures", len(self.failures)),
        ]
        return "\n".join(["| distill | |", "|---|---:|", *(f"| {name} | {value} |" for name, value in rows)])


@dataclass(frozen=True)
class Subject:
    """The uninterrupted run, the command that made it, and how long it took to start and from line to line."""

    recipe: Path
    store: Path
    whole: Path
    start_seconds: float
    line_seconds: float

    def launch(self, folder: Path) -> list[str]:
        return distillation(self.recipe, self.store, folder)

    def differences(self, folder: Path) -> list[str]:
        found = [] if metrics(folder) == metrics(self.whole) else ["metrics.jsonl differs"]
        for name in ("student.safetensors", "student_ema.safetensors"):
            same = (folder / name).read_bytes() == (self.whole / name).read_bytes()
            found += [] if same else [f"{name} differs"]
        return found + [f"{name} was left behind" for name in temporary(folder)]


def distillation(recipe: Path, store: Path, folder: Path) -> list[str]:
    return command("distill", recipe, "--store", store, "--run", folder)


def temporary(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob(".tmp-*")]


def size_of_metrics(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.stat().st_size if path.exists() else 0


def prepare(folder: Path) -> Subject:
    make_store(folder / "data")
    recipe, store, whole = write_recipe(folder / "recipe.yaml", CHANGES), folder / "data" / "store", folder / "whole"
    began = time.monotonic()
    with started(distillation(recipe, store, whole), folder / "whole.log") as process:
        assert wait_until(lambda: size_of_metrics(whole), seconds=120), (folder / "whole.log").read_text()
        at_work = time.monotonic()
        assert process.wait(300) == 0, (folder / "whole.log").read_text()
    assert metrics(whole)[-1]["step"] == STEPS
    ended = time.monotonic()
    return Subject(recipe, store, whole, at_work - began, (ended - at_work) / (STEPS // EVERY))


def kill_at_random(subject: Subject, folder: Path, draw: random.Random, tally: Tally, what: str) -> bool:
    """One launch and one kill, while it starts or after a line of its work; False when it came to its end first."""
    share, before, log = draw.random(), size_of_metrics(folder), folder.parent / "log"
    target = 0 if draw.random() < 0.3 else draw.randint(last_checkpoint(folder), STEPS)
    with started(subject.launch(folder), log) as process:
        # The size changes with the first line, or before, when the lines after the last checkpoint are cut off.
        while target and process.poll() is None and (size_of_metrics(folder) == before or last_line(folder) < target):
            time.sleep(0.002)
        try:
            process.wait(share * (subject.line_seconds if target else subject.start_seconds))
        except subprocess.TimeoutExpired:
            process.kill()
        status = process.wait(120)
        if not wait_until(lambda: not descendants(process.mark), seconds=20, step=0.05):  # type: ignore[attr-defined]
            tally.failures.append(f"{what}: processes outlived the killed run")
    if status == -signal.SIGKILL:
        tally.stages[stage_of(folder, before)] += 1
        tally.lost_steps += max(0, last_line(folder) - last_checkpoint(folder))
        return True
    tally.stages[FINISHED] += 1
    if status != 0:
        tally.failures.append(f"{what}: ended with status {status}: {log.read_text()}")
    return False


def stage_of(folder: Path, before: int) -> str:
    """What a run was at when it was killed, by the traces that it left."""
    if last_checkpoint(folder) == STEPS:
        return "after the last checkpoint"
    if temporary(folder):
        return "saving"
    return "training" if size_of_metrics(folder) > before else "start-up"


def last_checkpoint(folder: Path) -> int:
    return max((int(path.name.removeprefix("step-")) for path in folder.glob("checkpoints/step-*")), default=0)


def last_line(folder: Path) -> int:
    whole_lines = (folder / "metrics.jsonl").read_text().count("\n") if size_of_metrics(folder) else 0
    return whole_lines * EVERY


def at_random_moments(subject: Subject, work: Path, kills: int, draw: random.Random) -> Tally:
    tally, folder, done = Tally(), work / "run", 0
    while done < kills or folder.exists():
        what = f"kill {done}"
        if done < kills:
            killed = kill_at_random(subject, folder, draw, tally, what)
            done += killed
        else:
            log = work / "last.log"
            with started(subject.launch(folder), log) as process:
                if process.wait(300) != 0:
                    tally.failures.append(f"the last launch failed: {log.read_text()}")
            killed = False
        if not killed and folder.exists():
            tally.completed += 1
            tally.failures += [f"before {what}: {text}" for text in subject.differences(folder)]
            shutil.rmtree(folder)
        sys.stderr.write(f"{time.strftime('%H:%M:%S')} {what}: {dict(tally.stages)}\n")
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subject = prepare(folder)
        tally = at_random_moments(subject, folder, given.kills, random.Random(given.seed))
    sys.stdout.write(f"\n{tally.table()}\n")
    start, line = subject.start_seconds, subject.line_seconds
    sys.stdout.write(
        f"\nThe uninterrupted run took {start:.1f} s to its first line, and {line:.2f} s for each further.\n"
    )
    sys.stdout.write("".join(f"FAILED {failure}\n" for failure in tally.failures))
    return int(bool(tally.failures))


if __name__ == "__main__":
    sys.exit(main())
