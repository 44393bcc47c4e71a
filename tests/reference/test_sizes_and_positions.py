"""Golden position values and parameter counts of the released models."""

from __future__ import annotations

import pytest
import torch

from mvd_offline.geometry import TokenGrid
from mvd_offline.models.classifier import build_classifier
from mvd_offline.models.positions import interleaved_1d, sincos_2d, sincos_3d
from mvd_offline.models.student import build_student
from mvd_offline.recipe import ClassifierSection, ClipSection, DecoderSection, StudentSection, ViewSection

GRID = TokenGrid(8, 14, 14)
TOKEN_1_2_3 = 227


def assert_values(row: torch.Tensor, values: dict[int, float]) -> None:
    for dim, value in values.items():
        assert row[dim].item() == pytest.approx(value, abs=1e-6)


def test_3d_sincos_of_width_768():
    table = sincos_3d(768, GRID)
    expected = {0: 0.841471, 1: 0.788593, 96: 0.540302, 192: 0.141120, 193: 0.321646}
    assert_values(table[TOKEN_1_2_3], expected | {336: -0.989992, 480: 0.909297, 624: -0.416147})
    assert table.double().sum().item() == pytest.approx(564278.78, abs=0.01)


def test_3d_sincos_of_width_384():
    table = sincos_3d(384, GRID)
    expected = {0: 0.841471, 48: 0.540302, 96: 0.141120, 168: -0.989992, 240: 0.909297, 312: -0.416147}
    assert_values(table[TOKEN_1_2_3], expected)
    assert table.double().sum().item() == pytest.approx(281209.88, abs=0.01)


def test_2d_sincos_puts_the_column_first_and_zeroes_the_class_token():
    table = sincos_2d(768, 14, 14, cls=True)
    assert table.shape == (197, 768)
    assert table[0].abs().sum() == 0
    assert_values(table[1 + 2 * 14 + 3], {0: 0.141120, 192: -0.989992, 384: 0.909297, 576: -0.416147})


def test_videomae_table_interleaves_sine_and_cosine_over_the_flat_index():
    table = interleaved_1d(768, 1568)
    expected = {0: 0.721059, 1: 0.692874, 2: 0.990515, 3: -0.137404, 766: 0.023249, 767: 0.999730}
    assert_values(table[TOKEN_1_2_3], expected)
    assert table.double().sum().item() == pytest.approx(245744.99, abs=0.01)


def trainable(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("arch", "decoder", "teacher_width", "parameters"),
    [
        ("vit_small", DecoderSection(depth=2), 768, 29_865_600),
        ("vit_small", DecoderSection(depth=2), 1024, 30_062_720),
        ("vit_base", DecoderSection(depth=2), 768, 116_942_592),
        ("vit_base", DecoderSection(depth=2), 1024, 117_336_320),
        ("vit_large", DecoderSection(depth=4, width=512, heads=8), 1024, 331_179_008),
        ("vit_huge", DecoderSection(depth=8, width=640, heads=8), 1280, 713_657_600),
    ],
)
def test_students_have_the_released_number_of_trainable_parameters(arch, decoder, teacher_width, parameters):
    with torch.device("meta"):
        targets = {"image": teacher_width, "video": teacher_width}
        student = build_student(StudentSection(arch=arch, decoder=decoder), ViewSection(), targets)
    assert trainable(student) == parameters


@pytest.mark.parametrize(
    ("arch", "parameters"),
    [
        ("vit_small", 22_033_936),
        ("vit_base", 86_534_800),
        ("vit_large", 304_270_736),
        ("vit_huge", 632_119_440),
    ],
)
def test_classifiers_have_the_released_number_of_parameters(arch, parameters):
    with torch.device("meta"):
        classifier = build_classifier(ClassifierSection(arch=arch, classes=400), ClipSection())
    assert trainable(classifier) == parameters
