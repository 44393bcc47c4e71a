"""Encoders of every kind of checkpoint, and the clips that they are shown."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mvd_offline.errors import CheckpointError
from mvd_offline.models import load_student
from mvd_offline.models.saving import save_model
from mvd_offline.models.student import build_student
from mvd_offline.probing.encoders import EncoderOverrides, open_encoder
from mvd_offline.recipe import DecoderSection, StudentSection, ViewSection, dump_recipe, load_distill

TINY = Path(__file__).parents[2] / "reference" / "mvd_tiny"
HEADS = EncoderOverrides(heads=4)


@pytest.fixture
def student(tmp_path: Path) -> Path:
    """The file of a student of 4 frames of 32 pixels at a stride of 3."""
    recipe = load_distill(
        {
            "kind": "distill",
            "name": "small",
            "view": {"frames": 4, "stride": 3, "image_size": 32},
            "teachers": {"video": {"weights": "random:vit_tiny"}},
        }
    )
    torch.manual_seed(0)
    section = StudentSection(width=48, depth=2, heads=3, decoder=DecoderSection(depth=1))
    path = tmp_path / "student.safetensors"
    save_model(path, build_student(section, recipe.view, {"video": 24}), recipe=dump_recipe(recipe))
    return path


def test_a_student_of_ours_says_all_that_is_needed(student: Path) -> None:
    encoder = open_encoder(student, EncoderOverrides())

    assert encoder.view == ViewSection(frames=4, stride=3, image_size=32, crop="center")
    clip = torch.randn(2, 3, 4, 32, 32)
    with torch.no_grad():
        expected = load_student(student).encode_tokens(clip)
    torch.testing.assert_close(encoder.teacher(clip), expected)
    encoder.teacher.pooled = True
    torch.testing.assert_close(encoder.teacher(clip), expected.mean(dim=1, keepdim=True))


def test_a_run_of_distill_is_taken_by_its_student(student: Path) -> None:
    assert open_encoder(student.parent, EncoderOverrides()).weights == str(student)


def test_options_come_before_what_the_file_says(student: Path) -> None:
    options = EncoderOverrides(frames=6, stride=1, image_size=48, precision="bfloat16")

    encoder = open_encoder(student, options)

    assert encoder.view == ViewSection(frames=6, stride=1, image_size=48, crop="center")
    assert encoder.teacher(torch.randn(1, 3, 6, 48, 48)).shape == (1, 27, 48)
    assert encoder.teacher.identity()["precision"] == "bfloat16"


def test_several_training_views_are_random_and_the_test_view_stays_centred(student: Path) -> None:
    encoder = open_encoder(student, EncoderOverrides())

    assert encoder.train_view(1) == encoder.view
    assert (encoder.train_view(3).groups, encoder.train_view(3).crop) == (3, "multiscale")


@pytest.mark.parametrize(
    ("file", "kind", "positions"),
    [
        ("student_mvd.pth", "video", "sincos_3d"),
        ("video_teacher_videomae.pth", "video", "interleaved_1d"),
        ("image_teacher_mae.pth", "image", "sincos_2d"),
    ],
)
def test_official_files_are_encoders_of_their_kind(file: str, kind: str, positions: str) -> None:
    encoder = open_encoder(TINY / file, EncoderOverrides(heads=4, frames=4, image_size=32))

    assert (encoder.teacher.name, encoder.teacher.positions) == (kind, positions)
    view = encoder.view
    clip = torch.randn(1, 3, view.frames, view.image_size, view.image_size)
    assert encoder.teacher(clip).shape == (1, view.grid.num_tokens, encoder.teacher.width)


def test_an_official_student_tells_its_clips_by_its_position_table() -> None:
    view = open_encoder(TINY / "student_mvd.pth", HEADS).view

    grid = load_student(TINY / "student_mvd.pth", heads=4, decoder_heads=4).grid
    assert (view.grid, view.stride) == (grid, 4)


def test_a_fine_tuned_file_that_does_not_tell_its_positions_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"does not say whether its positions are .* give the student"):
        open_encoder(TINY / "finetuned_mvd.pth", HEADS)


def test_a_folder_of_neither_kind_is_refused_with_the_weights_in_it(student: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with pytest.raises(CheckpointError, match=r"run has neither student\.safetensors, .* has no \.safetensors file\.$"):
        open_encoder(folder, EncoderOverrides())
    student.rename(folder / "classifier.safetensors")
    with pytest.raises(CheckpointError, match=r"is to be judged; the folder has classifier\.safetensors\.$"):
        open_encoder(folder, EncoderOverrides())
