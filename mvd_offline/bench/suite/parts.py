"""What `bench all` runs: one command each, in a process of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

PARTS: Final[Mapping[str, str]] = {
    "step": "A step with online and with cached targets",
    "official-like": "Our step beside the structure of the official loop, data in memory",
    "pipeline": "A training fed from disk beside the same steps from memory",
    "extraction": "An extraction beside its teachers alone",
    "planner": "What `plan --measure` predicts beside what happens",
    "clips": "Loading a clip from its video and from the store",
    "codecs": "What each codec makes of features",
    "read": "Reading rows beside other formats",
    "growth": "Cost against the number of views",
}


@dataclass(frozen=True)
class Sizes:
    """How much each benchmark does."""

    videos: int
    """Of each of 16 classes."""
    short_side: int
    """Pixels of the videos."""
    frames: int
    batch: int
    steps: int
    rounds: int
    extracted: int
    read_rows: int
    read_tokens: int
    growth_rows: tuple[int, ...]


ON_CPU: Final = Sizes(
    videos=1,
    short_side=256,
    frames=200,
    batch=2,
    steps=4,
    rounds=3,
    extracted=8,
    read_rows=256,
    read_tokens=1568,
    growth_rows=(1_000, 10_000, 100_000, 1_000_000),
)
ON_GPU: Final = replace(ON_CPU, videos=8, batch=32, steps=10, extracted=128)
QUICK: Final = Sizes(
    videos=2,
    short_side=64,
    frames=48,
    batch=2,
    steps=1,
    rounds=1,
    extracted=4,
    read_rows=32,
    read_tokens=4,
    growth_rows=(1_000,),
)


@dataclass(frozen=True)
class Material:
    """What the benchmarks work on."""

    recipe: Path
    catalog: Path
    store: Path
    sizes: Sizes
    threads: int
    """Of torch, in every process; a loader has one process, so that two cores are enough for one thread."""
    folder: Path
    """For what they write and remove again: it decides the disk."""

    def command(self, part: str) -> list[str]:
        """Arguments of `mvd-offline` for a part."""
        sizes, threads = self.sizes, ["--threads", str(self.threads)]
        rounds, of_store = ["--rounds", str(sizes.rounds)], ["--store", str(self.store)]
        in_turn = ["--steps", str(sizes.steps), *rounds, "--batch", str(sizes.batch), *threads]
        own: dict[str, list[str]] = {
            "step": [*of_store, "--steps", str(sizes.steps), "--batch-size", str(sizes.batch), *threads],
            "official-like": ["--steps", "1", *rounds, "--batch", str(sizes.batch), *threads],
            "pipeline": [*of_store, *in_turn, "--set", "training.workers=1"],
            "extraction": [str(self.store), "--rows", str(sizes.extracted), *rounds, *threads],
            "planner": ["--videos", str(self.catalog)],
            "clips": [str(self.store), *rounds],
            "codecs": [str(self.store), "--recipe", str(self.recipe), "--clips", str(sizes.batch)],
            "read": [
                *("--rows", str(sizes.read_rows), "--tokens", str(sizes.read_tokens)),
                *("--repeats", str(sizes.rounds), "--workers", "0,2", "--out", str(self.folder), *threads),
            ],
            "growth": ["--rows", ",".join(map(str, sizes.growth_rows))],
        }
        recipe = [str(self.recipe)] if part in ("step", "official-like", "pipeline", "planner") else []
        return ["bench", part, *recipe, *own[part], "--json"]
