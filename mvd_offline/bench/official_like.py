"""Our step beside the official loop's, in turn, on one batch in memory: what is won, and that it is the same step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch
from accelerate import Accelerator

from mvd_offline.bench.here import on_this_machine
from mvd_offline.bench.measure import Spread, machine, matmul_tflops, wait_for
from mvd_offline.bench.official_contest import CONTENDERS, OFFICIAL, Contest
from mvd_offline.costs.models import distill_step
from mvd_offline.costs.teachers import teacher_cost
from mvd_offline.errors import MvdError, UsageError
from mvd_offline.processes import join_launch
from mvd_offline.recipe import DistillRecipe, Precision

_TOLERANCES: Final[Mapping[Precision, float]] = {"no": 1e-5, "bf16": 2e-2, "fp16": 2e-3}
"""By precision: how far the official-like losses may be from ours, relatively."""


@dataclass(frozen=True)
class Comparison:
    """Steps of the official loop's structure, and ours with online and with cached targets.

    Attributes:
        notes: what is done otherwise than the recipe says.
        losses: of the first step by contender; those of `cached` differ by what the store's codec costs.
        operations: of a clip: the `student`'s forward and backward pass, and the `teachers`' forward passes.
        peak_tflops: given, or of a large product in each round.
        processor_over_official_like: the same ratios of processor time, which other work on the machine disturbs less.
        utilization: of the peak; the official-like loop's by the operations that ours needs for the same losses.
    """

    recipe: str
    precision: str
    batch_size: int
    steps: int
    rounds: int
    notes: list[str]
    losses: dict[str, dict[str, float]]
    operations: dict[str, int]
    peak_tflops: Spread
    clips_per_second: dict[str, Spread]
    over_official_like: dict[str, Spread]
    processor_over_official_like: dict[str, Spread] | None
    utilization: dict[str, Spread]
    machine: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compare_with_official(
    recipe: DistillRecipe, *, batch_size: int, steps: int, rounds: int, tflops: float | None = None
) -> Comparison:
    """Time steps of all three on the same drawn pixels, masks and weights, after one of each that is not counted.

    Learning rates are 0, so that the weights stay the same. Everything is on the device beforehand: reading is measured
    elsewhere.

    Args:
        steps: of each in a round.
        rounds: in which all three take turns.
        tflops: the device's peak in the recipe's precision; measured when None.

    Raises:
        UsageError: a recipe with what the official loop does not have.
        MvdError: the losses differ, so that the times cannot be compared.
    """
    _refuse_others(recipe)
    recipe, notes = on_this_machine(recipe)
    accelerator = join_launch(mixed_precision=recipe.training.precision)
    torch.set_float32_matmul_precision("high" if recipe.training.tf32 else "highest")
    contest = Contest(recipe, batch_size, accelerator)
    losses = contest.first_step()
    check_equal(losses, recipe.training.precision)

    times = _Times.of(contest, steps, rounds, tflops, accelerator)
    operations = _operations(recipe, batch_size)
    rates = {name: [batch_size / each for each in taken] for name, taken in times.seconds.items()}
    on_gpu = accelerator.device.type == "cuda"
    return Comparison(
        recipe=recipe.name,
        precision=recipe.training.precision,
        batch_size=batch_size,
        steps=steps,
        rounds=rounds,
        notes=notes,
        losses=losses,
        operations=operations,
        peak_tflops=Spread.of(times.peaks),
        clips_per_second={name: Spread.of(rates[name]) for name in CONTENDERS},
        over_official_like={name: _ratio(rates[name], rates[OFFICIAL]) for name in CONTENDERS[1:]},
        processor_over_official_like=None if on_gpu else times.ratios_of_processor_time(),
        utilization={
            name: _ratio(rates[name], [peak * 1e12 / _operations_in(name, operations) for peak in times.peaks])
            for name in CONTENDERS
        },
        machine=machine(accelerator.device),
    )


@dataclass(frozen=True)
class _Times:
    """Of a step, round by round: seconds by the clock on the wall, and of the processors that this process had."""

    seconds: dict[str, list[float]]
    processor_seconds: dict[str, list[float]]
    peaks: list[float]
    """TFLOP/s of the device."""

    @classmethod
    def of(cls, contest: Contest, steps: int, rounds: int, tflops: float | None, accelerator: Accelerator) -> _Times:
        times = cls({name: [] for name in CONTENDERS}, {name: [] for name in CONTENDERS}, [])
        for number in range(rounds):
            # Whoever comes first finds another cache, and another clock rate, than whoever comes last.
            turn = number % len(CONTENDERS)
            for name in CONTENDERS[turn:] + CONTENDERS[:turn]:
                seconds, processor_seconds = _seconds_of(contest.steps[name], steps, accelerator.device)
                times.seconds[name].append(seconds)
                times.processor_seconds[name].append(processor_seconds)
            times.peaks.append(tflops or matmul_tflops(accelerator.device, contest.precision))
        return times

    def ratios_of_processor_time(self) -> dict[str, Spread]:
        used = self.processor_seconds
        return {name: _ratio(used[OFFICIAL], used[name]) for name in CONTENDERS[1:]}


def _seconds_of(step: Callable[[], object], steps: int, device: torch.device) -> tuple[float, float]:
    wait_for(device)
    began, used = time.perf_counter(), time.process_time()
    for _ in range(steps):
        step()
    wait_for(device)
    return (time.perf_counter() - began) / steps, (time.process_time() - used) / steps


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Round by round."""
    return Spread.of([a / b for a, b in zip(ours, theirs, strict=True)])


