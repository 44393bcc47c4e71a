"""Where the hours of a student went: into its teachers, into the extraction of their targets, into its own training.

`report.json` in the run's folder holds them, beside what the same training would have taken with online teachers (the
accounting of the paper's table 7). Hours are hours of one device, so that runs on any number of devices compare.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import Accelerator

from mvd_offline.local import ExtractionTime, read_local
from mvd_offline.recipe import DistillRecipe
from mvd_offline.shards.atomic import publish_bytes

REPORT_FILE: Final = "report.json"


@dataclass(frozen=True)
class Launch:
    """A part of a run: what trained its steps after `after_step`."""

    after_step: int
    device: str
    processes: int


@dataclass(frozen=True)
class TrainingTime:
    """Measured. Steps that a kill lost are not in it: they were done again."""

    steps: int
    clips: int
    seconds: float
    device_seconds: float
    """Times the processes of each launch."""


@dataclass(frozen=True)
class RunReport:
    """The hours of a run; what nothing tells is None."""

    launches: tuple[Launch, ...]
    training: TrainingTime
    extraction_device_seconds: float | None = None
    """Measured: of every extraction into the stores that the run read, interrupted ones included; of extractions that
    filled other columns too, the share that the active teachers took."""
    extraction_devices: tuple[str, ...] = ()
    teachers_device_seconds: Mapping[str, float | None] | None = None
    """Measured: of the pretraining of each active teacher, where it is a run of this program on this machine."""
    online_device_seconds: float | None = None
    """Estimated for cached targets: the measured training, and the measured time of the active teachers per clip for
    every clip. Measured for online ones."""
    online_is_measured: bool = False

    @property
    def speedup(self) -> float | None:
        """Online over cached, the extraction included."""
        if self.online_is_measured or self.online_device_seconds is None or self.extraction_device_seconds is None:
            return None
        return self.online_device_seconds / (self.training.device_seconds + self.extraction_device_seconds)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "speedup": self.speedup}


def begin_launch(run: Path, accelerator: Accelerator) -> None:
    """Note in the run's report who goes on with it; one process of a launch calls it, before it trains."""
    step = max((int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*")), default=0)
    on_gpu = accelerator.device.type == "cuda"
    device = torch.cuda.get_device_name(accelerator.device) if on_gpu else accelerator.device.type
    # What a launch did after this step is lost, and done again by this one.
    launches = [launch for launch in _launches(run) if launch.after_step < step]
    _publish(run, {"launches": [asdict(one) for one in (*launches, Launch(step, device, accelerator.num_processes))]})


def write_report(run: Path, batch_size: int) -> RunReport:
    """The report of a training without teachers."""
    report = RunReport(_launches(run), _training_time(run, batch_size))
    _publish(run, report.to_json())
    return report


def write_distill_report(run: Path, recipe: DistillRecipe, stores: Sequence[Path]) -> RunReport:
    """The report of a distillation from these stores."""
    training = _training_time(run, recipe.optim.batch_size)
    cached = recipe.targets == "cached"
    taken = [one for store in stores for one in read_local(store).extractions.values()] if cached else []
    online = _online_seconds(recipe, training, taken) if cached else training.device_seconds
    report = RunReport(
        launches=_launches(run),
        training=training,
        extraction_device_seconds=sum(_active_seconds(recipe, one) for one in taken) if taken else None,
        extraction_devices=tuple(sorted({one.device for one in taken})),
        teachers_device_seconds={name: _pretraining_seconds(recipe, name, stores) for name in recipe.active_teachers},
        online_device_seconds=online,
        online_is_measured=not cached,
    )
    _publish(run, report.to_json())
    return report


def _active_seconds(recipe: DistillRecipe, one: ExtractionTime) -> float:
    """Of an extraction, the part that this recipe's teachers account for, by the time that each teacher took."""
    every = sum(teacher.seconds for teacher in one.teachers.values())
    active = sum(one.teachers[name].seconds for name in recipe.active_columns.values() if name in one.teachers)
    return one.seconds * active / every if every else one.seconds


def _online_seconds(recipe: DistillRecipe, training: TrainingTime, taken: Sequence[ExtractionTime]) -> float | None:
    """What the run would have taken with its active teachers beside it; None where one of them was never timed."""
    if not recipe.active_columns:
        return None
    a_clip = 0.0
    for column in recipe.active_columns.values():
        timed = [one.teachers[column] for one in taken if column in one.teachers]
        if not (clips := sum(one.clips for one in timed)):
            return None
        a_clip += sum(one.seconds for one in timed) / clips
    return training.device_seconds + training.clips * a_clip


def _pretraining_seconds(recipe: DistillRecipe, name: Any, stores: Sequence[Path]) -> float | None:
    """Of a teacher whose weights lie in the folder of their own run, which has a report."""
    places = [recipe.teachers[name].weights]
    places += [path for store in stores if (path := read_local(store).teachers.get(recipe.column(name)))]
    for place in places:
        file = Path(place).parent / REPORT_FILE
        if Path(place).is_file() and file.is_file():
            training = json.loads(file.read_text(encoding="utf-8")).get("training")
            # A run that is not at its end has no hours of its own yet.
            return None if training is None else float(training["device_seconds"])
    return None


def _training_time(run: Path, batch_size: int) -> TrainingTime:
    """From the lines of `metrics.jsonl`, each of which says how long a step took since the line before it."""
    launches = _launches(run)
    step, seconds, device_seconds = 0, 0.0, 0.0
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        passed = (record["step"] - step) * record["time"]["step_seconds"]
        processes = next((one.processes for one in reversed(launches) if one.after_step < record["step"]), 1)
        step, seconds, device_seconds = record["step"], seconds + passed, device_seconds + passed * processes
    return TrainingTime(step, step * batch_size, seconds, device_seconds)


def _launches(run: Path) -> tuple[Launch, ...]:
    path = run / REPORT_FILE
    data = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"launches": []}
    return tuple(Launch(**launch) for launch in data["launches"])


def _publish(run: Path, data: dict[str, Any]) -> None:
    publish_bytes(run / REPORT_FILE, json.dumps(data, indent=2).encode() + b"\n")
