"""The logits of a test as a file, and ensembles of such files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from mvd_offline.errors import UsageError
from mvd_offline.evaluation.ensembles import ensemble
from mvd_offline.evaluation.logits import ViewLogits
from mvd_offline.evaluation.scoring import score
from mvd_offline.evaluation.videos import Unreadable

NAMES = ("a b", "c,d", "é")
GONE = Unreadable("x/gone.mp4", 2, "no such file")


def some_logits(seed: int = 0, segments: int = 2, crops: int = 3, **changes: Any) -> ViewLogits:
    """Of four videos, two of which have one name in two folders."""
    drawn = np.random.default_rng(seed).normal(size=(4, segments, crops, 3)).astype(np.float32)
    ids = ("x/1.mp4", "x/a.b [1] c.mp4", "y/1.mp4", "y/2.mp4")
    return replace(ViewLogits(ids, np.array([0, 1, 1, 2]), drawn, names=NAMES, settings={"weights": "0f"}), **changes)


def assert_same(one: ViewLogits, other: ViewLogits) -> None:
    assert (one.video_ids, one.wrong, one.names, one.settings) == (
        other.video_ids,
        other.wrong,
        other.names,
        other.settings,
    )
    assert one.labels.tolist() == other.labels.tolist()
    assert one.logits.dtype == other.logits.dtype == np.float32
    assert np.array_equal(one.logits, other.logits)


@pytest.mark.parametrize("wrong", [(), (GONE,)])
def test_what_is_written_is_read_back_bit_for_bit(wrong: tuple[Unreadable, ...], tmp_path: Path) -> None:
    logits = some_logits(wrong=wrong)
    logits.write(tmp_path / "new" / "logits.parquet")
    assert_same(ViewLogits.read(tmp_path / "new" / "logits.parquet"), logits)
    first = (tmp_path / "new" / "logits.parquet").read_bytes()
    logits.write(tmp_path / "new" / "logits.parquet")
    assert (tmp_path / "new" / "logits.parquet").read_bytes() == first


def test_any_reader_of_parquet_finds_a_row_a_view(tmp_path: Path) -> None:
    logits = some_logits(wrong=(GONE,))
    logits.write(tmp_path / "l.parquet")
    rows = pq.read_table(tmp_path / "l.parquet").to_pylist()
    assert len(rows) == 4 * 6 + 1
    assert rows[6 + 4] == {
        "video_id": "x/a.b [1] c.mp4", "label": 1, "clip": 1, "crop": 1, "logits": logits.logits[1, 1, 1].tolist(),
    }  # fmt: skip
    assert rows[-1] == {"video_id": "x/gone.mp4", "label": 2, "clip": None, "crop": None, "logits": None}


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no such file; `mvd-offline evaluate` writes logits\.parquet"):
        ViewLogits.read(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("top1")
    with pytest.raises(UsageError, match="are a Parquet file, and this is none"):
        ViewLogits.read(tmp_path / "text.parquet")
    pq.write_table(pq.read_table(write(tmp_path, "l", some_logits())).replace_schema_metadata(), tmp_path / "m.parquet")
    with pytest.raises(UsageError, match=r"not the logits of a test \(version 1; found None\)"):
        ViewLogits.read(tmp_path / "m.parquet")


# ---- ensembles ---------------------------------------------------------------------------------------------------


def write(folder: Path, name: str, logits: ViewLogits) -> Path:
    """In a folder of its own, as a test leaves it."""
    logits.write(folder / name / "logits.parquet")
    return folder / name / "logits.parquet"


def test_an_ensemble_averages_the_probabilities_of_its_members_whatever_their_views(tmp_path: Path) -> None:
    members = [some_logits(0, wrong=(GONE,)), some_logits(1, segments=5, crops=1, wrong=(GONE,))]
    files = [write(tmp_path, name, member) for name, member in zip("ab", members, strict=True)]
    found, alone = ensemble([files[0], files[1].parent])  # a file, and the folder of one
    expected = (members[0].predictions().probabilities + members[1].predictions().probabilities) / 2
    np.testing.assert_allclose(found.probabilities, expected, rtol=1e-15)
    assert score(found).videos == 5
    assert alone == {str(file): score(member.predictions()) for file, member in zip(files, members, strict=True)}


def test_members_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    one = write(tmp_path, "one", some_logits())
    moved = some_logits(video_ids=("x/1.mp4", "x/a.b [1] c.mp4", "z/1.mp4", "y/2.mp4"))
    for name, other, message in (
        ("other", moved, r"tests of different videos: y/1\.mp4 is not in both"),
        ("relabelled", some_logits(labels=np.array([0, 1, 1, 0])), r"y/2\.mp4 is not in both, or has another label"),
        ("unread", some_logits(wrong=(GONE,)), r"x/gone\.mp4 is not in both"),
        ("renamed", some_logits(names=("a", "b", "c")), "a test of other classes"),
        ("fewer", some_logits(logits=np.zeros((4, 1, 1, 2), np.float32), names=()), r"other classes \(2\) than"),
    ):
        with pytest.raises(UsageError, match=message):
            ensemble([one, write(tmp_path, name, other)])
    for alone in ([one], [one, one.parent], []):
        with pytest.raises(UsageError, match="at least two members, each given once"):
            ensemble(alone)
