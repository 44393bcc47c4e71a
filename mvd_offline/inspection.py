"""One row of a store, in words and as a picture: the frames, the crop, and what each teacher makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from mvd_offline.errors import VideoError
from mvd_offline.geometry import TokenGrid
from mvd_offline.local import resolve_root
from mvd_offline.shards.errors import MissingRowError
from mvd_offline.shards.jpeg import psnr
from mvd_offline.shards.schema import CLIPS, RowRecord
from mvd_offline.shards.store import Store, open_store
from mvd_offline.sheet import CELL, INK, MOST_SLICES, Pixels, Row, assemble_sheet, cell, shown_slices, wrapped
from mvd_offline.video.decode import decode
from mvd_offline.video.render import crop_and_resize
from mvd_offline.video.views import Plan, View, pixel_hash

BOX: Final = (255, 204, 0)


def describe_row(store_dir: Path, view_id: int) -> dict[str, Any]:
    """The view from the plan, and the row's record in each column with the norms of its tokens.

    Raises:
        MissingRowError: the plan has no such view.
    """
    store = open_store(store_dir, sealed=False)
    view = _view(store, Plan.read(store.plan_path), view_id)
    columns: dict[str, Any] = {}
    for name in store.columns:
        record = _record(store, name, view_id)
        if record is None:
            columns[name] = {"status": "pending", "detail": "its shard is not committed yet"}
            continue
        columns[name] = {"file": store.shard_path(name, view.shard).relative_to(store.root).as_posix()}
        columns[name] |= asdict(record)
        if record.status == "ok" and name == CLIPS:
            columns[name]["psnr"] = psnr(record.relative_error)
        elif record.status == "ok":
            columns[name] |= _norms(_features(store, name, view_id))
    return {"view": asdict(view), "columns": columns}


def _record(store: Store, column: str, view_id: int) -> RowRecord | None:
    """The ledger's line; None while the shard is not committed."""
    index = store.status(column)
    return index.row(view_id) if view_id in index else None


def _norms(features: NDArray[np.float32]) -> dict[str, float]:
    norms = np.linalg.norm(features, axis=1)
    return {
        "mean_token_norm": float(norms.mean()),
        "min_token_norm": float(norms.min()),
        "max_token_norm": float(norms.max()),
        "mean": float(features.mean()),
        "std": float(features.std()),
    }


def _view(store: Store, plan: Plan, view_id: int) -> View:
    if view_id not in plan:
        raise MissingRowError(
            f"{store.root} has no view {view_id}: its plan has {len(plan)} views, {plan.view_ids[0]} to "
            f"{plan.view_ids[-1]}, with gaps at the ends of groups."
        )
    return plan[view_id]


def _features(store: Store, column: str, view_id: int) -> NDArray[np.float32]:
    """A row as float32 (N, D)."""
    features: NDArray[np.float32] = store.read([view_id], [column])[column][0].astype(np.float32)
    return features


# ---- what can be seen of a view ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class TeacherPicture:
    """What one teacher made of a view; `colours` is None where it has no target, or not one a token."""

    status: str
    detail: str
    width: int
    codec: str
    colours: Pixels | None = None
    """uint8 (t, h, w, 3): see `principal_colours`."""
    shares: tuple[float, ...] = ()
    """Of the variance, by component."""
    norms: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Mean, smallest and largest norm of a token."""


@dataclass(frozen=True)
class ViewPictures:
    """A view slice by slice: the front frame of some of its tubelets, and each teacher's features there."""

    view: View
    slices: tuple[int, ...]
    """Which slices of the token grid are shown."""
    teachers: Mapping[str, TeacherPicture]
    originals: Pixels | None = None
    """uint8 (slices, height, width, 3): the decoded frames; None where the video cannot be read."""
    crops: Pixels | None = None
    """uint8 (slices, S, S, 3): as the teachers saw them."""
    decoder: str = ""
    same_pixels: bool = True
    """Whether the crops hash to what the teachers saw."""
    trouble: str = ""
    """Why there are no frames."""
    frame_numbers: tuple[int, ...] = ()
    """Of the frames shown, in the video."""


