"""Adding a column to a store: another teacher on the same views."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from mvd_offline.errors import UsageError, VideoError
from mvd_offline.extraction.learning import learn_codec, load_as_planned, sample_clips
from mvd_offline.geometry import TokenGrid
from mvd_offline.models.teachers import Teacher, TeacherPrecision, load_teacher
from mvd_offline.recipe import TEACHER_NAMES, KltSection, StoreSection, TeacherName, teacher_kind
from mvd_offline.shards.codecnames import codec_family
from mvd_offline.shards.errors import IdentityError
from mvd_offline.shards.schema import CLIPS, COLUMN_NAME, ColumnSpec
from mvd_offline.shards.store import Store, create_store
from mvd_offline.video.baking import baked_clips
from mvd_offline.video.views import Plan, Rendered, View


@dataclass(frozen=True)
class ColumnOptions:
    """How a column that is added differs from the store's first column of its kind (or else its first)."""

    codec: str | None = None
    precision: TeacherPrecision | None = None
    heads: int | None = None
    max_relative_error: float | None = None


def add_columns(store: Store, weights: Mapping[str, str], options: ColumnOptions, root: Path | None) -> list[str]:
    """Add the columns among `weights` (paths by column) that the store lacks; returns their names.

    Args:
        root: folder of the videos, which codec `klt` samples; None where all clips are baked.

    Raises:
        UsageError: a name that says no kind, or a teacher of another token grid.
        IdentityError: the store has the column already, with other options.
    """
    for name in weights.keys() & store.header.columns.keys():
        _require_same(store, name, options)
    added = {
        name: _column(store, name, path, options, root) for name, path in weights.items() if name not in store.columns
    }
    if added:
        create_store(store.root, replace(store.header, columns=added), store.plan_path.read_bytes())
    return sorted(added)


def _require_same(store: Store, name: str, options: ColumnOptions) -> None:
    """A column that is there already must have what is asked for: the same command goes on after a kill."""
    spec = store.header.columns[name]
    stored = {
        "codec": codec_family(spec.codec).partition("-")[0],
        "precision": spec.source["precision"],
        "heads": spec.source["architecture"]["heads"],
    }
    for option, value in stored.items():
        if (wanted := getattr(options, option)) not in (None, value):
            raise IdentityError(
                f"{store.root}: column {name} has {option} {value}, and --{option} {wanted} was given, which is for a "
                f"column that is added. Leave it out, or `mvd-offline shards drop-column {store.root} {name}` first."
            )


def _column(store: Store, name: str, path: str, options: ColumnOptions, root: Path | None) -> ColumnSpec:
    kind = teacher_kind(name)
    if kind is None or not COLUMN_NAME.fullmatch(name):
        raise UsageError(
            f"--teacher {name}={path}: a column's name is {' or '.join(TEACHER_NAMES)}, or starts with "
            f"{' or '.join(f'{kind}_' for kind in TEACHER_NAMES)}, in lower-case letters, digits and underscores."
        )
    columns = [store.header.columns[column] for column in store.target_columns]
    like = next((spec for spec in columns if spec.source["kind"] == kind), next(iter(columns), None))
    teacher = _fitting_teacher(store, kind, path, like, options)
    # The first column of a store of views alone is stored as recipes do by default.
    stored = like or StoreSection()
    return ColumnSpec(
        name=name,
        tokens=teacher.grid.num_tokens,
        width=teacher.width,
        codec=_codec(store, options.codec or codec_family(stored.codec), teacher, root),
        container=stored.container,
        source=teacher.identity(),
        max_relative_error=options.max_relative_error or stored.max_relative_error,
    )


def _codec(store: Store, codec: str, teacher: Teacher, root: Path | None) -> str:
    """The name of a column's codec; what `klt` learns of one teacher is of no use to another."""
    if codec.partition("-")[0] != "klt":
        return codec
    error = codec.partition("-")[2]
    section = KltSection(relative_error=float(error)) if error else KltSection()
    clips = sample_clips(Plan.read(store.plan_path), section.sample_views, partial(_load, store, teacher, root))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return learn_codec(teacher.to(device), clips, section, store.header.batch_rows)


def _load(store: Store, teacher: Teacher, root: Path | None, view: View) -> dict[int, Rendered]:
    """A view as the teachers of the store see it."""
    if root is None:
        if not store.status(CLIPS).ok[view.view_id]:
            raise VideoError(view.path, "it was not baked")
        return baked_clips(store, [view.view_id], [teacher.image_size])[0]
    clips = store.header.columns.get(CLIPS)
    size, bake = store.header.view["image_size"], None if clips is None else clips.codec
    return load_as_planned(view, root=root, image_size=size, sizes=[teacher.image_size], bake=bake)


def _fitting_teacher(
    store: Store, kind: TeacherName, path: str, like: ColumnSpec | None, options: ColumnOptions
) -> Teacher:
    """The teacher, with the input size that gives the store's token grid."""
    grid = TokenGrid(*store.header.grid)
    patch_size = load_teacher(path, kind, heads=options.heads).patch_size
    teacher = load_teacher(
        path,
        kind,
        heads=options.heads,
        image_size=grid.h * patch_size,
        frames=store.header.view["frames"],
        tubelet_size=store.header.view["tubelet_size"],
        precision=options.precision or (like.source["precision"] if like else "float32"),
    )
    if teacher.grid != grid:
        raise UsageError(
            f"{path}: with images of {grid.h * patch_size} pixels its token grid is {teacher.grid}, and that of "
            f"{store.root} is {grid}; plan another store for it."
        )
    return teacher
