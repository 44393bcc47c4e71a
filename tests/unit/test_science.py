"""The miniature's data asks what it says it asks, and its results say what was measured."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mvd_offline.bench.science.compute import student_flops
from mvd_offline.bench.science.jobs import (
    METHODS,
    fill_store,
    measure_other,
    measure_student,
    prepare_videos,
    store_folder,
    train_teacher,
)
from mvd_offline.bench.science.learnt import share_predicted
from mvd_offline.bench.science.results import ORDERINGS, Accuracy, Measured, compare
from mvd_offline.bench.science.rows import IMAGE_TEACHER, Row, store_rows, student_rows
from mvd_offline.bench.science.run import QUICK, collect, science
from mvd_offline.bench.science.videos import FRAMES, JITTER, SIDE, Task
from mvd_offline.bench.science.work import part
from mvd_offline.costs.dry_run import dry_run_distill
from mvd_offline.costs.teachers import teacher_cost
from mvd_offline.errors import UsageError
from mvd_offline.probing.linear import fit_linear, standardise
from mvd_offline.randomness import KeyedStream
from mvd_offline.video.synthetic import MOTIONS, TEXTURES, draw_frames

Clips = NDArray[np.float32]
OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}

# ---- the data ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clips() -> dict[str, dict[tuple[str, str, int], Clips]]:
    """Clips of four grey frames, (4, SIDE, SIDE), by split and (texture, motion, number)."""
    return {
        split: {(t, m, n): clip(split, t, m, n) for t in TEXTURES for m in MOTIONS for n in range(count)}
        for split, count in (("train", 16), ("test", 8))
    }


def clip(split: str, texture: str, motion: str, number: int) -> Clips:
    stream = KeyedStream("test", split, texture, motion, number)
    frames = draw_frames(SIDE, SIDE, FRAMES[0], texture, motion, stream, jitter=JITTER)
    grey: Clips = frames[:13:4].astype(np.float32).mean(axis=3)
    return grey


def displacement(one: NDArray[np.float32], other: NDArray[np.float32]) -> tuple[int, int]:
    """(x, y) of the best cyclic shift that takes `one` to `other`."""
    product = np.fft.fft2(other - other.mean()) * np.conj(np.fft.fft2(one - one.mean()))
    y, x = np.unravel_index(np.argmax(np.fft.ifft2(product).real), one.shape)
    half = len(one) // 2
    return int((x + half) % len(one) - half), int((y + half) % len(one) - half)


def direction(frames: Clips) -> str:
    """What the displacements of neighbouring frames add up to."""
    x, y = np.sum([displacement(a, b) for a, b in itertools.pairwise(frames)], axis=0)
    return max(MOTIONS, key=lambda name: MOTIONS[name][0] * x + MOTIONS[name][1] * y)


def share_of(right: list[bool]) -> float:
    return float(np.mean(right))


def linear_accuracy(
    clips: dict[str, dict[tuple[str, str, int], Clips]], label: int, classes: tuple[str, ...], spectrum: bool
) -> float:
    """Of a linear classifier of single frames: of their pixels, or of their spectra, which know no place."""

    def rows(split: str) -> tuple[torch.Tensor, torch.Tensor]:
        frames = [(frame, key[label]) for key, frames in clips[split].items() for frame in frames[::3, ::2, ::2]]
        pixels = np.stack([np.log1p(np.abs(np.fft.rfft2(frame))) if spectrum else frame for frame, _ in frames])
        return torch.from_numpy(pixels.reshape(len(frames), -1)).float(), torch.tensor(
            [classes.index(name) for _, name in frames]
        )

    (train, train_labels), (test, test_labels) = rows("train"), rows("test")
    train, test = standardise(train, test)
    weight, bias = fit_linear(train, train_labels, len(classes))
    return float(((test @ weight + bias).argmax(1) == test_labels).double().mean())


def test_a_single_frame_tells_the_texture_and_not_the_direction(
    clips: dict[str, dict[tuple[str, str, int], Clips]],
) -> None:
    assert linear_accuracy(clips, 0, TEXTURES, spectrum=True) > 0.6
    for spectrum in (False, True):
        assert linear_accuracy(clips, 1, tuple(MOTIONS), spectrum) < 0.35, "chance is 0.25"


def test_the_frames_in_their_order_tell_the_direction_and_backwards_they_tell_the_opposite(
    clips: dict[str, dict[tuple[str, str, int], Clips]],
) -> None:
    assert share_of([direction(frames) == motion for (_, motion, _), frames in clips["test"].items()]) > 0.9
    assert share_of([direction(f[::-1]) == OPPOSITE[motion] for (_, motion, _), f in clips["test"].items()]) > 0.9


def test_neighbouring_frames_tell_less_of_the_direction_than_first_and_last(
    clips: dict[str, dict[tuple[str, str, int], Clips]],
) -> None:
    neighbours, ends = (
        share_of([direction(frames[list(pair)]) == motion for (_, motion, _), frames in clips["test"].items()])
        for pair in ((1, 2), (0, -1))
    )

    assert neighbours < 0.85 < 0.9 < ends


def test_shuffled_frames_do_not_tell_a_direction_from_its_opposite(
    clips: dict[str, dict[tuple[str, str, int], Clips]],
) -> None:
    said: Counter[str] = Counter()
    for (texture, motion, number), frames in clips["test"].items():
        for shuffle in range(2):
            order = KeyedStream("shuffle", texture, motion, number, shuffle).permutation(4)
            found = direction(frames[order])
            said["right" if found == motion else "opposite" if found == OPPOSITE[motion] else "other axis"] += 1

    assert 0.7 < said["right"] / said["opposite"] < 1.4, "of the two directions of an axis, either"


# ---- the work ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the videos, the teachers and the store are made."""
    folder = tmp_path_factory.mktemp("science")
    make_what_rows_share(folder)
    return folder


