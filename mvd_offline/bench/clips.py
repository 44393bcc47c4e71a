"""What a training saves that reads baked clips instead of decoding videos."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mvd_offline.bench.measure import Spread, machine, wait_for
from mvd_offline.errors import UsageError
from mvd_offline.local import resolve_root
from mvd_offline.shards.jpeg import psnr
from mvd_offline.shards.schema import CLIPS
from mvd_offline.shards.statistics import spread_rows
from mvd_offline.shards.store import Store, open_store
from mvd_offline.training.packed import PackedClips
from mvd_offline.video.baking import baked_clips
from mvd_offline.video.views import Plan, render


@dataclass(frozen=True)
class OnDevice:
    """The same clips in one batch, decoded on a device (recipe: `unpack_clips: device`)."""

    clip_ms: Spread
    """Milliseconds of one clip, the copy of its JPEGs included; over the rounds."""
    largest_difference: int
    """To what loader processes decode, and the teachers saw; of 255."""


@dataclass(frozen=True)
class ClipTimes:
    """Milliseconds of one view in one process. A view's times are medians of its rounds; spreads are over views."""

    clip: str
    codec: str
    views: int
    rounds: int
    rendered_ms: Spread
    """Decode the video, crop, resize."""
    baked_ms: Spread
    """Read the row, check its checksum, decode its JPEGs."""
    speedup: Spread
    """The one over the other, view by view."""
    on_gpu: OnDevice | None
    """None where there is no GPU."""
    row_bytes: float
    psnr: Spread
    machine: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def time_clips(store_dir: Path, *, root: Path | None, views: int, rounds: int) -> ClipTimes:
    """Load views from their videos and from the store in turn; files are in the system's cache after the first round,
    which is not counted.

    Raises:
        UsageError: the store has no baked clips, or no view that can be read.
    """
    store = open_store(store_dir, sealed=False)
    if CLIPS not in store.columns:
        raise UsageError(f"{store_dir} has no baked clips to compare with: see `mvd-offline extract --bake jpeg`.")
    root, plan, index = resolve_root(store_dir, root), Plan.read(store.plan_path), store.status(CLIPS)
    chosen = spread_rows(np.flatnonzero(index.ok).astype(np.int64), views).tolist()
    if not chosen:
        raise UsageError(f"{store_dir} has no clip yet: run `mvd-offline extract {store_dir}`.")
    size = plan.section.image_size
    rendered, baked = (np.empty((rounds, len(chosen))) for _ in range(2))
    for round_ in range(-1, rounds):
        for place, view_id in enumerate(chosen):
            times = (
                _seconds(partial(render, plan[view_id], root, size)),
                _seconds(partial(baked_clips, store, [view_id], [size])),
            )
            if round_ >= 0:
                rendered[round_, place], baked[round_, place] = times
    slow, fast = np.median(rendered, axis=0), np.median(baked, axis=0)
    return ClipTimes(
        clip=f"{plan.section.frames} x {size} x {size}",
        codec=store.header.columns[CLIPS].codec,
        views=len(chosen),
        rounds=rounds,
        rendered_ms=Spread.of((1000 * slow).tolist()),
        baked_ms=Spread.of((1000 * fast).tolist()),
        speedup=Spread.of((slow / fast).tolist()),
        on_gpu=time_on_device(store, chosen, rounds, torch.device("cuda")) if torch.cuda.is_available() else None,
        row_bytes=float(index.length[chosen].mean()),
        psnr=Spread.of([psnr(float(error)) for error in index.coding["relative_error"][chosen]]),
        machine=machine(),
    )


def time_on_device(store: Store, view_ids: Sequence[int], rounds: int, device: torch.device) -> OnDevice:
    """Decode clips of a store in one batch, once uncounted."""
    spec = store.header.columns[CLIPS]
    packed = PackedClips.of(store.read_payloads(CLIPS, view_ids), spec.tokens, spec.width)
    pixels, times = packed.to(device), []
    for _ in range(rounds):
        wait_for(device)
        began = time.perf_counter()
        packed.to(device)
        wait_for(device)
        times.append(1000 * (time.perf_counter() - began) / len(view_ids))
    exact = torch.from_numpy(store.read_coded(CLIPS, view_ids))
    return OnDevice(Spread.of(times), int((pixels.cpu().int() - exact.int()).abs().max()))


def _seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began
