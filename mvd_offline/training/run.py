"""The run folder: the resolved recipe and the identity of its data, fixed when the run starts."""

from __future__ import annotations

import json
from pathlib import Path

from mvd_offline.errors import UsageError
from mvd_offline.recipe import Recipe, dump_recipe, load_recipe
from mvd_offline.recipe.comparing import flat_recipe
from mvd_offline.shards.atomic import TEMPORARY_PREFIX, publish_bytes
from mvd_offline.shards.errors import IdentityError

RECIPE_FILE = "recipe.yaml"
IDENTITY_FILE = "identity.json"
METRICS_FILE = "metrics.jsonl"
EVALUATION_FILE = "evaluation.json"
PROBE_FOLDER, PROBE_FILE = "probe", "probe.json"
PAGE_FILE = "report.html"
_IDENTITY_WORDS = {
    "store_id": "store",
    "plan_sha256": "plan of its views",
    "usable_rows": "views with every target",
    "source": "videos, files and labels",
    "init": "starting weights",
    "init_sha256": "starting weights",
    "mixed_together": "videos mixed together",
    "follow": "store followed",
}

# What may change between a run's start and its continuation: it decides how fast, not what.
FREE = ("training.workers", "training.prefetch_batches", "training.log_every_steps", "training.keep_last",
        "training.checkpoint_every_epochs", "training.pixel_check_fraction", "training.tensorboard",
        "optim.micro_batch_size", "optim.stop_after_epochs",
        "student.checkpoint_activations", "student.compile", "model.checkpoint_activations",
        "teachers.image.weights", "teachers.video.weights",
        "probe.train", "probe.test", "probe.kinds", "probe.every_epochs")  # fmt: skip


def open_run(run: Path, recipe: Recipe, identity: dict[str, str], *, main: bool) -> None:
    """Start a run folder, or check that a started one belongs to this recipe and this data.

    Args:
        identity: what names the data: store id, plan hash, column ids, catalog hashes; and the weights it starts from.
        main: whether this process writes.

    Raises:
        UsageError: the folder holds a run of another recipe; names the first field that differs.
        IdentityError: the folder's run was started on other data; names the field.
    """
    if (run / RECIPE_FILE).is_file():
        _check_recipe(run, recipe)
        _check_identity(run, identity)
        return
    if not main:
        return
    if run.is_dir() and any(
        path.name != IDENTITY_FILE and not path.name.startswith(TEMPORARY_PREFIX) for path in run.iterdir()
    ):
        raise UsageError(
            f"{run} is not empty and holds no run of this program: give an empty or a new folder as --run."
        )
    run.mkdir(parents=True, exist_ok=True)
    publish_bytes(run / IDENTITY_FILE, json.dumps(identity, indent=2, sort_keys=True).encode() + b"\n")
    # The recipe comes last and at once: it is what says, to other processes and later launches, that the run has begun.
    publish_bytes(run / RECIPE_FILE, dump_recipe(recipe).encode())


def require_run(run: Path) -> None:
    """Refuse a folder that holds no run.

    Raises:
        UsageError: the folder is missing, or has no recipe of a run.
    """
    if not (run / RECIPE_FILE).is_file():
        raise UsageError(f"{run} has no {RECIPE_FILE}: give the folder of a run, which `--run` of its training named.")


def saved_step(run: Path) -> int | None:
    """The step of a run's newest checkpoint, of which its models are; None where none is kept."""
    return max((int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*")), default=None)


def identity_in_words(field: str) -> str:
    """What a field of the identity is, for a reader."""
    if field.startswith("column_"):
        return f"targets of {field.removeprefix('column_')}"
    return _IDENTITY_WORDS.get(field, field)


def read_identity(run: Path) -> dict[str, str]:
    return {str(k): str(v) for k, v in json.loads((run / IDENTITY_FILE).read_text(encoding="utf-8")).items()}


def _check_recipe(run: Path, recipe: Recipe) -> None:
    started = flat_recipe(load_recipe(run / RECIPE_FILE))
    for path, value in flat_recipe(recipe).items():
        if path not in FREE and started.get(path) != value:
            raise UsageError(
                f"{run} holds a run that was started with {path} = {started.get(path)!r}, and this recipe has "
                f"{value!r}. Go on with the run's own recipe ({run / RECIPE_FILE}), or give another folder as --run."
            )


def _check_identity(run: Path, identity: dict[str, str]) -> None:
    started = read_identity(run)
    for field in sorted(started.keys() | identity.keys()):
        if started.get(field) != identity.get(field):
            raise IdentityError(
                f"{run} was started on other data: {field} was {started.get(field)!r} and is {identity.get(field)!r} "
                "now. Give the store, the catalogs or the weights that the run was started with, or another folder as "
                "--run."
            )
