"""Where the hours of a run went, measured: its `report.json`.

It says who trained it and for how long and, of a distillation, the four figures of `mvd_offline.hours`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import Accelerator

from mvd_offline.hours import REPORT_FILE, Hours, estimated, hours_of, measured, unknown
from mvd_offline.local import FILE, ExtractionTime, read_local
from mvd_offline.recipe import DistillRecipe
from mvd_offline.shards.atomic import publish_bytes
from mvd_offline.training.run import saved_step

__all__ = ["REPORT_FILE", "Launch", "RunReport", "TrainingTime", "begin_launch", "write_distill_report", "write_report"]

PROBE: Final = "probe/"
"""What the names of a probe's accuracies begin with in the metrics."""


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
    """Who trained a run, and its hours."""

    launches: tuple[Launch, ...]
    training: TrainingTime
    extraction_devices: tuple[str, ...] = ()
    hours: Hours | None = None
    """Of a distillation."""
    probe: Mapping[str, float] | None = None
    """The last accuracies of the student's probes, and the step after which they were found; None without probes."""

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "hours": self.hours.to_json() if self.hours else None}


def begin_launch(run: Path, accelerator: Accelerator) -> None:
    """Note in the run's report who goes on with it; one process of a launch calls it, before it trains."""
    step = saved_step(run) or 0
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
    taken = [one for store in stores for one in read_local(store).extractions.values()]
    cached = recipe.targets == "cached"
    report = RunReport(
        launches=_launches(run),
        training=training,
        extraction_devices=tuple(sorted({one.device for one in taken})) if cached else (),
        hours=_hours(recipe, stores, training, taken),
        probe=_last_probe(run),
    )
    _publish(run, report.to_json())
    return report


def _hours(
    recipe: DistillRecipe, stores: Sequence[Path], training: TrainingTime, taken: Sequence[ExtractionTime]
) -> Hours:
    """Of the extractions, what these took of every store, interrupted ones included."""
    mine = measured(training.device_seconds, "this run")
    if not recipe.active_teachers:
        nothing = measured(0.0, "no frozen teachers, nothing to extract")
        return hours_of(recipe, stores, extraction=nothing, cached=mine, online=mine)
    if recipe.targets == "online":
        extraction = unknown("targets are online, nothing was extracted; `mvd-offline plan` estimates it")
        cached = unknown("targets are online; `mvd-offline bench step` times steps of both kinds")
        return hours_of(recipe, stores, extraction=extraction, cached=cached, online=mine)
    timed = f"where `mvd-offline extract` runs, it notes its time in the store's {FILE}"
    extraction = unknown(f"no extraction into the store was timed; {timed}")
    if taken:
        seconds = sum(_active_seconds(recipe, one) for one in taken)
        extraction = measured(seconds, "all extractions into the store, the share of this run's teachers")
    online = unknown(f"a teacher of this run was never timed on the store; {timed}")
    if (a_clip := _teacher_seconds_of_a_clip(recipe, taken)) is not None:
        seconds = training.device_seconds + training.clips * a_clip
        online = estimated(seconds, "this run, and for each clip what its teachers took in extraction")
    return hours_of(recipe, stores, extraction=extraction, cached=mine, online=online)


def _active_seconds(recipe: DistillRecipe, one: ExtractionTime) -> float:
    """Of an extraction, the part that this recipe's teachers account for, by the time that each teacher took."""
    every = sum(teacher.seconds for teacher in one.teachers.values())
    active = sum(one.teachers[name].seconds for name in recipe.active_columns.values() if name in one.teachers)
    return one.seconds * active / every if every else one.seconds


def _teacher_seconds_of_a_clip(recipe: DistillRecipe, taken: Sequence[ExtractionTime]) -> float | None:
    """Of all active teachers; None where one of them was never timed."""
    a_clip = 0.0
    for column in recipe.active_columns.values():
        timed = [one.teachers[column] for one in taken if column in one.teachers]
        if not (clips := sum(one.clips for one in timed)):
            return None
        a_clip += sum(one.seconds for one in timed) / clips
    return a_clip


def _training_time(run: Path, batch_size: int) -> TrainingTime:
    """From the lines of `metrics.jsonl`, each of which says how long a step took since the line before it."""
    launches = _launches(run)
    step, seconds, device_seconds = 0, 0.0, 0.0
    for record in _records(run):
        if "step_seconds" not in record["time"]:
            continue  # of something beside the training
        passed = (record["step"] - step) * record["time"]["step_seconds"]
        processes = next((one.processes for one in reversed(launches) if one.after_step < record["step"]), 1)
        step, seconds, device_seconds = record["step"], seconds + passed, device_seconds + passed * processes
    return TrainingTime(step, step * batch_size, seconds, device_seconds)


def _last_probe(run: Path) -> dict[str, float] | None:
    found = [
        {"step": record["step"], **{key.removeprefix(PROBE): record[key] for key in record if key.startswith(PROBE)}}
        for record in _records(run)
        if any(key.startswith(PROBE) for key in record)
    ]
    return found[-1] if found else None


def _records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def _launches(run: Path) -> tuple[Launch, ...]:
    path = run / REPORT_FILE
    data = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"launches": []}
    return tuple(Launch(**launch) for launch in data["launches"])


def _publish(run: Path, data: dict[str, Any]) -> None:
    publish_bytes(run / REPORT_FILE, json.dumps(data, indent=2).encode() + b"\n")
