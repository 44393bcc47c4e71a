"""Adding a column to a store: another teacher on the same views."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from mvd_offline.errors import UsageError
from mvd_offline.geometry import TokenGrid
from mvd_offline.models.teachers import Teacher, TeacherPrecision, load_teacher
from mvd_offline.recipe import TEACHER_NAMES, StoreSection, TeacherName, teacher_kind
from mvd_offline.shards.errors import IdentityError
from mvd_offline.shards.schema import COLUMN_NAME, ColumnSpec
from mvd_offline.shards.store import Store, create_store


@dataclass(frozen=True)
class ColumnOptions:
    """How a column that is added differs from the store's first column of its kind (or else its first)."""

    codec: str | None = None
    precision: TeacherPrecision | None = None
    heads: int | None = None
    max_relative_error: float | None = None


def add_columns(store: Store, weights: Mapping[str, str], options: ColumnOptions) -> list[str]:
    """Add the columns among `weights` (paths by column) that the store lacks; returns their names.

    Raises:
        UsageError: a name that says no kind, or a teacher of another token grid.
        IdentityError: the store has the column already, with other options.
    """
    for name in weights.keys() & store.header.columns.keys():
        _require_same(store, name, options)
    added = {name: _column(store, name, path, options) for name, path in weights.items() if name not in store.columns}
    if added:
        create_store(store.root, replace(store.header, columns=added), store.plan_path.read_bytes())
    return sorted(added)


def _require_same(store: Store, name: str, options: ColumnOptions) -> None:
    """A column that is there already must have what is asked for: the same command goes on after a kill."""
    spec = store.header.columns[name]
    stored = {
        "codec": spec.codec,
        "precision": spec.source["precision"],
        "heads": spec.source["architecture"]["heads"],
    }
    for option, value in stored.items():
        if (wanted := getattr(options, option)) not in (None, value):
            raise IdentityError(
                f"{store.root}: column {name} has {option} {value}, and --{option} {wanted} was given, which is for a "
                f"column that is added. Leave it out, or `mvd-offline shards drop-column {store.root} {name}` first."
            )


def _column(store: Store, name: str, path: str, options: ColumnOptions) -> ColumnSpec:
    kind = teacher_kind(name)
    if kind is None or not COLUMN_NAME.fullmatch(name):
        raise UsageError(
            f"--teacher {name}={path}: a column's name is {' or '.join(TEACHER_NAMES)}, or starts with "
            f"{' or '.join(f'{kind}_' for kind in TEACHER_NAMES)}, in lower-case letters, digits and underscores."
        )
    columns = store.header.columns.values()
    like = next((spec for spec in columns if spec.source["kind"] == kind), next(iter(columns), None))
    teacher = _fitting_teacher(store, kind, path, like, options)
    # The first column of a store of views alone is stored as recipes do by default.
    stored = like or StoreSection()
    return ColumnSpec(
        name=name,
        tokens=teacher.grid.num_tokens,
        width=teacher.width,
        codec=options.codec or stored.codec,
        container=stored.container,
        source=teacher.identity(),
        max_relative_error=options.max_relative_error or stored.max_relative_error,
    )


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
