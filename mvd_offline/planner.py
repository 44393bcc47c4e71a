"""Fixing the views of a store, and saying beforehand what they will cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mvd_offline.costs.models import distill_step, momentum_flops
from mvd_offline.costs.teachers import teacher_cost
from mvd_offline.errors import UsageError
from mvd_offline.extraction.learning import learn_codec, load_as_planned, sample_clips
from mvd_offline.hours import Hours, estimated, hours_of
from mvd_offline.local import absolute_weights, update_local
from mvd_offline.models.teachers import Teacher, teacher_for
from mvd_offline.recipe import DistillRecipe, StoreSection, TeacherName, ViewSection
from mvd_offline.shards.codecnames import codec_family
from mvd_offline.shards.codecs import CODECS, get_codec
from mvd_offline.shards.creation import read_header
from mvd_offline.shards.klt import KltCodec
from mvd_offline.shards.schema import CLIPS, ColumnSpec, StoreHeader
from mvd_offline.shards.store import Store, create_store
from mvd_offline.video.baking import clips_column
from mvd_offline.video.catalog import Catalog
from mvd_offline.video.views import Plan

if TYPE_CHECKING:
    from mvd_offline.measuring import Measured


@dataclass(frozen=True)
class Estimate:
    """What a store and a training on it will take, on one device.

    Attributes:
        bytes_by_codec: of the teachers' targets.
        clips_bytes: of baked clips; None where nothing tells before they are baked.
        sustained_tflops: what the device is taken to do throughout; None where rates were measured instead.
        step_seconds: of a training on the store, of a global batch.
        read_megabytes_per_second: what such a training reads.
        break_even_epoch: from which on the store is cheaper; None where it never is.
    """

    videos: int
    rows: int
    failed_rows: dict[str, int]
    shards: int
    grid: str
    teachers: dict[str, str]
    bytes_by_codec: dict[str, int]
    codec: str
    clips_bytes: int | None
    sustained_tflops: float | None
    measured: Measured | None
    hours: Hours
    step_seconds: float
    clips_per_second: float
    read_megabytes_per_second: float
    break_even_epoch: float | None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "hours": self.hours.to_json()}


@dataclass(frozen=True)
class ClipSeconds:
    """What one device takes for a clip: to extract its targets, and to train on it, cached and online."""

    extraction: float
    cached: float
    online: float
    how: str
    """Where it is known from."""

    @classmethod
    def at(cls, recipe: DistillRecipe, store: Store, sustained_tflops: float) -> ClipSeconds:
        """Of a device that does so many operations a second, and never waits."""
        costs = {name: teacher_cost(recipe, name, store).flops for name in recipe.teachers}
        widths = {name: store.header.columns[recipe.column(name)].width for name in recipe.active_teachers}
        student, rate = student_flops(recipe, widths), sustained_tflops * 1e12
        active = sum(costs[name] for name in recipe.active_teachers)
        how = f"at {sustained_tflops:g} TFLOP/s"
        return cls(sum(costs.values()) / rate, student / rate, (active + student) / rate, how)

    @classmethod
    def of(cls, recipe: DistillRecipe, measured: Measured) -> ClipSeconds:
        extraction = measured.extraction_seconds() if recipe.teachers else 0.0
        how = f"from what was measured on this machine, {measured.machine['device']}"
        return cls(extraction, measured.cached_seconds(recipe), measured.online_seconds(recipe), how)


def plan_store(recipe: DistillRecipe, *, catalog_path: Path, store_dir: Path) -> Store:
    """Fix the views of a catalog, and create the store (or find the same one).

    The teachers are loaded once, to name them by the hash of their weights.

    Raises:
        IdentityError: `store_dir` holds a store of another plan, view section or teacher; names the field.
        UsageError: the catalog has no readable video; a teacher's grid is not the views'.
    """
    catalog = Catalog.read(catalog_path)
    if not any(video.status == "ok" for video in catalog.videos):
        raise UsageError(
            f"{catalog_path} has no readable video among {len(catalog.videos)}; see `mvd-offline videos scan`."
        )
    teachers = {name: teacher_for(section, recipe.view, name) for name, section in recipe.teachers.items()}
    codecs = _codecs(recipe, teachers, catalog, store_dir)
    columns = [column_of(recipe, name, teacher, codecs[name]) for name, teacher in teachers.items()]
    if (bake := recipe.store.bake) is not None:
        columns.append(clips_column(recipe.view.frames, recipe.view.image_size, bake.codec, recipe.store.container))
    weights = {recipe.column(name): absolute_weights(section.weights) for name, section in recipe.teachers.items()}
    return make_store(store_dir, catalog, recipe.view, recipe.store, columns, weights)


def make_store(
    store_dir: Path,
    catalog: Catalog,
    view: ViewSection,
    section: StoreSection,
    columns: Sequence[ColumnSpec],
    weights: Mapping[str, str],
) -> Store:
    """Draw the views of a catalog, and create their store (or find the same one, and add the columns it lacks).

    Args:
        weights: of each column's teacher: where `extract` finds them on this machine.

    Raises:
        IdentityError: `store_dir` holds another store; names the field.
    """
    plan, grid = Plan.from_catalog(catalog, view, section.rows_per_shard), view.grid
    header = StoreHeader(
        plan_sha256=plan.sha256,
        rows=plan.rows,
        rows_per_shard=section.rows_per_shard,
        batch_rows=section.batch_rows,
        grid=(grid.t, grid.h, grid.w),
        view=view.model_dump(mode="json"),
        columns={column.name: column for column in columns},
    )
    store = create_store(store_dir, header, plan.to_bytes())
    update_local(
        store_dir, lambda local: replace(local, videos_root=catalog.root, teachers={**local.teachers, **weights})
    )
    return store


def _codecs(
    recipe: DistillRecipe, teachers: Mapping[TeacherName, Teacher], catalog: Catalog, store_dir: Path
) -> dict[TeacherName, str]:
    """Names of the columns' codecs; a basis of `klt` that the store does not have yet is learnt.

    Raises as `learn_codec`.
    """
    section = recipe.store
    found: dict[TeacherName, str] = {}
    if (store_dir / "store.json").is_file():
        columns = read_header(store_dir).columns
        stored = {name: columns[recipe.column(name)].codec for name in teachers if recipe.column(name) in columns}
        found = {name: codec for name, codec in stored.items() if codec_family(codec) == section.codec_family}
    missing = [name for name in teachers if name not in found]
    if section.codec != "klt" or not missing:
        return {**dict.fromkeys(missing, section.codec), **found}
    plan = Plan.from_catalog(catalog, recipe.view, section.rows_per_shard)
    load = partial(
        load_as_planned,
        root=catalog.root,
        image_size=recipe.view.image_size,
        sizes=sorted({teachers[name].image_size for name in missing}),
        bake=section.bake.codec if section.bake else None,
    )
    clips = sample_clips(plan, section.klt.sample_views, load)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    learnt = {name: learn_codec(teachers[name].to(device), clips, section.klt, section.batch_rows) for name in missing}
    return {**found, **learnt}


def column_of(recipe: DistillRecipe, name: TeacherName, teacher: Teacher, codec: str) -> ColumnSpec:
    """The store's column for a teacher; `codec` is the full name."""
    return ColumnSpec(
        name=recipe.column(name),
        tokens=recipe.view.grid.num_tokens,
        width=teacher.width,
        codec=codec,
        container=recipe.store.container,
        source=teacher.identity(),
        max_relative_error=recipe.store.max_relative_error,
    )


