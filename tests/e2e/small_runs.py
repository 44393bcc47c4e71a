"""Small stores and runs of the real pipeline, and the real command line, for the end-to-end and crash tests."""

from __future__ import annotations

import copy
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from mvd_offline.cli.main import main
from mvd_offline.planner import plan_store
from mvd_offline.recipe import DistillRecipe, load_distill
from mvd_offline.video.synthetic import synthesize

MVD_OFFLINE = str(Path(sys.executable).parent / "mvd-offline")

# 12 videos, 2 groups: 24 views in 6 shards of each column; 8 tokens a view, of which 6 are masked.
RECIPE: Mapping[str, Any] = {
    "kind": "distill",
    "name": "small",
    "view": {"frames": 4, "stride": 2, "image_size": 32, "groups": 2},
    "teachers": {"image": {"weights": "random:vit_tiny:1"}, "video": {"weights": "random:vit_tiny:2"}},
    "store": {"codec": "float32", "rows_per_shard": 4, "batch_rows": 2},
    "student": {"width": 48, "depth": 2, "heads": 3, "drop_path": 0.3, "decoder": {"depth": 1}},
    "mask": {"kind": "tube", "ratio": 0.75},
    "optim": {
        "epochs": 4,
        "warmup_epochs": 1,
        "batch_size": 4,
        "micro_batch_size": 2,
        "base_lr": 1.0e-3,
        "min_lr": 1.0e-4,
        "lr_reference_batch": 4,
    },
    "training": {
        "workers": 0,
        "log_every_steps": 1,
        "checkpoint_every_epochs": 0.34,
        "pixel_check_fraction": 1.0,
        "tensorboard": False,
    },
}


