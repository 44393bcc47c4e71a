"""Pictures of rows, and the teachers run again over them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mvd_offline.geometry import TokenGrid
from mvd_offline.inspection import CELL, LABEL, MARGIN, contact_sheet, describe_row, principal_colours
from mvd_offline.recompute import recompute
from mvd_offline.shards import MissingRowError, Store, open_store
from mvd_offline.video.views import Plan


@pytest.fixture
def broken_view(extracted: Store) -> int:
    return next(view.view_id for view in Plan.read(extracted.plan_path) if view.status != "ok")


@pytest.fixture
def good_view(extracted: Store) -> int:
    return int(extracted.ok_rows()[0])


def test_a_row_is_described_by_its_view_and_its_records(extracted: Store, good_view: int) -> None:
    row = describe_row(extracted.root, good_view)
    assert row["view"]["view_id"] == good_view
    assert set(row["columns"]) == {"image", "video"}
    norms = np.linalg.norm(extracted.read([good_view])["video"][0].astype(np.float32), axis=1)
    assert row["columns"]["video"]["mean_token_norm"] == pytest.approx(norms.mean(), rel=1e-5)


def test_a_row_without_target_is_described_by_its_reason(extracted: Store, broken_view: int) -> None:
    row = describe_row(extracted.root, broken_view)
    assert row["columns"]["image"]["status"] == "unreadable"
    assert row["columns"]["image"]["detail"]
    assert "mean_token_norm" not in row["columns"]["image"]


def test_a_view_that_does_not_exist_is_refused(extracted: Store) -> None:
    with pytest.raises(MissingRowError, match="no view 99: its plan has 7 views"):
        describe_row(extracted.root, 99)


def test_the_sheet_has_a_row_for_frames_crop_and_each_teacher(extracted: Store, good_view: int) -> None:
    sheet = contact_sheet(extracted.root, good_view)
    slices = extracted.header.grid[0]
    assert sheet.width == 2 * MARGIN + LABEL + slices * (CELL + 6) - 6
    assert sheet.height > 3 * CELL
    yellow = (np.asarray(sheet) == (255, 204, 0)).all(axis=-1)
    assert yellow.any(axis=0).sum() > 20 * slices  # the crop box on every frame


def test_the_sheet_of_a_row_without_target_says_why(extracted: Store, broken_view: int) -> None:
    assert contact_sheet(extracted.root, broken_view).height < 2 * CELL + 100


def test_the_sheet_shows_a_store_that_is_being_filled(extracted: Store, good_view: int, tmp_path: Path) -> None:
    copy = shutil.copytree(extracted.root, tmp_path / "store")
    shutil.rmtree(copy / "commits" / "video")
    (copy / "commits" / "index.json").unlink()
    assert describe_row(copy, good_view)["columns"]["video"]["status"] == "pending"
    assert contact_sheet(copy, good_view).size == contact_sheet(extracted.root, good_view).size


def features(t: int = 2, h: int = 3, w: int = 4) -> NDArray[np.float32]:
    """Tokens whose first axis of variation is their column, second their row, third their slice."""
    slices, rows, columns = np.meshgrid(range(t), range(h), range(w), indexing="ij")
    values = np.stack([10.0 * columns, 2.0 * rows, 0.5 * slices, np.zeros((t, h, w))], axis=-1)
    return values.reshape(-1, 4).astype(np.float32)


def test_colours_are_the_principal_components_in_token_order() -> None:
    colours, shares = principal_colours(features(), TokenGrid(2, 3, 4))
    assert colours.shape == (2, 3, 4, 3)
    red, green, blue = (colours[..., channel].astype(int) for channel in range(3))
    assert (np.diff(red, axis=2) > 0).all()
    assert (np.diff(green, axis=1) > 0).all()
    assert (np.diff(blue, axis=0) > 0).all()
    assert shares == pytest.approx(np.array([125.0, 8 / 3, 1 / 16]) / (125 + 8 / 3 + 1 / 16))


def test_colours_of_equal_tokens_and_of_narrow_targets_are_defined() -> None:
    for values in (np.ones((4, 5), np.float32), np.arange(4, dtype=np.float32)[:, None]):
        colours, _ = principal_colours(values, TokenGrid(1, 2, 2))
        assert colours.shape == (1, 2, 2, 3)


def test_recomputed_rows_are_identical(extracted: Store) -> None:
    report = recompute(extracted.root, rows=3, device="cpu")
    assert report.ok
    assert set(report.columns) == {"image", "video"}
    for column in report.columns.values():
        assert column.identical == column.rows >= 3
        assert column.relative_error["max"] < 1e-3
        assert column.cosine["min"] > 0.999


def test_recomputing_finds_targets_that_are_not_the_teachers(extracted: Store, tmp_path: Path) -> None:
    store = open_store(shutil.copytree(extracted.root, tmp_path / "store"))
    shard = int(store.ok_rows()[0]) // store.header.rows_per_shard
    kept = {view: store.status("video").row(view) for view in store.shard_view_ids(shard).tolist()}
    with store.write_shard("video", shard, producer={}, replace=True) as writer:
        for view, row in kept.items():
            if row.status == "ok":
                wrong = np.ones((store.header.columns["video"].tokens, store.header.columns["video"].width), np.float32)
                writer.add(view, wrong, pixels=row.pixels, decoder=row.decoder)
            else:
                writer.fail(view, row.status, row.detail)
    report = recompute(store.root, rows=16, device="cpu")
    assert not report.ok
    assert "column video: view" in report.findings[0]
    assert report.columns["image"].identical == report.columns["image"].rows


def test_recomputing_finds_a_video_that_changed_or_went(extracted: Store, tmp_path: Path) -> None:
    plan = Plan.read(extracted.plan_path)
    first, second = (plan[int(view_id)] for view_id in extracted.ok_rows()[:2])
    videos = shutil.copytree(extracted.root.parent / "videos", tmp_path / "videos")
    (videos / first.path).unlink()
    report = recompute(extracted.root, rows=16, root=videos, device="cpu")
    assert [finding for finding in report.findings if f"view {first.view_id} cannot be rendered" in finding]
    assert not [finding for finding in report.findings if f"view {second.view_id} " in finding]
