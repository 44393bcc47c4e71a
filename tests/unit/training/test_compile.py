"""`student.compile`: one graph for all batches, with drop path and masks, and the gradients that the model has."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from mvd_offline.geometry import TokenGrid
from mvd_offline.models.student import Student
from mvd_offline.models.vit import Arch
from mvd_offline.randomness import KeyedStream
from mvd_offline.video.masking import draw_mask, masked_tokens

GRID = TokenGrid(2, 2, 2)


def small_student(checkpoint_activations: bool) -> Student:
    torch.manual_seed(0)
    return Student(
        Arch(width=48, depth=2, heads=3),
        grid=GRID,
        targets={"image": 24, "video": 24},
        decoder=Arch(width=48, depth=2, heads=3),
        drop_path=0.5,
        checkpoint_activations=checkpoint_activations,
    ).train()


def batch(student: Student, number: int) -> tuple[Tensor, Tensor, int, Tensor]:
    generator = torch.Generator().manual_seed(number)
    video = torch.randn(2, 3, 4, 32, 32, generator=generator)
    masks = [draw_mask("tube", GRID, 0.75, KeyedStream("mask", number, clip)) for clip in range(2)]
    noise = torch.rand(2, student.drop_path_sites, generator=generator)
    return video, torch.stack([torch.from_numpy(mask) for mask in masks]), masked_tokens("tube", GRID, 0.75), noise


def gradients(student: Student, inputs: tuple[Tensor, Tensor, int, Tensor]) -> list[Tensor]:
    student.zero_grad()
    sum(prediction.square().mean() for prediction in student(*inputs).values()).backward()  # type: ignore[union-attr]
    return [parameter.grad.clone() for parameter in student.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("checkpoint_activations", [False, True])
def test_a_compiled_student_is_one_graph_for_all_masks_and_drops(checkpoint_activations: bool) -> None:
    student = small_student(checkpoint_activations)
    inputs = [batch(student, number) for number in range(3)]
    expected = [gradients(student, each) for each in inputs]
    assert not torch.equal(inputs[0][1], inputs[1][1])

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    student.compile(backend=counter, fullgraph=True, dynamic=False)
    found = [gradients(student, each) for each in inputs]

    assert counter.frame_count == 1
    for ours, theirs in zip(found, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
