"""The frozen encoder of a checkpoint, whatever kind it is, and the views that it is shown."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mvd_offline.distillation.task import STUDENT_FILE
from mvd_offline.errors import CheckpointError
from mvd_offline.local import absolute_weights
from mvd_offline.models.checkpoints import read_checkpoint
from mvd_offline.models.loading import grid_of_table
from mvd_offline.models.teachers import Teacher, TeacherPrecision, load_teacher
from mvd_offline.recipe import TeacherName, ViewSection

DEFAULT_STRIDE = 4


@dataclass(frozen=True)
class EncoderOverrides:
    """What to do where a checkpoint does not say it, or otherwise than it says."""

    heads: int | None = None
    frames: int | None = None
    stride: int | None = None
    image_size: int | None = None
    precision: TeacherPrecision = "float32"


@dataclass(frozen=True)
class FrozenEncoder:
    """An encoder, in the form of a teacher: it gives the residual stream after its last block.

    Attributes:
        weights: where it was read from, good from every folder.
        view: of test clips: the largest centred square.
    """

    weights: str
    teacher: Teacher
    view: ViewSection

    def train_view(self, views: int) -> ViewSection:
        """Of training clips: one centred view a video, or several with random crops, as in pretraining."""
        return self.view if views == 1 else self.view.model_copy(update={"crop": "multiscale", "groups": views})


def open_encoder(path: str | Path, options: EncoderOverrides) -> FrozenEncoder:
    """The encoder of a student, a teacher or another pretrained model; `path` may be a run of `distill`.

    Sizes are those of the options, or else what the file records, and 16 frames of 224 pixels where it records none;
    the stride is that of the recipe that the file was trained with, or 4.

    Raises:
        CheckpointError: unreadable, or a fine-tuned file that does not tell its position table.
    """
    weights = absolute_weights(str(_file_of_run(Path(path))))
    facts = recorded(weights)
    teacher = load_teacher(
        weights,
        facts.kind,
        heads=options.heads,
        frames=options.frames or facts.frames,
        image_size=options.image_size or facts.image_size,
        precision=options.precision,
    )
    view = ViewSection(
        frames=teacher.frames,
        stride=options.stride or facts.stride or DEFAULT_STRIDE,
        image_size=teacher.image_size,
        tubelet_size=teacher.tubelet_size,
        patch_size=teacher.patch_size,
        crop="center",
    )
    return FrozenEncoder(weights, teacher, view)


def _file_of_run(path: Path) -> Path:
    """The student of a run of `distill`; `path` itself where it is a file, a Hugging Face folder or a name.

    Raises:
        CheckpointError: another folder; lists the weights in it.
    """
    if (path / STUDENT_FILE).is_file():
        return path / STUDENT_FILE
    if path.is_dir() and not (path / "config.json").is_file():
        there = ", ".join(sorted(file.name for file in path.glob("*.safetensors"))) or "no .safetensors file"
        raise CheckpointError(
            f"{path} has neither {STUDENT_FILE}, as a run of `mvd-offline distill`, nor config.json, as a Hugging Face "
            f"folder. Give the file whose encoder is to be judged; the folder has {there}."
        )
    return path


@dataclass(frozen=True)
class Recorded:
    """What a file tells of the clips that its encoder takes; None where it does not."""

    kind: TeacherName
    frames: int | None = None
    image_size: int | None = None
    stride: int | None = None


def recorded(weights: str) -> Recorded:
    """What a checkpoint of any layout records.

    Raises:
        CheckpointError: unreadable, or a fine-tuned file that does not tell its position table.
    """
    if weights.startswith("random:"):
        return Recorded("video")
    checkpoint = read_checkpoint(weights)
    if checkpoint.layout == "classifier" and checkpoint.positions is None:
        raise CheckpointError(
            f"{weights}: this is a fine-tuned file that does not say whether its positions are MVD's or VideoMAE's, "
            "so that its encoder is not known: give the student or teacher that it was fine-tuned from, a file of "
            "`mvd-offline finetune`, or test it with `mvd-offline evaluate`."
        )
    stride = _stride(checkpoint.config)
    if checkpoint.layout != "mvd_student":
        if checkpoint.layout == "mae":
            return Recorded("image", None, checkpoint.image_size, stride)
        return Recorded("video", checkpoint.frames, checkpoint.image_size, stride)
    if "pos_embed" not in checkpoint.state:
        return Recorded("video", stride=stride)
    # A student's position table tells its clips' size.
    grid = grid_of_table(checkpoint.state["pos_embed"], checkpoint.source)
    return Recorded("video", grid.t * checkpoint.tubelet_size, grid.h * checkpoint.patch_size, stride)


def _stride(config: Any) -> int | None:
    """Of the recipe that one of our own files carries."""
    recipe = yaml.safe_load(config.get("recipe", "")) or {}
    section = recipe.get("view") or recipe.get("clip") or {}
    return int(section["stride"]) if "stride" in section else None
