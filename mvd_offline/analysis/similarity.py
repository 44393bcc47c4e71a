"""How alike the frames of a clip are to a model: cosine similarity of its feature maps (paper, figures 3 to 5).

The paper prints matrices of the "cosine similarity between feature maps across different frames" of Kinetics-400's
validation clips, and does not say whether a map is compared token by token or as one vector. Both are here:

- `per_token`: S_ij = mean over places p of cos(f_ip, f_jp), where f_ip is the feature of slice i at place p;
- `flattened`: S_ij = cos of the two slices' maps, each flattened to one vector.

Features are the residual stream after the last block, before the final norm, as they are stored. A video model has one
slice for each tubelet; an image model sees the front frame of each, so that the matrices align.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mvd_offline.analysis.clips import CatalogClips, ClipSource, StoreClips, features_of, still_name
from mvd_offline.analysis.models import ClipShape, Models, default_device
from mvd_offline.errors import UsageError
from mvd_offline.geometry import TokenGrid
from mvd_offline.shards.statistics import slice_cosines
from mvd_offline.shards.store import open_store

Definition: TypeAlias = Literal["per_token", "flattened"]
DEFINITIONS: Final[tuple[Definition, ...]] = ("per_token", "flattened")

Matrices: TypeAlias = NDArray[np.float64]
"""(clips, t, t)."""


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over clips (of the population)."""

    mean: float
    std: float

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Spread:
        return cls(float(values.mean()), float(values.std()))


@dataclass(frozen=True)
class ModelSimilarity:
    """One model's matrices, of every clip."""

    name: str
    matrices: Mapping[Definition, Matrices]

    @property
    def slices(self) -> int:
        return self.matrices["per_token"].shape[1]

    def mean(self, definition: Definition) -> NDArray[np.float64]:
        """(t, t), over clips."""
        mean: NDArray[np.float64] = self.matrices[definition].mean(axis=0)
        return mean

    def std(self, definition: Definition) -> NDArray[np.float64]:
        """(t, t), over clips."""
        std: NDArray[np.float64] = self.matrices[definition].std(axis=0)
        return std

    def other_slices(self, definition: Definition) -> Spread:
        """Of two different slices: the mean off the diagonal of each clip."""
        off = ~np.eye(self.slices, dtype=bool)
        return Spread.of(self.matrices[definition][:, off].mean(axis=1))

    def by_distance(self, definition: Definition) -> list[Spread]:
        """Of slices that are 0, 1, ..., t - 1 apart."""
        found = self.matrices[definition]
        return [Spread.of(np.diagonal(found, k, axis1=1, axis2=2).mean(axis=1)) for k in range(self.slices)]


@dataclass(frozen=True)
class Similarity:
    """What several models make of the same clips.

    Attributes:
        clips: how many.
        source: where they come from, in words.
        unread: videos that were drawn and could not be read, with the reasons.
        repeating: how many clips were drawn that show a frame twice, which makes slices more alike than they are.
    """

    models: tuple[ModelSimilarity, ...]
    clips: int
    source: str
    unread: Mapping[str, str]
    repeating: int

    def to_json(self) -> dict[str, Any]:
        models = {model.name: {name: _in_numbers(model, name) for name in DEFINITIONS} for model in self.models}
        facts = {"clips": self.clips, "source": self.source, "unread": dict(self.unread), "repeating": self.repeating}
        return {**facts, "models": models}


def _in_numbers(model: ModelSimilarity, definition: Definition) -> dict[str, Any]:
    return {
        "other_slices": asdict(model.other_slices(definition)),
        "by_distance": [asdict(one) for one in model.by_distance(definition)],
        "mean": model.mean(definition).tolist(),
        "std": model.std(definition).tolist(),
    }