def view_pictures(store: Store, plan: Plan, view_id: int, root: Path | None) -> ViewPictures:
    """Decode a view and colour its targets; at most eight slices, evenly spread.

    A video that cannot be read (any more) is no error here: `trouble` says so, and the targets are still shown.

    Args:
        root: the folder of the videos; None where it is not known.

    Raises:
        MissingRowError: the plan has no such view. CorruptionError: a target does not match its checksum.
    """
    view = _view(store, plan, view_id)
    grid = TokenGrid(*store.header.grid)
    slices = shown_slices(grid.t)
    front = [slice_ * plan.section.tubelet_size for slice_ in slices]
    teachers = {name: _teacher_picture(store, name, view_id, grid) for name in store.target_columns}
    pictures = ViewPictures(
        view, tuple(slices), teachers, frame_numbers=tuple(view.frame_indices[i] for i in front if view.frame_indices)
    )
    if view.status != "ok":
        return replace(pictures, trouble=f"{view.status}: {view.detail}")
    if root is None:
        return replace(pictures, trouble="the folder of the videos is not known on this machine")
    try:
        decoded = decode(root / view.path, view.frame_indices, reader=view.decoder)
    except VideoError as error:
        return replace(pictures, trouble=f"{error.status}: {error.reason}")
    height, width = decoded.frames.shape[1:3]
    if (width, height) != (view.width, view.height):
        changed = f"the file has changed: its frames are {width} x {height} px, not {view.width} x {view.height}"
        return replace(pictures, trouble=changed)
    size = plan.section.image_size
    rendered = crop_and_resize(decoded.frames, view.crop, size, size, flip=view.flip)
    if CLIPS in store.columns and (record := _record(store, CLIPS, view_id)) and record.status == "ok":
        rendered = store.read([view_id], [CLIPS])[CLIPS][0]
    recorded = {record.pixels for name in store.columns if (record := _record(store, name, view_id))} - {""}
    return replace(
        pictures,
        originals=decoded.frames[front],
        crops=rendered[front],
        decoder=decoded.decoder,
        same_pixels=recorded <= {pixel_hash(rendered)},
    )


def _teacher_picture(store: Store, name: str, view_id: int, grid: TokenGrid) -> TeacherPicture:
    spec, record = store.header.columns[name], _record(store, name, view_id)
    if record is None or record.status != "ok":
        status, detail = ("pending", "") if record is None else (record.status, record.detail)
        return TeacherPicture(status, detail, spec.width, spec.codec)
    if spec.tokens != grid.num_tokens:
        return TeacherPicture(record.status, "a mean over tokens has no picture", spec.width, spec.codec)
    features = _features(store, name, view_id)
    colours, shares = principal_colours(features, grid)
    norms = np.linalg.norm(features, axis=1)
    return TeacherPicture(
        record.status,
        record.detail,
        spec.width,
        spec.codec,
        colours=colours,
        shares=tuple(shares.tolist()),
        norms=(float(norms.mean()), float(norms.min()), float(norms.max())),
    )


def principal_colours(features: NDArray[np.float32], grid: TokenGrid) -> tuple[Pixels, NDArray[np.float64]]:
    """First three principal components over a clip's tokens as colours.

    Each component is stretched from its 2nd to its 98th percentile, so that a few outlying tokens do not leave the
    rest grey; its sign makes its largest loading positive.

    Args:
        features: (N, D), in t, h, w order.

    Returns:
        uint8 (t, h, w, 3), and the shares of variance (3,).
    """
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    variances, axes = np.linalg.eigh(centred.T @ centred)
    kept = np.zeros((features.shape[1], 3))
    count = min(3, features.shape[1])
    kept[:, :count] = axes[:, ::-1][:, :count]
    kept *= np.where(kept[np.abs(kept).argmax(axis=0), range(3)] < 0, -1.0, 1.0)
    scores = centred @ kept
    low, high = np.percentile(scores, (2.0, 98.0), axis=0)
    unit = np.clip((scores - low) / np.maximum(high - low, 1e-12), 0.0, 1.0)
    shares = np.zeros(3)
    shares[:count] = np.maximum(variances[::-1][:count], 0.0) / max(float(variances.sum()), 1e-30)
    return (unit * 255).round().astype(np.uint8).reshape(grid.t, grid.h, grid.w, 3), shares