def estimate(
    recipe: DistillRecipe, store: Store, sustained_tflops: float = 100.0, *, measured: Measured | None = None
) -> Estimate:
    """What the extraction into a store that was planned with `recipe`, and a training on it, will take.

    Args:
        measured: rates of the device, in place of `sustained_tflops`.
    """
    plan = Plan.read(store.plan_path)
    columns = {name: store.header.columns[recipe.column(name)] for name in recipe.teachers}
    statuses = plan.counts()
    good = statuses.pop("ok", 0)
    clip = ClipSeconds.of(recipe, measured) if measured else ClipSeconds.at(recipe, store, sustained_tflops)
    row_bytes = {
        name: measured.row_bytes[name] if measured else _stored_row_bytes(store, name) for name in store.columns
    }
    epochs = recipe.optim.stop_after_epochs or recipe.optim.epochs
    clips_per_epoch, trained = good / recipe.view.groups, epochs * good / recipe.view.groups
    extraction, saved = good * clip.extraction, clips_per_epoch * (clip.online - clip.cached)
    read = [recipe.column(name) for name in recipe.active_teachers] + [CLIPS] * (CLIPS in row_bytes)
    return Estimate(
        videos=plan.videos,
        rows=len(plan),
        failed_rows=statuses,
        shards=store.shard_count,
        grid=str(recipe.view.grid),
        teachers={spec.name: describe(spec) for spec in columns.values()},
        bytes_by_codec={
            **{name: good * _row_bytes(name, list(columns.values())) for name in CODECS},
            recipe.store.codec_family: good * sum(row_bytes[spec.name] for spec in columns.values()),
        },
        codec=recipe.store.codec_family,
        clips_bytes=good * row_bytes[CLIPS] or None if CLIPS in row_bytes else 0,
        sustained_tflops=None if measured else sustained_tflops,
        measured=measured,
        hours=hours_of(
            recipe,
            [store.root],
            extraction=estimated(extraction, clip.how),
            cached=estimated(trained * clip.cached, clip.how),
            online=estimated(trained * clip.online, clip.how),
        ),
        step_seconds=recipe.optim.batch_size * clip.cached,
        clips_per_second=1 / clip.cached,
        read_megabytes_per_second=sum(row_bytes[name] for name in read) / clip.cached / 1e6,
        break_even_epoch=extraction / saved if saved > 0 else None if extraction else 0.0,
    )


def student_flops(recipe: DistillRecipe, widths: Mapping[TeacherName, int]) -> int:
    """Operations that training spends on one clip whose frozen teachers' targets are there already."""
    step = distill_step(recipe, widths, clips=1)
    flops = step.flops(checkpointed=recipe.student.checkpoint_activations)
    return flops + (momentum_flops(recipe, widths) if recipe.momentum else 0)


def describe(column: ColumnSpec) -> str:
    """A column's teacher in a line."""
    source, arch = column.source, column.source["architecture"]
    size = f"width {arch['width']}, depth {arch['depth']}, heads {arch['heads']}, {source['image_size']} px"
    return f"{size}, {source['precision']}, sha256 {source['weights_sha256']}"


def _stored_row_bytes(store: Store, column: str) -> int:
    """Of one row as the store has it: measured where its rows have lengths of their own, on rows or on the sample."""
    codec = get_codec(store.header.columns[column].codec)
    return store.row_bytes(column) or (codec.typical_bytes if isinstance(codec, KltCodec) else None) or 0


def _row_bytes(codec: str, columns: Sequence[ColumnSpec]) -> int:
    return sum(get_codec(codec).nbytes(column.tokens, column.width) for column in columns)