def recipe_data(changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """`RECIPE` with some values replaced, by dotted path."""
    data = copy.deepcopy(dict(RECIPE))
    for path, value in (changes or {}).items():
        *sections, key = path.split(".")
        node = data
        for section in sections:
            node = node.setdefault(section, {})
        node[key] = value
    return data


def small_recipe(changes: Mapping[str, Any] | None = None) -> DistillRecipe:
    return load_distill(recipe_data(changes))


def write_recipe(path: Path, changes: Mapping[str, Any] | None = None) -> Path:
    path.write_text(yaml.safe_dump(recipe_data(changes)), encoding="utf-8")
    return path


# ---- data that all tests of a session share --------------------------------------------------------------------------


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that is made by the first test that needs it, whichever worker of pytest runs it."""
    base = factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        base = base.parent
    folder, done = base / f"once-{name}", base / f"once-{name}.done"
    with (base / f"once-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            done.touch()
    return folder


def make_videos(folder: Path) -> None:
    """`videos/` with twelve labelled videos, and `catalog.parquet`."""
    synthesize(folder / "videos", videos_per_class=3, classes=4, seed=0, short_side=(40, 56), frames=(10, 24))
    scan_videos(folder / "videos", folder / "catalog.parquet")


def scan_videos(root: Path, catalog: Path) -> None:
    assert main(["videos", "scan", str(root), "--out", str(catalog), "--workers", "1"]) == 0


def plan_small(catalog: Path, store: Path, changes: Mapping[str, Any] | None = None) -> Path:
    plan_store(small_recipe(changes), catalog_path=catalog, store_dir=store)
    return store


def fill(store: Path, *options: str) -> Path:
    """Extract in this process."""
    assert main(["extract", str(store), "--workers", "1", *options]) == 0
    return store


def run_distill(recipe: Path, store: Path, run: Path, *options: str) -> int:
    """Distil in this process; the command's exit status."""
    return main(["distill", str(recipe), "--store", str(store), "--run", str(run), *options])


def make_store(folder: Path) -> None:
    """`videos/`, `catalog.parquet`, and a finished float32 `store` of them."""
    make_videos(folder)
    fill(plan_small(folder / "catalog.parquet", folder / "store"))


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`, without what depends on the machine."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "time"} for line in lines]


def contents(store: Path) -> dict[str, bytes]:
    """Every file of a store, but for the notes about this machine."""
    files = {path.relative_to(store).as_posix(): path for path in store.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in sorted(files.items()) if name != "local.json"}


def file_names(store: Path) -> frozenset[str]:
    """As `contents`, names only: quick, and indifferent to files that come and go meanwhile."""
    return frozenset(
        os.path.relpath(os.path.join(folder, name), store)
        for folder, _, names in os.walk(store)
        for name in names
        if name != "local.json"
    )


# ---- the real command line -------------------------------------------------------------------------------------------

MARK = "MVD_TEST_MARK"


def command(*words: str | Path) -> list[str]:
    return [MVD_OFFLINE, *map(str, words)]


def launched(processes: int, *words: str | Path, program: tuple[str, ...] = ("-m", "mvd_offline")) -> list[str]:
    """The command, or another program, under `accelerate launch`: that many processes, on gloo."""
    port = 20000 + os.getpid() % 20000
    # Its --cpu would start one process, whatever the number; `started` says that the processes run on the CPU.
    options = ["--multi_gpu", "--num_processes", str(processes), "--main_process_port", str(port)]
    # What `accelerate launch` runs, without the imports of accelerate's other commands, which take seconds.
    return [sys.executable, "-m", "accelerate.commands.launch", *options, *program, *map(str, words)]


def side_by_side(*commands: list[str]) -> list[list[str]]:
    """The commands as the processes of one launch, each by itself as Slurm's srun starts them: none ends another."""
    port = 20000 + os.getpid() % 20000
    shared = f"WORLD_SIZE={len(commands)} LOCAL_WORLD_SIZE={len(commands)} MASTER_ADDR=127.0.0.1 MASTER_PORT={port}"
    return [["env", f"RANK={n}", f"LOCAL_RANK={n}", *shared.split(), *words] for n, words in enumerate(commands)]


@contextmanager
def started(arguments: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own, as a shell starts it; nothing of it is alive afterwards."""
    mark = f"{log.name}-{os.getpid()}-{time.monotonic_ns()}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            arguments,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env=os.environ | {MARK: mark, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        )
    process.mark = mark  # type: ignore[attr-defined]
    try:
        yield process
    finally:
        for pid in [process.pid] * (process.poll() is None) + descendants(mark):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        process.wait()


def run(arguments: list[str], log: Path, *, timeout: float = 120.0, ranks: int = 0) -> str:
    """Run to the end; returns what was printed. Fails unless the exit status is 0.

    Args:
        ranks: of a launched command, how many ranks must be seen at work.
    """
    with started(arguments, log) as process:
        if ranks:
            assert wait_until(lambda: len(live_ranks(process.mark)) == ranks, seconds=60, step=0.1), log.read_text()
        status = process.wait(timeout)
    text = log.read_text()
    assert status == 0, text
    return text


def run_side_by_side(processes: int, arguments: list[str], log: Path, *, timeout: float = 120.0) -> str:
    """Run a command as the processes of one launch, to the end of all; returns what the first printed, then the others.

    It spares the launcher where that is not what is tested. Fails unless every exit status is 0.
    """
    logs = [log.with_name(f"{log.name}-{number}") for number in range(processes)]
    with ExitStack() as stack:
        commands = zip(side_by_side(*[arguments] * processes), logs, strict=True)
        together = [stack.enter_context(started(words, its_log)) for words, its_log in commands]
        end = time.monotonic() + timeout
        statuses = [process.wait(max(0.0, end - time.monotonic())) for process in together]
    text = "".join(its_log.read_text() for its_log in logs)
    assert statuses == [0] * processes, text
    return text


def descendants(mark: str) -> list[int]:
    """Live processes that inherited the mark of a started process, itself among them."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:
            continue  # gone meanwhile, or not ours
    return found


def live_ranks(mark: str) -> set[bytes]:
    """Ranks of the processes that a launcher started."""
    found = set()
    for pid in descendants(mark):
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        found |= {entry for entry in environment if entry.startswith(b"RANK=")}
    return found


@contextmanager
def hanging(path: Path) -> Iterator[Callable[[], bool]]:
    """Whoever opens this regular file waits: we hold a lease on it, and do not give it back when asked to.

    Yields a function that tells whether somebody waits. (The system ends the wait after 45 s.)
    """
    ignored = signal.signal(signal.SIGIO, signal.SIG_IGN)  # how the system asks
    handle, locks = os.open(path, os.O_RDWR), Path("/proc/locks")
    place = f":{path.stat().st_ino} "
    try:
        try:
            fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except OSError as error:
            pytest.skip(f"this file system knows no leases, so that no file can be made to hang: {error}")
        yield lambda: any("BREAKING" in line and place in line for line in locks.read_text().splitlines())
    finally:
        os.close(handle)
        signal.signal(signal.SIGIO, ignored)


def wait_until(condition: Callable[[], object], *, seconds: float, step: float = 0.002) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(step)
    return bool(condition())
