"""Nothing in a store depends on a clock: another host's may be an hour off."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_runs import command, contents, make_store, once, write_recipe

import mvd_offline.shards

HOUR = 3600.0

SHIFTED_CLOCK = """
import os, time
shift = float(os.environ["SHIFT_SECONDS"])
now, now_ns = time.time, time.time_ns
time.time = lambda: now() + shift
time.time_ns = lambda: now_ns() + int(shift * 1e9)
"""

SHARDS = sorted(Path(mvd_offline.shards.__file__).parent.glob("*.py"))


def clock_readings(tree: ast.AST) -> list[str]:
    """What a module does with clocks or with the times of files; waiting is no reading."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name == "datetime"]
        elif isinstance(node, ast.ImportFrom) and node.module in ("time", "datetime"):
            found.append(ast.unparse(node))
        elif isinstance(node, ast.Attribute):
            text, attribute = ast.unparse(node), node.attr
            clock = text.startswith("time.") and attribute != "sleep"
            if (
                clock
                or attribute == "utime"
                or attribute.startswith(("st_mtime", "st_ctime", "st_atime", "st_birthtime"))
            ):
                found.append(text)
    return found


def test_the_store_asks_no_clock() -> None:
    assert set(clock_readings(ast.parse("import time, datetime\nx = time.time()\ny = os.stat(p).st_mtime_ns"))) == {
        "datetime",
        "time.time",
        "os.stat(p).st_mtime_ns",
    }
    assert len(SHARDS) > 10
    assert {path.name: found for path in SHARDS if (found := clock_readings(ast.parse(path.read_text())))} == {}


def test_hosts_whose_clocks_differ_by_two_hours_make_the_same_store(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    made = once(tmp_path_factory, "store", make_store)
    store, recipe = tmp_path / "store", write_recipe(tmp_path / "recipe.yaml")
    (tmp_path / "sitecustomize.py").write_text(SHIFTED_CLOCK)

    def on_a_host(shift: float, words: list[str]) -> str:
        path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
        changes = {"PYTHONPATH": path, "SHIFT_SECONDS": str(shift), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
        done = subprocess.run(words, capture_output=True, text=True, env=os.environ | changes, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    told = float(on_a_host(HOUR, [sys.executable, "-c", "import time; print(time.time())"]))
    assert told == pytest.approx(time.time() + HOUR, abs=60), "the clock is not shifted"

    on_a_host(HOUR, command("plan", recipe, "--videos", made / "catalog.parquet", "--store", store))
    abandoned = store / "image" / ".tmp-c.0.0.0-00000000"
    abandoned.write_bytes(b"half")
    for path in store.rglob("*"):
        os.utime(path, (time.time() + HOUR, time.time() + HOUR))
    on_a_host(-HOUR, command("extract", store, "--workers", "1"))

    assert contents(store) == contents(made / "store")
    assert not abandoned.exists()
