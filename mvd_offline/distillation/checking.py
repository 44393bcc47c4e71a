"""Whether a store was made for a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mvd_offline.recipe import DistillRecipe
from mvd_offline.shards.codecnames import codec_family
from mvd_offline.shards.schema import CLIPS, NOTHING, ColumnSpec, Difference, all_differences
from mvd_offline.shards.store import Store
from mvd_offline.targets import check_teachers


def present_columns(recipe: DistillRecipe, store: Store) -> list[str]:
    """The recipe's columns that the store has."""
    return [column for column in recipe.active_columns.values() if column in store.columns]


def read_columns(recipe: DistillRecipe, store: Store) -> list[str]:
    """What a run reads of a store: `present_columns`, and the baked clips."""
    found = present_columns(recipe, store)
    # Online targets need no finished store, and take the clips where they are.
    if CLIPS in store.columns and (recipe.targets == "cached" or store.is_indexed(CLIPS)):
        found.append(CLIPS)
    return found


def check_store(recipe: DistillRecipe, store: Store, *, free_views: bool = False) -> None:
    """Refuse a store that was not made for this recipe.

    Args:
        free_views: let the store have other views of its own: other `view.seed` and `view.groups`.

    Raises:
        IdentityError: lists the dotted path of every field that differs, and both values.
    """
    view = all_differences(recipe.view.model_dump(mode="json"), store.header.view)
    free = ("seed", "groups") if free_views else ()
    differences = [found._replace(field=f"view.{found.field}") for found in view if found.field not in free]
    wanted = recipe.store.model_dump(mode="json", exclude={"bake", "klt"}) | {"codec": recipe.store.codec_family}
    if recipe.store.bake is not None:
        found = store.header.columns[CLIPS].codec if CLIPS in store.columns else NOTHING
        if found != recipe.store.bake.codec:
            differences.append(Difference("store.bake", recipe.store.bake.codec, found))
    names = present_columns(recipe, store)
    kept: dict[str, Any] = {}
    if recipe.targets == "online":
        # The order of samples follows the shards, whatever the targets.
        wanted = {"rows_per_shard": wanted["rows_per_shard"]}
    else:
        kept["max_relative_error"] = _kept_bound(store, names, recipe.store.max_relative_error)
    columns = [{**vars(store.header), **_facts(store.header.columns[name]), **kept} for name in names]
    for stored in columns:
        for difference in all_differences(wanted, {key: stored[key] for key in wanted}):
            named = difference._replace(field=f"store.{difference.field}")
            # A column that was added later may be coded otherwise than the first: one of them is the recipe's.
            if named not in differences and all(column[difference.field] != difference.ours for column in columns):
                differences.append(named)
    check_teachers(recipe, store, differences)


def _facts(column: ColumnSpec) -> dict[str, Any]:
    """Of a column, as recipes say them: a codec without the basis that was learnt."""
    return {**vars(column), "codec": codec_family(column.codec)}


def _kept_bound(store: Store, columns: Sequence[str], bound: float | None) -> float | None:
    """What coding may cost: the bound itself where every row keeps it, otherwise what the worst row cost."""
    worst = max((float(store.status(name).coding["relative_error"].max()) for name in columns), default=0.0)
    return bound if bound is None or worst <= bound else worst
