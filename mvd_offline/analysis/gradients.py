"""How much a codec's error moves a student's loss and its gradient: the same clips, under the same masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mvd_offline.analysis.target_effects import LossEffect, StoreLosses, as_targets
from mvd_offline.errors import UsageError
from mvd_offline.recipe import DistillRecipe
from mvd_offline.shards.codecnames import codec_family
from mvd_offline.shards.codecs import measure_error
from mvd_offline.shards.errors import IdentityError
from mvd_offline.shards.schema import ColumnSpec, all_differences, list_differences
from mvd_offline.shards.statistics import spread_rows
from mvd_offline.shards.store import Store, open_store


@dataclass(frozen=True)
class CodecEffect:
    """A column in another codec, in place of the one that counts as exact."""

    column: str
    exact: str
    """Codec of what counts as exact."""
    codec: str
    smaller: float
    """Bytes of a row in the exact codec over those in this one."""
    relative_error: float
    """L2 over the rows, largest of the clips."""
    effect: LossEffect


@dataclass(frozen=True)
class GradientReport:
    """What each pair of columns says, and on what."""

    clips: int
    student: str
    effects: tuple[CodecEffect, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def codec_effects(
    recipe: DistillRecipe,
    store_dir: Path,
    *,
    other_dir: Path | None = None,
    columns: Mapping[str, str] | None = None,
    student: Path | None = None,
    clips: int = 16,
    root: Path | None = None,
) -> GradientReport:
    """Compare a store's targets with the same teachers' in another codec.

    Args:
        recipe: whose loss is measured; the store must be one for it.
        store_dir: its columns count as exact; give the one with the finer codec.
        other_dir: a store of the same plan and teachers.
        columns: or columns of the same store, added by `extract --teacher`, by the name of the recipe's column.
        student: weights of a run of the recipe; the recipe's untrained student when None.
        clips: evenly spread over the views that both have.
        root: folder of the videos, when it is not the one remembered.

    Raises:
        UsageError: neither or both of `other_dir` and `columns`, no column in common, no view in common.
        IdentityError: the other targets are of other views, or of another teacher; it lists the fields.
    """
    if (other_dir is None) == (not columns):
        raise UsageError(
            "what is compared with is another store, or other columns of this one: give one of --against STORE and "
            "--column NAME=OTHER."
        )
    losses = StoreLosses(recipe, store_dir, student=student, clips=clips, root=root)
    store, other = open_store(store_dir), open_store(other_dir or store_dir)
    pairs = _pairs(losses.columns, store, other, columns)
    for column, second in pairs.items():
        _require_same_targets(store, column, other, second)
    common = np.intersect1d(store.ok_rows(list(pairs)), other.ok_rows(list(pairs.values())))
    if not len(common):
        raise UsageError(f"{store.root} and {other.root} have no view in common that both have targets of.")
    views = spread_rows(common, clips).tolist()
    effects = tuple(_effect(losses, store, column, other, second, views) for column, second in pairs.items())
    return GradientReport(len(views), losses.student, effects)


def _pairs(wanted: Sequence[str], store: Store, other: Store, columns: Mapping[str, str] | None) -> dict[str, str]:
    """The recipe's columns, and what each is compared with."""
    if columns:
        pairs = dict(columns)
        missing = [name for name in (*pairs, *pairs.values()) if name not in store.columns]
        if missing:
            raise UsageError(f"{store.root} has no column {missing[0]}, but {', '.join(store.columns)}.")
        return pairs
    pairs = {name: name for name in wanted if name in other.columns}
    if not pairs:
        raise UsageError(
            f"{other.root} has columns {', '.join(other.columns)}, and the recipe learns from {', '.join(wanted)}: it "
            "has none of them."
        )
    return pairs


def _require_same_targets(store: Store, column: str, other: Store, second: str) -> None:
    """Codecs alone may differ."""
    one, two = _what(store, column), _what(other, second)
    if differences := all_differences(one, two):
        listed = list_differences(differences, f"{store.root.name}/{column}", f"{other.root.name}/{second}")
        raise IdentityError(
            f"these are not the same targets in two codecs:{listed}\nGive stores of one plan and of the same teachers."
        )


def _what(store: Store, column: str) -> dict[str, Any]:
    spec: ColumnSpec = store.header.columns[column]
    return {"plan": store.header.plan_sha256, "tokens": spec.tokens, "width": spec.width, **spec.source}


def _effect(
    losses: StoreLosses, store: Store, column: str, other: Store, second: str, views: Sequence[int]
) -> CodecEffect:
    exact, coded = (
        list(one.read(views, [name])[name].astype(np.float32)) for one, name in ((store, column), (other, second))
    )
    errors = [measure_error(a, b).relative_error for a, b in zip(exact, coded, strict=True)]
    return CodecEffect(
        column=column,
        exact=codec_family(store.header.columns[column].codec),
        codec=codec_family(other.header.columns[second].codec),
        smaller=store.row_bytes(column) / other.row_bytes(second),
        relative_error=max(errors),
        effect=losses.compare(column, views, as_targets(exact)).effect(as_targets(coded)),
    )