def make_what_rows_share(folder: Path) -> None:
    prepare_videos(folder, QUICK, 1)
    for method in METHODS:
        train_teacher(folder, QUICK, method)
    fill_store(folder, QUICK, store_rows(student_rows(QUICK.groups))[0])


def test_one_student_goes_through_every_stage_and_nothing_is_done_twice(made: Path) -> None:
    both = store_rows(student_rows(QUICK.groups))[0]

    def everything() -> dict[Path, int]:
        make_what_rows_share(made)
        measure_student(made, QUICK, both, 0)
        measure_other(made, QUICK, IMAGE_TEACHER, 0)
        return {path: path.stat().st_mtime_ns for path in made.rglob("*") if path.is_file()}

    assert everything() == everything()
    rows = collect(made, QUICK, 1, quick=True).tables["objectives"]
    for row in (row for row in rows if row.row in (both, IMAGE_TEACHER)):
        for tasks in row.accuracy.values():
            for accuracy in tasks.values():
                assert len(accuracy.values) == 1
                assert 0.0 <= accuracy.mean <= 1.0
    learnt = {row.row.name: set(row.learnt) for row in rows}
    assert (learnt[both.name], learnt[IMAGE_TEACHER.name]) == ({"image", "video"}, {"pixels"})


def test_pixels_alone_may_compute_as_much_as_a_student_of_two_teachers(made: Path) -> None:
    rows = {row.name: row for row in student_rows(QUICK.groups)}
    scale = replace(QUICK, overrides={**QUICK.overrides, "distill": (*QUICK.overrides["distill"], "optim.epochs=40")})
    both, pixels = (scale.student(made, rows[name], 0) for name in ("both", "pixels"))
    store = store_folder(made, rows["both"])
    views, clips = 2 * 16, 40 * 16  # of the store; of 40 epochs
    teachers = sum(teacher_cost(both, name).flops for name in both.teachers)
    step = dry_run_distill(both, samples=16, processes=1, tflops=1.0).flops.training

    assert both.optim.epochs == 40
    assert student_flops(both, store) == clips * step + views * teachers
    assert student_flops(both.model_copy(update={"targets": "online"}), store) == clips * (step + teachers)
    assert pixels.optim.epochs > 45
    assert student_flops(pixels, store) == pytest.approx(student_flops(both, store), rel=0.5 / pixels.optim.epochs)


@pytest.mark.parametrize("masked", [False, True])
def test_what_is_learnt_is_one_for_the_targets_themselves_and_nothing_for_the_mean_of_each_place(masked: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(6, 4, 3, generator=generator) + torch.arange(4)[:, None]
    masks = torch.tensor([[True, False, True, False], [False, True, False, True]] * 3) if masked else None
    means = targets.mean(dim=0).expand_as(targets)
    wanted, mean = (targets, means) if masks is None else (targets[masks], means[masks])

    assert share_predicted(wanted, wanted, targets, masks) == 1.0
    assert share_predicted(mean, wanted, targets, masks) == pytest.approx(0.0, abs=1e-6)
    assert share_predicted(torch.zeros_like(wanted), wanted, targets, masks) < 0.0


def test_a_part_that_failed_is_done_again(tmp_path: Path) -> None:
    def fails() -> None:
        raise UsageError("no")

    with pytest.raises(UsageError):
        part(tmp_path, "one", fails)

    assert part(tmp_path, "one", lambda: {"value": 1})["value"] == 1
    assert part(tmp_path, "one", lambda: {"value": 2})["value"] == 1


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")

    with pytest.raises(UsageError, match="not empty"):
        science(tmp_path, seeds=1, quick=True, processes=1, say=print)


# ---- the results -------------------------------------------------------------------------------------------------


def with_values(name: str, *values: float) -> Measured:
    tasks: dict[Task, Accuracy] = {"spatial": Accuracy(values), "temporal": Accuracy(())}
    return Measured(Row(name, name), {"finetuned": tasks, "probed": tasks}, (), (), None, {})


@pytest.mark.parametrize(
    ("image", "video", "verdict"),
    [
        ((0.8, 0.7, 0.9), (0.7, 0.62, 0.8), "as in the paper"),
        ((0.8, 0.7), (0.7, 0.6), "undecided"),
        ((0.7, 0.62, 0.8), (0.8, 0.7, 0.9), "against the paper"),
        ((0.71, 0.71, 0.9), (0.7, 0.7, 0.7), "undecided"),
        ((0.8, 0.6), (0.7, 0.7), "undecided"),
        ((0.8, 0.7), (0.7,), "not measured"),
    ],
)
def test_an_ordering_is_shown_only_where_three_seeds_agree_clearly(
    image: tuple[float, ...], video: tuple[float, ...], verdict: str
) -> None:
    rows = {"image": with_values("image", *image), "video": with_values("video", *video)}

    assert compare(ORDERINGS[0], "finetuned", rows).verdict == verdict
