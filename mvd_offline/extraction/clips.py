"""The column of baked clips: adding it to a store, and feeding teachers from it."""

from __future__ import annotations

from dataclasses import replace

from mvd_offline.errors import VideoError
from mvd_offline.recipe import BakeSection, StoreSection
from mvd_offline.shards.errors import IdentityError
from mvd_offline.shards.schema import CLIPS
from mvd_offline.shards.store import Store, create_store
from mvd_offline.video.baking import clips_column
from mvd_offline.video.feed import StoredClip
from mvd_offline.video.views import View


def add_clips(store: Store) -> list[str]:
    """Add the column, as recipes have it by default, unless the store has it; returns the names of what was added.

    Raises:
        IdentityError: a teacher's targets are there already, and they are of other pixels.
    """
    if CLIPS in store.columns:
        return []
    if made := [name for name in store.columns if store.committed(name)]:
        raise IdentityError(
            f"--bake: {store.root} has targets of column {', '.join(made)} already. Baking changes pixels a little, so "
            "that the student would train on others than its teachers saw. Plan another store, with "
            "--set store.bake={} or `extract --bake jpeg` before its first shard."
        )
    container = next((spec.container for spec in store.header.columns.values()), StoreSection().container)
    view = store.header.view
    column = clips_column(view["frames"], view["image_size"], BakeSection().codec, container)
    create_store(store.root, replace(store.header, columns={CLIPS: column}), store.plan_path.read_bytes())
    return [CLIPS]


def clips_are_complete(store: Store) -> bool:
    """Whether every view is baked, so that no video is needed any more."""
    return CLIPS in store.columns and not store.pending(CLIPS)


def stored_clip(store: Store, view: View) -> StoredClip | VideoError | None:
    """What the store holds of a view's clip: a row, or why there is none; None where it is not baked yet."""
    if CLIPS not in store.columns or not store.is_committed(CLIPS, view.shard):
        return None
    row = store.catch_up(CLIPS, [view.shard]).row(view.view_id)
    if row.status != "ok":
        return VideoError(view.path, row.detail, status=row.status)
    (payload,) = store.read_payloads(CLIPS, [view.view_id])
    return StoredClip(payload, row.decoder)
