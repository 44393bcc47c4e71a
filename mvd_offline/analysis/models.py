"""The models that are looked at side by side: frozen encoders that are shown the same frames."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from mvd_offline.distillation.task import STUDENT_FILE
from mvd_offline.errors import UsageError
from mvd_offline.finetuning.task import CLASSIFIER_FILE
from mvd_offline.models.inputs import normalize
from mvd_offline.models.teachers import DEFAULT_FRAMES, Teacher
from mvd_offline.pretrain import TEACHER_FILE
from mvd_offline.probing.encoders import (
    DEFAULT_STRIDE,
    EncoderOverrides,
    FrozenEncoder,
    Recorded,
    open_encoder,
    recorded,
)
from mvd_offline.recipe import ViewSection

_RUN_FILES: Final = (CLASSIFIER_FILE, TEACHER_FILE, STUDENT_FILE)
"""What runs of `finetune`, `pretrain` and `distill` leave."""


@dataclass(frozen=True)
class ClipShape:
    """What models are shown; None is what they record, or else 16 frames, every 4th, of `usual_size` or 224 pixels."""

    frames: int | None = None
    stride: int | None = None
    image_size: int | None = None
    usual_size: int | None = None


class Models:
    """Encoders by name, on one device, in the form of teachers: features are the residual stream after the last block.

    Attributes:
        frames, stride: of the clips that all of them are shown.
    """

    def __init__(self, paths: Mapping[str, str], shape: ClipShape, device: torch.device) -> None:
        """
        Args:
            paths: files, Hugging Face folders, `timm:NAME`, `random:ARCH`, or the folder of a run.
            shape: of the clips, for all models; `image_size` goes before what a model records.

        Raises:
            CheckpointError: unreadable, or not an encoder.
            UsageError: no model, or models that were trained on clips of different lengths, and no word on which.
        """
        if not paths:
            raise UsageError("no model is given; name one or more with --model NAME=PATH.")
        weights = {name: weights_of(path) for name, path in paths.items()}
        facts = {name: recorded(path) for name, path in weights.items()}
        self.frames = shape.frames or _agreed("frames", facts) or DEFAULT_FRAMES
        self.stride = shape.stride or _agreed("stride", facts) or DEFAULT_STRIDE
        self.device = device
        self._encoders = {name: self._open(path, facts[name], shape) for name, path in weights.items()}

    def _open(self, path: str, facts: Recorded, shape: ClipShape) -> FrozenEncoder:
        size = shape.image_size or facts.image_size or shape.usual_size
        encoder = open_encoder(path, EncoderOverrides(frames=self.frames, stride=self.stride, image_size=size))
        encoder.teacher.to(self.device)
        return encoder

    def __iter__(self) -> Iterator[tuple[str, Teacher]]:
        return ((name, encoder.teacher) for name, encoder in self._encoders.items())

    def __getitem__(self, name: str) -> Teacher:
        return self._encoders[name].teacher

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sides in pixels at which clips are needed."""
        return tuple(dict.fromkeys(teacher.image_size for _, teacher in self))

    def view(self) -> ViewSection:
        """The clip in the middle of a video, and the largest square in the middle of it."""
        return next(iter(self._encoders.values())).view

    def features(self, clips: Mapping[int, NDArray[np.uint8]]) -> dict[str, NDArray[np.float32]]:
        """What each model makes of one clip: float32 (N, D), in t, h, w order.

        Args:
            clips: uint8 (T, S, S, 3) by side in pixels, one for each of `sizes`.
        """
        found: dict[str, NDArray[np.float32]] = {}
        for name, teacher in self:
            pixels = torch.from_numpy(clips[teacher.image_size])[None].to(self.device)
            found[name] = teacher(normalize(pixels))[0].cpu().numpy()
        return found


def weights_of(path: str) -> str:
    """The weights that a path means: those of the run whose folder it is, or itself."""
    return next((str(Path(path) / name) for name in _RUN_FILES if (Path(path) / name).is_file()), path)


def _agreed(field: str, facts: Mapping[str, Recorded]) -> int | None:
    """What the models that record it all say."""
    said = {name: value for name, one in facts.items() if (value := getattr(one, field)) is not None}
    if len(set(said.values())) > 1:
        listed = ", ".join(f"{name} {value}" for name, value in said.items())
        raise UsageError(
            f"these models were trained on clips of different {field} ({listed}), and all are to be shown the same: "
            f"choose with --{field}."
        )
    return next(iter(said.values()), None)


def default_device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
