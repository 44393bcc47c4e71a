"""The videos of a catalog as the rows of a training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mvd_offline.errors import UsageError
from mvd_offline.training.catalogs import CatalogRows, say_left_out
from mvd_offline.video.catalog import Catalog, Video

VIDEOS = tuple(
    Video(
        video_id=f"{name}.mp4", path=f"{name}.mp4", label=label, label_name="", frames=9, fps=25.0, width=8, height=8,
        size=1, mtime_ns=2, sha256=name * 64, status="ok", detail="", decoder="decord",
    )
    for label, name in enumerate("abc")
)  # fmt: skip


def rows(folder: Path, *videos: Video, classes: tuple[str, ...] = ()) -> CatalogRows:
    Catalog(videos, folder, classes).write(folder / "catalog.parquet")
    return CatalogRows(folder / "catalog.parquet")


def test_unreadable_videos_are_no_rows_but_are_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = replace(VIDEOS[1], status="unreadable", detail="moov atom not found")
    found = rows(tmp_path, VIDEOS[0], broken, VIDEOS[2])
    assert [video.video_id for video in found.videos] == ["a.mp4", "c.mp4"]
    assert found.left_out == [("b.mp4", "moov atom not found")]
    say_left_out(found)
    assert capsys.readouterr().err == (
        "training on 2 videos; 1 that the scan could not read are left out, such as b.mp4: moov atom not found\n"
    )


def test_nothing_is_said_of_a_whole_catalog(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    say_left_out(rows(tmp_path, *VIDEOS))
    assert capsys.readouterr().err == ""


def test_a_catalog_without_a_readable_video_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no readable video among 1"):
        rows(tmp_path, replace(VIDEOS[0], status="missing"))


def test_a_missing_catalog_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such catalog; `mvd-offline videos scan` writes one"):
        CatalogRows(tmp_path / "none.parquet")


def test_a_list_in_the_place_of_a_catalog_is_refused_with_what_makes_one_of_it(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("a.mp4 0\n")
    with pytest.raises(UsageError, match=r"this is none .*Give what `mvd-offline videos scan` wrote; of a list"):
        CatalogRows(tmp_path / "train.csv")


def test_the_identity_follows_names_contents_and_labels_and_nothing_else(tmp_path: Path) -> None:
    source = rows(tmp_path, *VIDEOS).source
    for change in ({"label": 5}, {"sha256": "f" * 64}, {"video_id": "0.mp4"}):
        assert rows(tmp_path, replace(VIDEOS[0], **change), *VIDEOS[1:]).source != source  # type: ignore[arg-type]
    assert rows(tmp_path, *VIDEOS[:2]).source != source
    other_place = tmp_path / "elsewhere"
    other_place.mkdir()
    assert rows(other_place, *(replace(video, mtime_ns=9) for video in VIDEOS)).source == source


def test_each_epoch_has_each_row_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    many = [replace(VIDEOS[0], video_id=f"{i:03}.mp4") for i in range(40)]
    found = rows(tmp_path, *many)
    orders = [found.order(seed, epoch).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(40)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert np.array_equal(found.order(0, 1), orders[1])


@pytest.mark.parametrize(
    ("label", "classes", "message"),
    [
        (3, (), r"video a\.mp4 has label 3; model\.classes is 3, so labels are 0 to 2"),
        (-1, (), r"video a\.mp4 has label -1 \(none was listed\)"),
        (0, ("x", "y", "z", "w"), r"has 4 classes and model\.classes is 3; --set model\.classes=4"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path: Path, label: int, classes: tuple[str, ...], message: str) -> None:
    found = rows(tmp_path, replace(VIDEOS[0], label=label), *VIDEOS[1:], classes=classes)
    with pytest.raises(UsageError, match=message):
        found.require_labels(3)


def test_labels_that_fit_pass_with_and_without_names(tmp_path: Path) -> None:
    rows(tmp_path, *VIDEOS).require_labels(3)
    rows(tmp_path, *VIDEOS[:1], classes=("x", "y", "z")).require_labels(3)
