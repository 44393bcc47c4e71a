"""Having the features of a frozen encoder in stores: planned and extracted where they are not there yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

import torch
from accelerate import Accelerator

from mvd_offline.costs.counting import forward_flops
from mvd_offline.extract import extract
from mvd_offline.models.teachers import empty_teacher
from mvd_offline.probing.encoders import FrozenEncoder
from mvd_offline.probing.stores import FeatureStore, open_features, plan_features
from mvd_offline.recipe import TeacherSection, ViewSection
from mvd_offline.video.catalog import Catalog
from mvd_offline.video.views import Plan

Split: TypeAlias = Literal["train", "test"]

ASSUMED_TFLOPS: Final = 100.0
"""Of one device, for the estimate of time."""
DECODE_SECONDS: Final = 0.1
"""Of one core, for a clip of an ordinary video file; for the estimate of time."""


@dataclass(frozen=True)
class Wanted:
    """The features of one split.

    Attributes:
        tokens: all tokens, where their mean is not enough.
    """

    catalog: Path
    folder: Path
    view: ViewSection
    tokens: bool


@dataclass(frozen=True)
class WorkEstimate:
    """What an extraction of features takes: `tokens` of each clip; seconds at the assumed rates."""

    clips: int
    tokens: int
    clip_bytes: int
    clip_flops: int
    encoder_seconds: float
    decode_seconds: float
    cores: int


@dataclass(frozen=True)
class ExtractionOptions:
    """How to extract.

    Attributes:
        workers: decode processes of each launch process.
        say: told what an extraction will take, before it begins.
    """

    workers: int
    timeout_seconds: float = 60.0
    quiet: bool = False
    say: Callable[[WorkEstimate], None] = lambda estimate: None


def prepare_features(
    wanted: Mapping[Split, Wanted], encoder: FrozenEncoder, options: ExtractionOptions, accelerator: Accelerator
) -> tuple[dict[Split, FeatureStore], float]:
    """The stores of the features, complete, and the seconds that extracting took; all processes call it.

    An encoder whose features are there does not run, and no video is read.

    Raises:
        IdentityError: a folder holds features of another encoder, of other views or of other videos.
    """
    if accelerator.is_main_process:
        for one in wanted.values():
            plan_features(one.folder, Catalog.read(one.catalog), one.view, encoder, tokens=one.tokens)
    accelerator.wait_for_everyone()
    seconds = 0.0
    missing = [split for split, features in _opened(wanted, encoder).items() if not features.is_complete]
    if missing and accelerator.is_main_process:
        stores = [features for split, features in _opened(wanted, encoder).items() if split in missing]
        options.say(estimate_work(stores, encoder, options.workers * accelerator.num_processes))
    for split in missing:
        summary = extract(
            wanted[split].folder,
            workers=options.workers,
            timeout_seconds=options.timeout_seconds,
            quiet=options.quiet,
        )
        seconds += summary.elapsed_seconds
    return _opened(wanted, encoder), seconds


def estimate_work(missing: list[FeatureStore], encoder: FrozenEncoder, workers: int) -> WorkEstimate:
    """What extracting these features takes."""
    clips = sum(len(Plan.read(one.store.plan_path)) for one in missing)
    flops = encoder_flops(encoder)
    return WorkEstimate(
        clips=clips,
        tokens=missing[0].spec.tokens,
        clip_bytes=missing[0].store.row_bytes(missing[0].column),
        clip_flops=flops,
        encoder_seconds=clips * flops / (ASSUMED_TFLOPS * 1e12),
        decode_seconds=clips * DECODE_SECONDS / workers,
        cores=workers,
    )


def encoder_flops(encoder: FrozenEncoder) -> int:
    """Operations of one clip."""
    teacher, view = encoder.teacher, encoder.view
    section = TeacherSection(weights=encoder.weights, image_size=teacher.image_size)
    empty = empty_teacher(section, view, teacher.name, teacher.arch, teacher.patch_size)
    size = (1, 3, view.frames, teacher.image_size, teacher.image_size)
    return forward_flops(empty, lambda model: model(torch.empty(size)))


def _opened(wanted: Mapping[Split, Wanted], encoder: FrozenEncoder) -> dict[Split, FeatureStore]:
    return {split: open_features(one.folder, encoder, tokens=one.tokens) for split, one in wanted.items()}
