"""What codec `klt` learns of a teacher before its first row is coded."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from mvd_offline.errors import UsageError, VideoError
from mvd_offline.models.inputs import normalize
from mvd_offline.models.teachers import Teacher
from mvd_offline.recipe import KltSection
from mvd_offline.shards.codecs import get_codec
from mvd_offline.shards.klt import KltCodec, learn, remember
from mvd_offline.shards.statistics import spread_rows
from mvd_offline.video.baking import render_baked
from mvd_offline.video.views import Plan, Rendered, View, render_sizes

MOST_TOKENS: Final = 1 << 15
"""Tokens that a basis is learnt from, evenly taken of the sample: 32 times the widest teacher's channels."""


def sample_clips(plan: Plan, views: int, load: Callable[[View], dict[int, Rendered]]) -> list[dict[int, Rendered]]:
    """Views evenly spread over the plan, as the teachers will see them; those that cannot be read are left out.

    Args:
        load: gives a view at the teachers' sizes, or raises VideoError.

    Raises:
        UsageError: none of them can be read.
    """
    ok = np.array([view.view_id for view in plan if view.status == "ok"], np.int64)
    clips = []
    for view_id in spread_rows(ok, views).tolist():
        with contextlib.suppress(VideoError):  # the extraction says which, and why
            clips.append(load(plan[view_id]))
    if not clips:
        raise UsageError(
            f"none of {min(views, len(ok))} views can be read, so that codec klt has nothing to learn from"
        )
    return clips


def load_as_planned(
    view: View, *, root: Path, image_size: int, sizes: Sequence[int], bake: str | None
) -> dict[int, Rendered]:
    """A view rendered, and baked where `bake` names a codec of clips."""
    if bake is None:
        return render_sizes(view, root, sizes)
    return render_baked(view, root, image_size, sizes, bake)[0]


def learn_codec(teacher: Teacher, clips: Iterable[dict[int, Rendered]], section: KltSection, batch_rows: int) -> str:
    """Run a teacher over clips and learn its basis; returns the codec's name, which this process knows from then on."""
    device = next(teacher.parameters()).device
    features: list[NDArray[np.float32]] = []
    pixels = (clip[teacher.image_size].pixels for clip in clips)
    while batch := list(islice(pixels, batch_rows)):
        with torch.inference_mode():
            found = teacher(normalize(torch.from_numpy(np.stack(batch)).to(device))).float()
        features.append(found.flatten(0, 1).cpu().numpy())
    tokens = np.concatenate(features)
    name = remember(learn(tokens[spread_rows(np.arange(len(tokens)), MOST_TOKENS)], section.relative_error))
    codec = get_codec(name)
    assert isinstance(codec, KltCodec)
    rows = tokens.reshape(-1, teacher.tokens, teacher.width)
    codec.typical_bytes = round(float(np.mean([len(codec.packing.pack(codec.encode(row))) for row in rows])))
    return name