def _operations(recipe: DistillRecipe, batch_size: int) -> dict[str, int]:
    teachers = {name: teacher_cost(recipe, name) for name in recipe.active_teachers}
    widths = {name: cost.arch.width for name, cost in teachers.items()}
    student = distill_step(recipe, widths, batch_size).flops(checkpointed=recipe.student.checkpoint_activations)
    return {"student": student, "teachers": sum(cost.flops for cost in teachers.values())}


def _operations_in(contender: str, operations: Mapping[str, int]) -> int:
    return operations["student"] + (0 if contender == "cached" else operations["teachers"])


# ---- what can be compared ----------------------------------------------------------------------------------------


def _refuse_others(recipe: DistillRecipe) -> None:
    """The official loop has masks, teachers and decoders of all masked tokens, and nothing else."""
    refused = {
        "mask.kind": recipe.mask.kind if recipe.mask.kind == "none" else None,
        "mask.decoded": recipe.mask.decoded if recipe.mask.decoded < 1.0 else None,
        "pixels": recipe.pixels,
        "momentum": recipe.momentum,
        "ema": recipe.ema,
    }
    if found := [f"{key} {value}" for key, value in refused.items() if value is not None]:
        raise UsageError(
            f"the official loop distils frozen teachers at all masked tokens, and this recipe has {', '.join(found)}; "
            "give a recipe without, such as distill/vit_s_from_vit_l_k400"
        )


def check_equal(losses: Mapping[str, Mapping[str, float]], precision: Precision) -> None:
    """Refuse to compare steps whose losses are not the same but for rounding.

    Args:
        losses: by contender, by name.

    Raises:
        MvdError: one differs.
    """
    tolerance = _TOLERANCES[precision]
    for name, theirs in losses[OFFICIAL].items():
        ours = losses["online"][name]
        if not math.isclose(theirs, ours, rel_tol=tolerance):
            raise MvdError(
                f"{name} of the first step is {theirs:.8g} in the official loop's structure and {ours:.8g} in ours, "
                f"which differ by more than {tolerance:g}: they do not compute the same, so that their times cannot be "
                "compared. One of the two has a fault; please report it with the recipe."
            )
