"""A linear probe: how much of a label a frozen encoder's mean feature gives away.

It needs seconds where fine-tuning needs minutes, and shows what pretraining itself has learnt: the encoder is not
trained, and a probe of an untrained one says what the architecture alone is worth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save
from torch import Tensor

from mvd_offline.bench.science.videos import TASKS, Task, catalog_path, labels_of
from mvd_offline.models.inputs import normalize
from mvd_offline.probing.linear import fit_linear, standardise
from mvd_offline.recipe import ViewSection
from mvd_offline.shards.atomic import publish_bytes
from mvd_offline.training.catalogs import CatalogRows
from mvd_offline.video.render import View, render
from mvd_offline.video.views import draw_view

CLIPS_FILE = "probe.safetensors"
_BATCH = 128


@dataclass(frozen=True)
class ProbeClips:
    """Clips to fit on and to test on, uint8 (rows, T, S, S, 3), and their labels, int64 (rows,), for each task."""

    train: NDArray[np.uint8]
    test: NDArray[np.uint8]
    train_labels: dict[Task, NDArray[np.int64]]
    test_labels: dict[Task, NDArray[np.int64]]


def render_probe_clips(out: Path, view: ViewSection) -> None:
    """Writes the clips that probes look at: two views of every training video, and the centre of every test video."""
    section = view.model_copy(update={"groups": 2, "seed": view.seed + 1})
    arrays: dict[str, NDArray[Any]] = {}
    train = CatalogRows(catalog_path(out, "train"))
    test = CatalogRows(catalog_path(out, "test", "spatial"))
    arrays["train"] = np.concatenate([_clips(train, section, group) for group in range(section.groups)])
    arrays["test"] = _clips(test, view.model_copy(update={"crop": "center"}), 0)
    for task in TASKS:
        names = sorted({labels_of(video)[task] for video in train.videos})
        labels = [names.index(labels_of(video)[task]) for video in train.videos]
        arrays[f"train_{task}"] = np.tile(labels, section.groups)
        arrays[f"test_{task}"] = np.array([v.label for v in CatalogRows(catalog_path(out, "test", task)).videos])
    publish_bytes(out / CLIPS_FILE, save(arrays))


def read_probe_clips(out: Path) -> ProbeClips:
    """What `render_probe_clips` wrote."""
    arrays = load_file(out / CLIPS_FILE)
    labels = {split: {task: arrays[f"{split}_{task}"] for task in TASKS} for split in ("train", "test")}
    return ProbeClips(arrays["train"], arrays["test"], labels["train"], labels["test"])


def probe(encode: Callable[[Tensor], Tensor], clips: ProbeClips, device: torch.device) -> dict[Task, float]:
    """Top-1 share of the test clips for each task.

    Args:
        encode: (B, 3, T, S, S), normalised, to tokens (B, N, D).
    """
    train, test = (_features(encode, pixels, device) for pixels in (clips.train, clips.test))
    train, test = standardise(train, test)
    found: dict[Task, float] = {}
    for task in TASKS:
        labels = torch.from_numpy(clips.train_labels[task]).to(device)
        weight, bias = fit_linear(train, labels, int(labels.max()) + 1)
        right = (test @ weight + bias).argmax(dim=1).cpu() == torch.from_numpy(clips.test_labels[task])
        found[task] = float(right.double().mean())
    return found


def _clips(rows: CatalogRows, section: ViewSection, group: int) -> NDArray[np.uint8]:
    views = [View(view_id=0, shard=0, **draw_view(video, section, group)) for video in rows.videos]
    return np.stack([render(view, rows.root, section.image_size).pixels for view in views])


@torch.no_grad()
def _features(encode: Callable[[Tensor], Tensor], pixels: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Mean token of every clip: float32 (rows, D)."""
    batches = torch.from_numpy(pixels).split(_BATCH)
    return torch.cat([encode(normalize(batch.to(device))).mean(dim=1).float() for batch in batches])
