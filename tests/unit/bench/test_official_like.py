"""The official loop's structure computes what our step does, and `bench official-like` says how fast each is."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn

from mvd_offline.bench.official import predict, teacher_features
from mvd_offline.bench.official_contest import CONTENDERS
from mvd_offline.bench.official_like import check_equal
from mvd_offline.cli.main import main
from mvd_offline.errors import MvdError
from mvd_offline.geometry import TokenGrid
from mvd_offline.models.student import Student
from mvd_offline.models.teachers import load_teacher
from mvd_offline.models.vit import Arch

RECIPE = "smoke/distill_vit_s_from_vit_b_k400"


def far_from_its_start(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    """Accelerate keeps the precision of a process's first run for all later ones."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def video() -> torch.Tensor:
    return torch.randn(2, 3, 4, 48, 48, generator=torch.Generator().manual_seed(1))


def test_predictions_and_gradients_are_the_students(video: torch.Tensor) -> None:
    options = {"grid": TokenGrid(2, 3, 3), "targets": {"image": 24, "video": 40}, "drop_path": 0.5}
    student = Student(Arch(48, 3, 3), decoder=Arch(32, 2, 2), **options).train()  # type: ignore[arg-type]
    far_from_its_start(student)
    generator = torch.Generator().manual_seed(2)
    mask = torch.stack([torch.randperm(18, generator=generator) < 12 for _ in range(2)])
    noise = torch.rand(2, student.drop_path_sites, generator=generator)

    found, wanted = predict(student, video, mask, noise), student(video, mask, 12, noise)

    parameters = list(student.parameters())
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-4, atol=1e-5)
    gradients = [
        torch.autograd.grad(sum(p.square().mean() for p in of.values()), parameters)  # type: ignore[arg-type]
        for of in (found, wanted)
    ]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["image", "video"])
def test_features_are_the_teachers(kind: str, video: torch.Tensor) -> None:
    teacher = load_teacher("random:vit_tiny:3", kind, image_size=48, frames=4)  # type: ignore[arg-type]
    far_from_its_start(teacher)

    with torch.no_grad():
        found = teacher_features(teacher, video)

    assert found.shape == (2, 18, 192)
    torch.testing.assert_close(found, teacher(video), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("codec", "cost"), [("float16", 1e-3), ("int8", 1e-2)])
def test_the_command_compares_steps_of_equal_losses(
    codec: str, cost: float, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["bench", "official-like", RECIPE, "--batch", "3", "--rounds", "3", "--tflops", "0.05", "--json"]
    missing = ["--set", "teachers.image.weights=none/vit_tiny.pth", "--set", "training.precision=fp16"]

    assert main([*command, *missing, "--set", f"store.codec={codec}"]) == 0
    report = json.loads(capsys.readouterr().out)

    assert (report["batch_size"], report["steps"], report["rounds"]) == (3, 1, 3)
    if not torch.cuda.is_available():
        assert report["precision"] == "no"
        assert any("float16 needs a GPU" in note for note in report["notes"])
    assert any("none/vit_tiny.pth is not on this machine" in note for note in report["notes"])
    official, online, cached = (report["losses"][name] for name in CONTENDERS)
    assert official.keys() == {"loss", "loss_image", "loss_video"}
    for name, loss in official.items():
        assert online[name] == pytest.approx(loss, rel=2e-3 if report["precision"] == "fp16" else 1e-5)
        assert cached[name] == pytest.approx(loss, rel=cost)
    assert report["operations"]["student"] > 0 < report["operations"]["teachers"]
    assert report["peak_tflops"] == {"median": 0.05, "low": 0.05, "high": 0.05}
    for spreads in (report["clips_per_second"], report["utilization"]):
        assert spreads.keys() == set(CONTENDERS)
        assert all(0 < spread["low"] <= spread["median"] <= spread["high"] for spread in spreads.values())
    assert report["over_official_like"].keys() == {"online", "cached"}
    rate = report["clips_per_second"]["cached"]["high"]
    operations, peak = report["operations"]["student"], 0.05e12
    assert report["utilization"]["cached"]["high"] == pytest.approx(rate * operations / peak)
    assert report["machine"]["torch_threads"] >= 1


def test_the_table_names_all_three(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "official-like", RECIPE, "--rounds", "1"]) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in CONTENDERS)
    assert "GFLOP of the student" in table


def test_what_the_official_loop_does_not_have_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "official-like", RECIPE, "--set", "mask.decoded=0.5"]) == 2
    assert "mask.decoded 0.5" in capsys.readouterr().err


def test_steps_of_other_losses_are_not_compared() -> None:
    losses = {"official-like": {"loss": 1.0}, "online": {"loss": 1.001}, "cached": {"loss": 1.0}}
    check_equal(losses, "fp16")
    with pytest.raises(MvdError, match="their times cannot be compared"):
        check_equal(losses, "no")
