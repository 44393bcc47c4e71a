"""What a distillation learns from: views with their stored targets, and the order in which they come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

from mvd_offline.distillation.checking import check_store, read_columns
from mvd_offline.distillation.following import Follow, FollowedSamples
from mvd_offline.distillation.group_ledger import GroupLedger
from mvd_offline.distillation.mixing import MixedSamples, MixedTargets, StoreShare
from mvd_offline.distillation.rows import RunRows, StoreRows
from mvd_offline.distillation.samples import Samples, StoreSamples
from mvd_offline.errors import UsageError
from mvd_offline.local import resolve_root
from mvd_offline.recipe import DistillRecipe
from mvd_offline.shards.errors import IdentityError, NotSealedError
from mvd_offline.shards.schema import CLIPS
from mvd_offline.shards.store import Store, open_store
from mvd_offline.targets import CachedTargets, TargetSource, open_targets


@dataclass(frozen=True)
class DistillData:
    """The rows of a run: `samples` says which and when, `rows` what they are."""

    samples: Samples
    rows: RunRows

    @classmethod
    def of_store(cls, recipe: DistillRecipe, store: Store, root: Path | None) -> DistillData:
        """All usable rows of one store; `root` is the folder of its videos, which baked clips make needless."""
        samples = StoreSamples(recipe, store)
        return cls(samples, RunRows([StoreRows.of_store(recipe, store, samples.plan, root)]))


def open_store_data(recipe: DistillRecipe, share: StoreShare, device: torch.device) -> tuple[DistillData, TargetSource]:
    """The rows of one finished store, and its targets.

    Raises:
        IdentityError, NotSealedError: it is not the recipe's, or not finished.
    """
    store = _open_finished(recipe, share.folder)
    check_store(recipe, store)
    source = open_targets(recipe, store, device)
    return DistillData.of_store(recipe, store, _root(recipe, store, share)), source


def open_followed_data(
    recipe: DistillRecipe, share: StoreShare, follow: Follow, run: Path, device: torch.device, *, main: bool
) -> tuple[FollowedSamples, DistillData, TargetSource]:
    """The rows of a store that is still being filled, and its targets."""
    store = open_store(share.folder, sealed=False)
    check_store(recipe, store)
    source = open_targets(recipe, store, device)
    samples = FollowedSamples(recipe, store, follow, GroupLedger(run), main=main)
    rows = RunRows([StoreRows.of_store(recipe, store, samples.plan, _root(recipe, store, share))])
    return samples, DistillData(samples, rows), source


def open_mixed_data(
    recipe: DistillRecipe, shares: Sequence[StoreShare], device: torch.device
) -> tuple[DistillData, TargetSource]:
    """The rows of several finished stores under one numbering, and their targets.

    The stores' views may differ in `view.seed` and `view.groups` from the recipe and from each other, in nothing else.

    Raises:
        IdentityError, NotSealedError: a store is not the recipe's, not finished, or coded otherwise than another.
        UsageError: a store is given twice, or is too small for its weight.
    """
    opened = [(_open_finished(recipe, share.folder), share) for share in shares]
    # By id: the run does not depend on the order in which its stores are given.
    opened.sort(key=lambda pair: pair[0].store_id)
    stores = [store for store, _ in opened]
    _refuse_twins(stores)
    for store in stores:
        check_store(recipe, store, free_views=True)
    _check_codecs(recipe, stores)
    samples = [StoreSamples(recipe, store) for store in stores]
    rows = RunRows(
        StoreRows.of_store(recipe, store, part.plan, _root(recipe, store, share))
        for (store, share), part in zip(opened, samples, strict=True)
    )
    data = DistillData(MixedSamples(samples, [share.weight for _, share in opened], rows), rows)
    if recipe.targets == "online":
        return data, open_targets(recipe, stores[0], device)
    return data, MixedTargets([CachedTargets(store, recipe.active_columns) for store in stores], rows)


def _root(recipe: DistillRecipe, store: Store, share: StoreShare) -> Path | None:
    """Folder of a store's videos; None where its clips are baked."""
    return None if CLIPS in read_columns(recipe, store) else resolve_root(share.folder, share.root)


def _open_finished(recipe: DistillRecipe, folder: Path) -> Store:
    """The store; for cached targets sealed in the recipe's columns, whatever becomes of others meanwhile."""
    store = open_store(folder, sealed=False)
    if recipe.targets == "cached":
        try:
            store.require_sealed(read_columns(recipe, store))
        except NotSealedError as error:
            raise NotSealedError(f"{error} To train while it is being filled, add --follow wait.") from None
    return store


def _refuse_twins(stores: Sequence[Store]) -> None:
    for one, other in pairwise(stores):
        if one.store_id == other.store_id:
            raise UsageError(
                f"--store {one.root} and {other.root} are the same store, or copies of it; give it once, with --mix 2 "
                "to pass over it twice an epoch."
            )


def _check_codecs(recipe: DistillRecipe, stores: Sequence[Store]) -> None:
    """A micro-batch is decoded at once, from whichever stores its rows come."""
    if recipe.targets == "online":
        return
    for column in recipe.active_columns.values():
        codecs = {str(s.root): s.header.columns[column].codec for s in stores if column in s.columns}
        if len(set(codecs.values())) > 1:
            found = ", ".join(f"{codec} in {root}" for root, codec in codecs.items())
            raise IdentityError(
                f"column {column} is coded as {found}; stores of one run must be coded alike. Leave one out, or "
                "extract it again with the other's codec."
            )
