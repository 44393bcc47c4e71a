"""Fixing the views of a store, and saying beforehand what they will cost."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mvd_offline.errors import UsageError
from mvd_offline.geometry import TokenGrid
from mvd_offline.local import Local, absolute_weights, read_local, write_local
from mvd_offline.models.teachers import Teacher, teacher_for
from mvd_offline.models.vit import decoder_arch, encoder_arch
from mvd_offline.recipe import DistillRecipe, TeacherName
from mvd_offline.shards.codecs import CODECS, get_codec
from mvd_offline.shards.schema import ColumnSpec, StoreHeader
from mvd_offline.shards.store import Store, create_store
from mvd_offline.video.catalog import Catalog
from mvd_offline.video.masking import masked_tokens
from mvd_offline.video.views import Plan


@dataclass(frozen=True)
class Estimate:
    """What a store and a training on it will take; times assume `sustained_tflops` of the device."""

    videos: int
    rows: int
    failed_rows: dict[str, int]
    shards: int
    grid: str
    teachers: dict[str, str]
    bytes_by_codec: dict[str, int]
    codec: str
    sustained_tflops: float
    extraction_gpu_hours: float
    online_gpu_hours: float
    cached_gpu_hours: float
    clips_per_second: float
    read_megabytes_per_second: float
    break_even_epoch: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def plan_store(
    recipe: DistillRecipe, *, catalog_path: Path, store_dir: Path, sustained_tflops: float = 100.0
) -> tuple[Store, Estimate]:
    """Fix the views of a catalog, create the store (or find the same one), and estimate.

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
    plan = Plan.from_catalog(catalog, recipe.view, recipe.store.rows_per_shard)
    columns: dict[str, ColumnSpec] = {}
    names: dict[str, str] = {}
    for name in recipe.teachers:
        teacher = teacher_for(recipe.teachers[name], recipe.view, name)
        columns[recipe.column(name)] = column_of(recipe, name, teacher)
        names[recipe.column(name)] = describe(teacher)
    grid = recipe.view.grid
    header = StoreHeader(
        plan_sha256=plan.sha256,
        rows=plan.rows,
        rows_per_shard=recipe.store.rows_per_shard,
        batch_rows=recipe.store.batch_rows,
        grid=(grid.t, grid.h, grid.w),
        view=recipe.view.model_dump(mode="json"),
        columns=columns,
    )
    store = create_store(store_dir, header, plan.to_bytes())
    weights = {recipe.column(name): absolute_weights(section.weights) for name, section in recipe.teachers.items()}
    write_local(store_dir, Local(catalog.root, {**read_local(store_dir).teachers, **weights}))
    return store, estimate(recipe, plan, store, names, sustained_tflops)


def column_of(recipe: DistillRecipe, name: TeacherName, teacher: Teacher) -> ColumnSpec:
    """The store's column for a teacher."""
    return ColumnSpec(
        name=recipe.column(name),
        tokens=recipe.view.grid.num_tokens,
        width=teacher.width,
        codec=recipe.store.codec,
        container=recipe.store.container,
        source=teacher.identity(),
        max_relative_error=recipe.store.max_relative_error,
    )


def describe(teacher: Teacher) -> str:
    arch = teacher.arch
    size = f"width {arch.width}, depth {arch.depth}, heads {arch.heads}, {teacher.image_size} px"
    return f"{size}, {teacher.precision}, sha256 {teacher.weights_sha256}"


# ---- arithmetic --------------------------------------------------------------------------------------------------


def encoder_flops(tokens: int, width: int, depth: int) -> float:
    """Floating-point operations of a forward pass of `depth` blocks: 24 N D^2 + 4 N^2 D a block."""
    return depth * (24.0 * tokens * width**2 + 4.0 * tokens**2 * width)


def teacher_flops(name: TeacherName, grid: TokenGrid, width: int, depth: int) -> float:
    """A teacher's forward pass of one clip: the image teacher sees each slice by itself, with a class token."""
    if name == "video":
        return encoder_flops(grid.num_tokens, width, depth)
    return grid.t * encoder_flops(grid.tokens_per_slice + 1, width, depth)


def student_flops(recipe: DistillRecipe) -> float:
    """Forward and backward (twice the forward) of one clip through encoder and decoders."""
    grid, section = recipe.view.grid, recipe.student
    arch = encoder_arch(section)
    visible = grid.num_tokens - masked_tokens(recipe.mask.kind, grid, recipe.mask.ratio)
    forward = encoder_flops(visible, arch.width, arch.depth)
    decoder = decoder_arch(section.decoder, arch)
    forward += len(recipe.active_teachers) * encoder_flops(grid.num_tokens, decoder.width, decoder.depth)
    return 3.0 * forward


def estimate(
    recipe: DistillRecipe, plan: Plan, store: Store, teachers: dict[str, str], sustained_tflops: float
) -> Estimate:
    grid, rate = recipe.view.grid, sustained_tflops * 1e12
    columns = {name: store.header.columns[recipe.column(name)] for name in recipe.teachers}
    statuses = Counter(plan[view_id].status for view_id in plan.view_ids)
    good = statuses.pop("ok", 0)
    flops = {
        name: teacher_flops(name, grid, columns[name].width, int(columns[name].source["architecture"]["depth"]))
        for name in recipe.teachers
    }
    active = sum(flops[name] for name in recipe.active_teachers)
    student = student_flops(recipe)
    clips_per_second = rate / student
    epochs = recipe.optim.stop_after_epochs or recipe.optim.epochs
    clips_per_epoch = good / recipe.view.groups
    row_bytes = sum(get_codec(recipe.store.codec).nbytes(c.tokens, c.width) for c in columns.values())
    extraction = good * sum(flops.values())
    return Estimate(
        videos=len(plan) // recipe.view.groups,
        rows=len(plan),
        failed_rows=dict(statuses),
        shards=store.shard_count,
        grid=str(grid),
        teachers=teachers,
        bytes_by_codec={
            name: good * sum(get_codec(name).nbytes(c.tokens, c.width) for c in columns.values()) for name in CODECS
        },
        codec=recipe.store.codec,
        sustained_tflops=sustained_tflops,
        extraction_gpu_hours=extraction / rate / 3600,
        online_gpu_hours=epochs * clips_per_epoch * (active + student) / rate / 3600,
        cached_gpu_hours=(extraction + epochs * clips_per_epoch * student) / rate / 3600,
        clips_per_second=clips_per_second,
        read_megabytes_per_second=clips_per_second * row_bytes / 1e6,
        break_even_epoch=extraction / (clips_per_epoch * active) if active and clips_per_epoch else 0.0,
    )