def framed(frame: Pixels, view: View, side: int) -> Image.Image:
    """A whole frame fitted into a square of `side` pixels, with the view's crop box on it."""
    scale = side / max(frame.shape[1], frame.shape[0])
    width, height = round(frame.shape[1] * scale), round(frame.shape[0] * scale)
    picture = Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS)
    crop = view.crop
    corners = [crop.x * scale, crop.y * scale, (crop.x + crop.w) * scale - 1, (crop.y + crop.h) * scale - 1]
    draw = ImageDraw.Draw(picture)
    draw.rectangle(corners, outline=INK, width=4)
    inner = [corners[0] + 1, corners[1] + 1, corners[2] - 1, corners[3] - 1]
    draw.rectangle(inner, outline=BOX, width=2)
    return picture


# ---- the contact sheet -------------------------------------------------------------------------------------------


def contact_sheet(store_dir: Path, view_id: int, root: Path | None = None) -> Image.Image:
    """Draw a view: one column of the picture a slice of tokens (its tubelet's front frame), at most eight.

    From top to bottom: the original frames with the crop box, the rendered crop, and for each teacher the first three
    principal components of its features over this clip's tokens, as red, green and blue. Where the video cannot be
    read any more the picture says why.

    Raises:
        MissingRowError: the plan has no such view. UsageError: the folder of the videos is not known.
    """
    store = open_store(store_dir, sealed=False)
    plan = Plan.read(store.plan_path)
    view = _view(store, plan, view_id)
    if view.status != "ok":
        cells: list[Image.Image | None] = [None] * min(store.header.grid[0], MOST_SLICES)
        return assemble_sheet(_heading(store, view), [], [([view.status, *wrapped(view.detail)], cells)])
    pictures = view_pictures(store, plan, view_id, resolve_root(store_dir, root))
    rows = [*_frame_rows(pictures), *(_teacher_row(pictures, name) for name in store.target_columns)]
    return assemble_sheet(_heading(store, view), [f"frame {number}" for number in pictures.frame_numbers], rows)


def _frame_rows(pictures: ViewPictures) -> list[Row]:
    view, crop = pictures.view, pictures.view.crop
    if pictures.originals is None or pictures.crops is None:
        return [(["no frames", *wrapped(pictures.trouble)], [None] * len(pictures.slices))]
    size = pictures.crops.shape[1]
    return [
        (
            ["original frames", f"{view.width} x {view.height} px", f"of {view.frames} frames", pictures.decoder],
            [framed(frame, view, CELL) for frame in pictures.originals],
        ),
        (
            ["rendered crop", f"x {crop.x}  y {crop.y}", f"{crop.w} x {crop.h} -> {size} px"]
            + (["flipped"] if view.flip else [])
            + ["pixels as extracted" if pictures.same_pixels else "PIXELS HAVE CHANGED"],
            [cell(frame, Image.Resampling.LANCZOS) for frame in pictures.crops],
        ),
    ]


def _teacher_row(pictures: ViewPictures, name: str) -> Row:
    picture = pictures.teachers[name]
    title = f"teacher {name}"
    if picture.colours is None:
        return [title, picture.status, *wrapped(picture.detail)], [None] * len(pictures.slices)
    mean, low, high = picture.norms
    label = [
        title,
        "3 principal components",
        "of variance " + " ".join(f"{100 * share:.0f}%" for share in picture.shares),
        f"token norm {mean:.4g}",
        f"  {low:.4g} to {high:.4g}",
        f"{picture.codec}, D = {picture.width}",
    ]
    return label, [cell(picture.colours[slice_], Image.Resampling.NEAREST) for slice_ in pictures.slices]


def _heading(store: Store, view: View) -> list[str]:
    label = f"label {view.label}" if view.label >= 0 else "no label"
    frames = f"frames {view.frame_indices[0]} to {view.frame_indices[-1]}" if view.frame_indices else "no frames"
    return [
        f"view {view.view_id}   {view.video_id}",
        f"group {view.group}, shard {view.shard}, {label}, {frames}, status {view.status}   ·   "
        f"store {store.store_id[:12]}, grid {TokenGrid(*store.header.grid)}",
    ]