def similarity(
    models: Mapping[str, str],
    *,
    store_dir: Path | None = None,
    catalog_path: Path | None = None,
    shape: ClipShape | None = None,
    clips: int = 64,
    seed: int = 0,
    still: bool = False,
    root: Path | None = None,
    on_clip: Callable[[int, int], None] = lambda done, total: None,
) -> Similarity:
    """Cross-frame similarity of the columns of a store, and of models that are shown the same clips.

    Args:
        models: weights or runs by name; none are needed beside a store.
        store_dir: whose columns are compared, and on whose views models are run.
        catalog_path: where there is no store: the videos, of which the middle clip is taken.
        shape: of the clips of a catalog, where the models do not tell; of a store's, its plan decides.
        clips: how many, at most; drawn by `seed`.
        still: show each model the first frame of each clip, repeated, as well. What is below 1 there comes from the
            places of slices alone, which features hold too.
        root: folder of a store's videos, when it is not the one remembered.
        on_clip: called with the clips that are done, and their number.

    Raises:
        UsageError: neither or both of store and catalog; a name used twice; clips of a single slice; nothing readable.
    """
    shape = shape or ClipShape()
    if store_dir is not None and catalog_path is None:
        opened, source, where = _in_store(models, store_dir, shape, clips, seed, root)
    elif catalog_path is not None and store_dir is None:
        opened, source, where = _in_catalog(models, catalog_path, shape, clips, seed)
    else:
        raise UsageError("the clips come from a store or from a catalog: give one of --store and --videos.")
    running = {name: teacher.grid for name, teacher in opened or ()}
    if still and not running:
        raise UsageError("--still shows models clips in which nothing moves: name one or more with --model NAME=PATH.")
    frozen = {still_name(name): grid for name, grid in running.items()} if still else {}
    grids = {**source.grids, **running, **frozen}
    _require_slices(grids)
    found: dict[str, dict[Definition, list[NDArray[np.float64]]]] = {
        name: {d: [] for d in DEFINITIONS} for name in grids
    }
    total, done = len(source.views), 0
    for done, features in enumerate(features_of(source, opened, still=still), 1):
        for name, one in features.items():
            for definition, matrix in cross_frame_cosines(one, grids[name]).items():
                found[name][definition].append(matrix)
        on_clip(done, total)
    # Clips are counted, not unread videos: a store can have several views of a video.
    if not done:
        raise _nothing_readable(source)
    stacked = (ModelSimilarity(name, {d: np.stack(m) for d, m in each.items()}) for name, each in found.items())
    return Similarity(tuple(stacked), done, where, source.unread.reasons, source.repeating())


def _in_store(
    models: Mapping[str, str], store_dir: Path, shape: ClipShape, clips: int, seed: int, root: Path | None
) -> tuple[Models | None, ClipSource, str]:
    store = open_store(store_dir, sealed=False)
    if shape.frames or shape.stride:
        raise UsageError("--frames and --stride go with --videos: the clips of a store are those of its plan.")
    if twice := sorted(set(models) & set(store.target_columns)):
        raise UsageError(f"--model {twice[0]}: {store_dir} has a column of that name; choose another for the model.")
    if not models and not store.target_columns:
        raise UsageError(
            f"{store_dir} holds baked clips alone, no teacher's features: add --model NAME=PATH to run a model on "
            "them, or a teacher to the store with `mvd-offline extract STORE --teacher NAME=WEIGHTS`."
        )
    source = StoreClips(store, clips=clips, seed=seed, root=root)
    section, where = source.plan.section, f"views of the store in {store_dir.resolve().name}/"
    if not models:
        return None, source, where
    wanted = ClipShape(section.frames, section.stride, shape.image_size, section.image_size)
    return Models(models, wanted, default_device()), source, where


def _in_catalog(
    models: Mapping[str, str], catalog_path: Path, shape: ClipShape, clips: int, seed: int
) -> tuple[Models | None, ClipSource, str]:
    opened = Models(models, shape, default_device())
    source = CatalogClips(catalog_path, opened.view(), clips=clips, seed=seed)
    return opened, source, f"middle clips of {catalog_path.name}"


def _nothing_readable(source: ClipSource) -> UsageError:
    reasons = source.unread.reasons
    return UsageError(
        f"none of the {len(source.views)} clips that were drawn can be read, of {len(reasons)} videos; one of them is "
        f"{next(iter(reasons.values()))}. Put the videos back where they were, or tell with --root where those of a "
        "store are now."
    )


def _require_slices(grids: Mapping[str, TokenGrid]) -> None:
    if not grids:
        raise UsageError(
            "the store holds means over tokens alone, in which there are no frames: add --model NAME=PATH."
        )
    if single := [name for name, grid in grids.items() if grid.t < 2]:
        raise UsageError(
            f"{', '.join(single)}: its clips are one slice of tokens, and similarity is that of one slice to another; "
            "give clips of more frames (--frames)."
        )


def cross_frame_cosines(features: NDArray[np.float32], grid: TokenGrid) -> dict[Definition, NDArray[np.float64]]:
    """Both matrices of one clip, (t, t) each.

    Args:
        features: (N, D), in t, h, w order.
    """
    maps = features.astype(np.float64).reshape(grid.t, grid.tokens_per_slice, -1)
    return {"per_token": slice_cosines(maps), "flattened": slice_cosines(maps.reshape(grid.t, 1, -1))}
