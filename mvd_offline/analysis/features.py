"""What models make of a video over time: principal components of their features, and what tokens look at."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mvd_offline.analysis.attention import LastAttention, Place, require_inside
from mvd_offline.analysis.models import ClipShape, Models, default_device
from mvd_offline.geometry import TokenGrid
from mvd_offline.inspection import principal_colours
from mvd_offline.models.inputs import normalize
from mvd_offline.video.crops import center_crop
from mvd_offline.video.decode import VideoInfo, probe
from mvd_offline.video.sampling import distillation_indices
from mvd_offline.video.views import View, render_sizes


@dataclass(frozen=True)
class ModelFilm:
    """One model over the clips of a video.

    Attributes:
        colours: uint8 (clips * t, h, w, 3): three principal components of all tokens of the video as red, green, blue,
            so that a colour means the same in every clip.
        shares: of the variance, by component.
        attention: for each token that was asked for, float32 (clips, t, h, w).
    """

    name: str
    grid: TokenGrid
    colours: NDArray[np.uint8]
    shares: tuple[float, ...]
    attention: tuple[NDArray[np.float32], ...]


@dataclass(frozen=True)
class Film:
    """Clips of a video that follow each other, and what models make of them.

    Attributes:
        frames: uint8 (clips, T, S, S, 3), the centred square.
        frame_numbers: in the video, (clips, T).
        frames_per_second: of a film of them that runs as fast as the video.
    """

    video: str
    frames: NDArray[np.uint8]
    frame_numbers: tuple[tuple[int, ...], ...]
    frames_per_second: float
    tokens: tuple[Place, ...]
    models: tuple[ModelFilm, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "video": self.video,
            "clips": len(self.frames),
            "frame_numbers": self.frame_numbers,
            "models": {m.name: {"grid": str(m.grid), "variance_shares": m.shares} for m in self.models},
        }


def film(
    video: Path,
    models: Mapping[str, str],
    *,
    shape: ClipShape | None = None,
    clips: int = 4,
    tokens: Sequence[Place] = (),
    on_clip: Callable[[int, int], None] = lambda done, total: None,
) -> Film:
    """Show a video to models, clip after clip from its beginning.

    Args:
        models: weights or runs by name.
        clips: how many, at most; fewer where the video ends, and one of a video that is shorter than a clip.
        tokens: of each clip, whose attention is wanted.
        on_clip: called with the clips that models are done with, and how many there are for all of them.

    Raises:
        VideoError: the video cannot be read.
        UsageError, CheckpointError: as `Models`; a token that a model does not have.
    """
    opened = Models(models, shape or ClipShape(), default_device())
    for name, teacher in opened:
        for place in tokens:
            require_inside(place, teacher.grid, name)
    facts = probe(video)
    views = _views(video, facts, opened, clips)
    rendered = [{size: one.pixels for size, one in render_sizes(v, video.parent, opened.sizes).items()} for v in views]
    largest, total, done = max(opened.sizes), len(models) * len(rendered), itertools.count(1)

    def advance() -> None:
        on_clip(next(done), total)

    return Film(
        video=video.name,
        frames=np.stack([clip[largest] for clip in rendered]),
        frame_numbers=tuple(view.frame_indices for view in views),
        frames_per_second=(facts.fps or 25.0) / opened.stride,
        tokens=tuple(tokens),
        models=tuple(_model_film(opened, name, rendered, tokens, advance) for name, _ in opened),
    )


def _views(video: Path, facts: VideoInfo, models: Models, clips: int) -> list[View]:
    span = models.frames * models.stride
    crop = center_crop(facts.width, facts.height)
    return [
        View(
            view_id=number,
            video_id=video.name,
            path=video.name,
            label=-1,
            group=0,
            frame_indices=distillation_indices(facts.frames, number * span, models.frames, models.stride),
            crop=crop,
            flip=False,
            width=facts.width,
            height=facts.height,
            frames=facts.frames,
            status="ok",
            detail="",
            shard=0,
            decoder=facts.decoder,
        )
        for number in range(min(clips, max(facts.frames // span, 1)))
    ]


def _model_film(
    models: Models,
    name: str,
    clips: Sequence[Mapping[int, NDArray[np.uint8]]],
    tokens: Sequence[Place],
    on_clip: Callable[[], None],
) -> ModelFilm:
    teacher = models[name]
    grid = teacher.grid
    features, attention = [], []
    for clip in clips:
        pixels = normalize(torch.from_numpy(clip[teacher.image_size])[None].to(models.device))
        with LastAttention(teacher) as looking:
            features.append(teacher(pixels)[0].cpu().numpy())
        attention.append([looking.of(place) for place in tokens])
        on_clip()
    whole = TokenGrid(len(clips) * grid.t, grid.h, grid.w)
    colours, shares = principal_colours(np.concatenate(features), whole)
    by_token = tuple(np.stack(maps) for maps in zip(*attention, strict=True))
    return ModelFilm(name, grid, colours, tuple(float(share) for share in shares), by_token)
