"""Pictures of rows, and the teachers run again over them."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mvd_offline.geometry import TokenGrid
from mvd_offline.inspection import (
    contact_sheet,
    describe_row,
    principal_colours,
    view_pictures,
)
from mvd_offline.recompute import recompute
from mvd_offline.shards import MissingRowError, RowRecord, Store, open_store
from mvd_offline.sheet import CELL, LABEL, MARGIN
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


def test_pictures_of_a_view_are_its_frames_its_crop_and_its_targets(extracted: Store, good_view: int) -> None:
    plan = Plan.read(extracted.plan_path)
    pictures = view_pictures(extracted, plan, good_view, extracted.root.parent / "videos")
    assert pictures.originals is not None
    assert pictures.crops is not None
    count, size = len(pictures.slices), plan.section.image_size
    assert pictures.originals.shape == (count, pictures.view.height, pictures.view.width, 3)
    assert pictures.crops.shape == (count, size, size, 3)
    assert pictures.same_pixels
    assert pictures.frame_numbers == pictures.view.frame_indices[:: plan.section.tubelet_size]
    assert [picture.status for picture in pictures.teachers.values()] == ["ok", "ok"]


def test_targets_are_shown_where_the_video_is_gone_or_changed(extracted: Store, good_view: int, tmp_path: Path) -> None:
    plan = Plan.read(extracted.plan_path)
    view = plan[good_view]
    gone = view_pictures(extracted, plan, good_view, tmp_path)
    assert gone.originals is None
    assert gone.trouble == "missing: no such file"
    assert gone.teachers["video"].colours is not None
    others = (plan[int(other)] for other in extracted.ok_rows())
    other = next(found for found in others if (found.width, found.height) != (view.width, view.height))
    shutil.copy(extracted.root.parent / "videos" / other.path, tmp_path / view.path)
    assert "the file has changed" in view_pictures(extracted, plan, good_view, tmp_path).trouble
    assert "not known" in view_pictures(extracted, plan, good_view, None).trouble
    sheet = contact_sheet(extracted.root, good_view, tmp_path)
    assert sheet.height > 3 * CELL  # the reason, and two teachers


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


Change = Callable[[RowRecord, NDArray[np.float16]], tuple[RowRecord, NDArray[np.float16]]]


def rewritten(
    extracted: Store, folder: Path, change: Change, producer: Mapping[str, str] | None = None, column: str = "video"
) -> Store:
    """A copy of the store of which a column holds other rows, or comes from another producer."""
    store = open_store(shutil.copytree(extracted.root, folder / "store"))
    for shard in range(store.shard_count):
        record = store.record(column, shard)
        targets = {r.view_id: store.read_coded(column, [r.view_id])[0] for r in record.rows if r.status == "ok"}
        with store.write_shard(column, shard, producer=producer or record.producer, replace=True) as writer:
            for row in record.rows:
                if row.status == "ok":
                    changed, target = change(row, targets[row.view_id])
                    payload = target.tobytes()
                    crc32c = google_crc32c.value(payload)
                    writer.keep(dataclasses.replace(changed, length=len(payload), crc32c=crc32c), payload)
                else:
                    writer.fail(row.view_id, row.status, row.detail)
    store.seal()
    return open_store(store.root)


def same(row: RowRecord, target: NDArray[np.float16]) -> tuple[RowRecord, NDArray[np.float16]]:
    return row, target


def noisy(row: RowRecord, target: NDArray[np.float16]) -> tuple[RowRecord, NDArray[np.float16]]:
    """Ten per cent off."""
    noise = np.random.default_rng(row.view_id).standard_normal(target.shape)
    noise *= 0.1 * np.linalg.norm(target.astype(float)) / np.linalg.norm(noise)
    return row, (target + noise).astype(np.float16)


def test_recomputing_finds_targets_that_are_not_the_teachers(extracted: Store, tmp_path: Path) -> None:
    store = rewritten(extracted, tmp_path, noisy)
    report = recompute(store.root, rows=16, device="cpu")
    video, (finding,) = report.columns["video"], report.findings
    assert video.failing == video.rows
    assert video.relative_error["median"] == pytest.approx(0.1, rel=0.1)
    assert finding.startswith(f"column video: {video.rows} of {video.rows} rows differ from their recomputation")
    assert "teacher, software and device are those of the extraction" in finding
    assert report.columns["image"].identical == report.columns["image"].rows
    assert not report.notes


def test_an_error_that_coding_is_known_to_cost_is_no_finding(extracted: Store, tmp_path: Path) -> None:
    def declared(row: RowRecord, target: NDArray[np.float16]) -> tuple[RowRecord, NDArray[np.float16]]:
        return dataclasses.replace(row, relative_error=0.1), noisy(row, target)[1]

    report = recompute(rewritten(extracted, tmp_path, declared).root, rows=16, device="cpu")
    assert report.ok
    assert report.columns["video"].coding_error["median"] == 0.1
    assert report.columns["video"].identical == 0


def test_another_torch_or_device_is_named_as_a_note_where_the_values_agree(extracted: Store, tmp_path: Path) -> None:
    store = rewritten(extracted, tmp_path, same, {"torch": "2.9.0", "device": "NVIDIA A100"})
    report = recompute(store.root, rows=16, device="cpu")
    assert report.ok
    (note,) = report.notes
    assert note.startswith(
        f"column video: extracted with torch 2.9.0 on NVIDIA A100, here torch {torch.__version__} on"
    )
    assert note.endswith("the values agree within rounding")


def test_another_torch_or_device_is_named_in_the_finding_where_they_do_not(extracted: Store, tmp_path: Path) -> None:
    store = rewritten(extracted, tmp_path, noisy, {"torch": "2.9.0", "device": "NVIDIA A100"})
    report = recompute(store.root, rows=16, device="cpu")
    (finding,) = report.findings
    assert "; extracted with torch 2.9.0 on NVIDIA A100, here torch " in finding
    assert not report.notes


def test_another_decoder_that_gives_the_same_pixels_is_a_note(extracted: Store, tmp_path: Path) -> None:
    def decoded(row: RowRecord, target: NDArray[np.float16]) -> tuple[RowRecord, NDArray[np.float16]]:
        return dataclasses.replace(row, decoder="decord 0.5.2"), target

    store = rewritten(extracted, tmp_path, decoded, column="image")
    report = recompute(store.root, rows=16, device="cpu")
    assert report.ok
    counts = [re.match(r"(\d) views were decoded by decord 0.5.2 at extraction, and by \w+ ", n) for n in report.notes]
    assert sum(int(count[1]) for count in counts if count) == report.pixels_checked


@pytest.mark.parametrize("column", ["image", "video"])
def test_another_decoder_that_gives_other_pixels_is_a_finding_that_names_both(
    extracted: Store, tmp_path: Path, column: str
) -> None:
    def decoded(row: RowRecord, target: NDArray[np.float16]) -> tuple[RowRecord, NDArray[np.float16]]:
        return dataclasses.replace(row, decoder="decord 0.5.2", pixels=f"{row.view_id + 1:016x}"), target

    store = rewritten(extracted, tmp_path, decoded, column=column)
    report = recompute(store.root, rows=16, device="cpu")
    assert len(report.findings) == report.pixels_checked
    for finding in report.findings:
        assert re.search(
            rf"^column {column}: .* other pixels .* with (pyav|decord) [\d.]+ here, 0+\d with decord 0\.5\.2 at",
            finding,
        )


def test_a_teacher_with_other_weights_is_a_finding_beside_what_it_gives(extracted: Store) -> None:
    other = {"video": "random:vit_tiny:9"}
    report = recompute(extracted.root, rows=3, weights=other, device="cpu")
    identity, deviation = report.findings
    assert re.search(r"is not the one of the store:\n  weights_sha256: teacher has '\w+', store has '\w+'$", identity)
    assert deviation.endswith("its teacher is another one, see above")
    assert report.columns["video"].identical == 0
    assert report.columns["image"].identical == report.columns["image"].rows


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("random:vit_small:2", "and nothing was compared:\n  architecture."),
        ("/no/such/file.pth", "cannot be loaded: /no/such/file.pth: no such file"),
    ],
)
def test_a_teacher_that_cannot_be_compared_is_a_finding_and_the_others_are_compared(
    extracted: Store, weights: str, message: str
) -> None:
    report = recompute(extracted.root, rows=1, weights={"video": weights}, device="cpu")
    (finding,) = report.findings
    assert finding.startswith("column video: ")
    assert message in finding
    assert set(report.columns) == {"image"}


def test_recomputing_finds_a_video_that_changed_or_went(extracted: Store, tmp_path: Path) -> None:
    plan = Plan.read(extracted.plan_path)
    first, second = (plan[int(view_id)] for view_id in extracted.ok_rows()[:2])
    videos = shutil.copytree(extracted.root.parent / "videos", tmp_path / "videos")
    (videos / first.path).unlink()
    report = recompute(extracted.root, rows=16, root=videos, device="cpu")
    assert [finding for finding in report.findings if f"view {first.view_id} cannot be rendered" in finding]
    assert not [finding for finding in report.findings if f"view {second.view_id} " in finding]
