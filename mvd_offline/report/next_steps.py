"""The commands that follow a run."""

from __future__ import annotations

import shlex
from typing import NamedTuple

from mvd_offline.runs.folder import RunFolder
from mvd_offline.training.run import RECIPE_FILE


class NextStep(NamedTuple):
    """A command, and what it is for; words in capitals are the reader's to fill in."""

    purpose: str
    command: str


def next_steps(run: RunFolder) -> list[NextStep]:
    """What can be done with a run; of one that is not at its end, to go on with it."""
    place = str(run.path)
    kind = run.recipe.kind
    data = "--store STORE" if kind == "distill" else "--videos CATALOG"
    init = " --init CHECKPOINT" if kind == "finetune" and run.identity.get("init", "scratch") != "scratch" else ""
    recipe, folder = _quoted(f"{place}/{RECIPE_FILE}"), _quoted(place)
    if not run.finished:
        return [
            NextStep("go on where its last checkpoint ends", f"mvd-offline {kind} {recipe} {data}{init} --run {folder}")
        ]
    compare = NextStep("set it beside another run", f"mvd-offline analyze compare {folder} OTHER_RUN")
    curves = NextStep("draw its curves with others'", f"mvd-offline analyze curves {folder} OTHER_RUN -o curves.png")
    if kind == "pretrain":
        teacher = _quoted(f"{place}/teacher.safetensors")
        name = "image" if run.method == "mae" else "video"
        plan = f"mvd-offline plan RECIPE --videos CATALOG --store STORE --set teachers.{name}.weights={teacher}"
        return [NextStep("use it as a teacher", plan), curves]
    if kind == "distill":
        student = _quoted(f"{place}/student.safetensors")
        tune = f"mvd-offline finetune RECIPE --init {student} --videos LABELLED --run CLASSIFIER"
        probe = f"mvd-offline evaluate {folder} --probe linear --probe knn --train LABELLED --videos TEST"
        return [
            NextStep("fine-tune a classifier from it", tune),
            NextStep("judge it without fine-tuning", probe),
            curves,
            compare,
        ]
    test = NextStep("test it, and have the result here", f"mvd-offline evaluate {folder} --videos TEST")
    return [test, compare, curves] if not run.evaluations else [compare, curves]


def _quoted(path: str) -> str:
    return shlex.quote(path)
