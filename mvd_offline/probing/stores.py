"""Features of a frozen encoder in stores like those of targets: planned, extracted, resumed and verified as they are.

A store holds one view or more of each video of a catalog. Its column is the encoder's mean token (float32), or, where a
probe needs them, all tokens (float16), from which the mean is then taken too: the encoder runs once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvd_offline.coding import decode
from mvd_offline.evaluation.videos import Unreadable
from mvd_offline.models.teachers import POOLING
from mvd_offline.planner import make_store
from mvd_offline.probing.encoders import FrozenEncoder
from mvd_offline.recipe import StoreSection, ViewSection
from mvd_offline.shards.errors import IdentityError
from mvd_offline.shards.schema import ColumnSpec, all_differences, list_differences
from mvd_offline.shards.store import Store, open_store
from mvd_offline.video.catalog import Catalog
from mvd_offline.video.views import Plan

SECTION: Final = StoreSection(rows_per_shard=64, batch_rows=16)
POOLED_CODEC: Final = "float32"
TOKEN_CODEC: Final = "float16"
READ_BYTES: Final = 1 << 28
"""Of features that are read at a time, where only their mean is kept."""


@dataclass(frozen=True)
class FeatureStore:
    """A store, and its column with the features of the encoder that is probed."""

    store: Store
    column: str

    @property
    def spec(self) -> ColumnSpec:
        return self.store.header.columns[self.column]

    @property
    def views(self) -> NDArray[np.int64]:
        """Those that have features, ascending."""
        return self.store.ok_rows([self.column])

    @property
    def labels(self) -> NDArray[np.int64]:
        """Of `views`."""
        return labels_of(self.store)[self.views]

    @property
    def is_complete(self) -> bool:
        """Whether the encoder has nothing left to do."""
        return self.store.is_indexed(self.column)


def plan_features(folder: Path, catalog: Catalog, view: ViewSection, encoder: FrozenEncoder, *, tokens: bool) -> None:
    """Fix the views of a catalog for an encoder, or find them fixed; one process calls it.

    Args:
        tokens: all tokens are needed.

    Raises:
        IdentityError: the folder holds features of another encoder, of other views or of other videos.
    """
    column = _column(folder, encoder, tokens=tokens)
    make_store(folder, catalog, view, SECTION, [column], {column.name: encoder.weights})


def open_features(folder: Path, encoder: FrozenEncoder, *, tokens: bool) -> FeatureStore:
    """What `plan_features` has made."""
    return FeatureStore(open_store(folder, sealed=False), _column(folder, encoder, tokens=tokens).name)


def read_means(features: FeatureStore) -> Tensor:
    """Mean tokens of all views that have features: float32 (rows, D), in the order of `FeatureStore.views`."""
    store, spec, views = features.store, features.spec, features.views
    means = torch.empty(len(views), spec.width)
    step = max(1, READ_BYTES // store.row_bytes(features.column))
    for start in range(0, len(views), step):
        coded = torch.from_numpy(store.read_coded(features.column, views[start : start + step]))
        means[start : start + step] = decode(coded, spec.codec).mean(dim=1)
    return means


def labels_of(store: Store) -> NDArray[np.int64]:
    """Labels by view, int64 (rows of the table,); -1 where there is no view."""
    plan = Plan.read(store.plan_path)
    labels = np.full(store.header.rows, -1, np.int64)
    labels[plan.view_ids] = plan.labels
    return labels


def unreadable_views(features: FeatureStore) -> list[Unreadable]:
    """Views that have no features, with the reason that the ledger gives."""
    ledger = features.store.status(features.column)
    failed = ledger.view_ids[~ledger.ok[ledger.view_ids]]
    plan = Plan.read(features.store.plan_path) if len(failed) else None
    found = []
    for view_id in failed.tolist():
        assert plan is not None
        view, row = plan[view_id], ledger.row(view_id)
        found.append(Unreadable(view.video_id, view.label, row.detail or row.status))
    return found


def _column(folder: Path, encoder: FrozenEncoder, *, tokens: bool) -> ColumnSpec:
    """The column to read: all tokens where they are asked for, or there already; or else their mean."""
    teacher = encoder.teacher
    there = _columns_of(folder, encoder)
    tokens = tokens or teacher.name in there
    pooling = {} if tokens else {"pooling": POOLING}
    return ColumnSpec(
        name=teacher.name if tokens else f"{teacher.name}_mean",
        tokens=teacher.grid.num_tokens if tokens else 1,
        width=teacher.width,
        codec=TOKEN_CODEC if tokens else POOLED_CODEC,
        container=SECTION.container,
        source={**teacher.identity(), **pooling},
    )


def _columns_of(folder: Path, encoder: FrozenEncoder) -> Mapping[str, ColumnSpec]:
    """The columns of a store that is there, all of which must be this encoder's."""
    if not (folder / "store.json").is_file():
        return {}
    columns = open_store(folder, sealed=False).header.columns
    for spec in columns.values():
        source = {key: value for key, value in spec.source.items() if key != "pooling"}
        if differences := all_differences(encoder.teacher.identity(), source):
            raise IdentityError(
                f"{folder} holds features of another encoder than {encoder.weights}:"
                f"{list_differences(differences, 'this encoder', 'the store')}\n"
                "Give another folder as --store: each encoder has its own."
            )
    return columns
