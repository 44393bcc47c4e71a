"""What is counted on fake tensors is what a real step computes and keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from mvd_offline.costs.counting import Activations, StepCost, part_of, step_cost
from mvd_offline.costs.memory import memory_of
from mvd_offline.costs.models import distill_step, finetune_step, pretrain_step
from mvd_offline.losses import objectives_of
from mvd_offline.models.student import student_of
from mvd_offline.recipe import DistillRecipe, TeacherName, load_distill, load_finetune, load_pretrain
from mvd_offline.training.optim import build_optimizer, parameter_groups
from mvd_offline.video.masking import masked_tokens

WIDTHS: dict[TeacherName, int] = {"image": 192, "video": 192}


def recipe(**changes: Any) -> DistillRecipe:
    data = {
        "kind": "distill",
        "name": "small",
        "view": {"frames": 8, "image_size": 112},
        "teachers": {"image": {"weights": "random:vit_tiny"}, "video": {"weights": "random:vit_tiny"}},
        "student": {"width": 192, "depth": 6, "heads": 3, "decoder": {"depth": 3}},
    }
    return load_distill({**data, **changes})


class RealStep:
    """The same step on real tensors."""

    def __init__(self, recipe: DistillRecipe, clips: int) -> None:
        torch.manual_seed(0)
        self.recipe, self.clips = recipe, clips
        self.student = student_of(recipe, WIDTHS).train()
        self.masked = masked_tokens(recipe.mask.kind, recipe.view.grid, recipe.mask.ratio)

    def loss(self) -> Tensor:
        view = self.recipe.view
        video = torch.randn(self.clips, 3, view.frames, view.image_size, view.image_size)
        mask = torch.arange(view.grid.num_tokens).expand(self.clips, -1) < self.masked
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.recipe.training.precision != "no"):
            noise = torch.rand(self.clips, self.student.drop_path_sites)
            predictions = self.student(video, mask, self.masked, noise)
            terms = objectives_of(self.recipe).items()
            return torch.stack(
                [term(predictions[name], torch.randn_like(predictions[name])) for name, term in terms]
            ).sum()


def peak_of(step: Callable[[], object]) -> int:
    """Most bytes that tensors made during `step` take at a time, as torch's profiler sees them."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    assert profiled.profiler is not None
    live = peak = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


@pytest.fixture(scope="module")
def two_clips() -> StepCost:
    return distill_step(recipe(), WIDTHS, 2)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_optimisers_states_are_those_of_a_real_one(optimizer: str) -> None:
    small = load_distill("science/distill", (f"optim.optimizer={optimizer}",))
    widths: dict[TeacherName, int] = {"image": 64, "video": 64}
    student = student_of(small, widths)
    stepping = build_optimizer(
        parameter_groups(student.named_parameters(), weight_decay=0.05), small.optim, torch.device("cpu")
    )
    for parameter in student.parameters():
        parameter.grad = torch.ones_like(parameter)
    stepping.step()

    kept = sum(v.nbytes for state in stepping.state.values() for v in state.values() if v.ndim)
    memory = memory_of(distill_step(small, widths, 1), small.optim, small.training, checkpointed=False, clip_values=0)

    assert memory.optimizer == kept


@pytest.mark.parametrize(("precision", "checkpointed"), [("no", False), ("no", True), ("bf16", False)])
def test_the_estimate_of_memory_is_the_measured_peak(precision: str, checkpointed: bool) -> None:
    base = recipe(training={"precision": precision})
    student = base.student.model_copy(update={"checkpoint_activations": checkpointed})
    small, clips = base.model_copy(update={"student": student}), 4 if precision == "no" else 2
    values = clips * 3 * small.view.frames * small.view.image_size**2
    cost = distill_step(small, WIDTHS, clips)
    estimate = memory_of(cost, small.optim, small.training, checkpointed=checkpointed, clip_values=values)
    real = RealStep(small, clips)
    groups = parameter_groups(real.student.named_parameters(), weight_decay=0.05)
    stepping = build_optimizer(groups, small.optim, torch.device("cpu"))
    real.loss().backward()
    stepping.step()

    # A further micro-batch of an accumulation: gradients and the optimiser's states are there already.
    states = (value for state in stepping.state.values() for value in state.values())
    static = 2 * sum(parameter.nbytes for parameter in real.student.parameters()) + sum(s.nbytes for s in states)
    measured = static + peak_of(lambda: real.loss().backward())

    assert estimate.total == pytest.approx(measured, rel=0.1)
    assert cost.activations["float32"].plain > 2 * cost.activations["float32"].checkpointed


def test_operations_are_those_of_a_real_step(two_clips: StepCost) -> None:
    cost, real = two_clips, RealStep(recipe(), 2)
    # Attention by multiplications, which torch counts on a real processor; fused, its backward has half of one more.
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss = real.loss()
        forward = counter.get_total_flops()
        loss.backward()

    assert sum(cost.forward_flops.values()) == forward // 2
    assert cost.flops(checkpointed=False) == pytest.approx(counter.get_total_flops() / 2, rel=0.05)
    assert sum(cost.forward_flops.values()) > cost.recompute_flops > 0.9 * sum(cost.forward_flops.values())


def test_a_stack_of_blocks_costs_as_much_counted_once_as_run_whole(
    two_clips: StepCost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mvd_offline.costs.counting._KEPT_BLOCKS", 100)

    assert distill_step(recipe(), WIDTHS, 2) == two_clips


def test_activations_grow_with_the_clips_and_operations_of_a_clip_do_not(two_clips: StepCost) -> None:
    eight = distill_step(recipe(), WIDTHS, 8)

    assert two_clips.forward_flops == eight.forward_flops
    assert eight.activations["float32"].plain == pytest.approx(4 * two_clips.activations["float32"].plain, rel=0.01)
    assert eight.activations["16-bit"].plain < eight.activations["float32"].plain


def test_parameters_are_counted_by_part() -> None:
    cost = distill_step(load_distill("distill/vit_s_from_vit_b_k400"), {"image": 768, "video": 768}, 1)

    assert cost.parameter_count == 29_865_600
    assert set(cost.parameters) == set(cost.forward_flops) == {"encoder", "image decoder", "video decoder"}
    assert cost.parameters["image decoder"] == cost.parameters["video decoder"]


def test_the_other_trainings_are_counted_too() -> None:
    classifier = finetune_step(load_finetune("finetune/vit_b_k400"), 1)
    videomae, mae = (
        pretrain_step(load_pretrain(name), 1) for name in ("pretrain/videomae_vit_b_k400", "pretrain/mae_vit_b")
    )

    assert classifier.parameter_count == 86_534_800
    assert classifier.forward_flops["encoder"] / 2e9 == pytest.approx(180, rel=0.02)
    assert set(videomae.forward_flops) == set(mae.forward_flops) == {"encoder", "decoder"}
    assert mae.forward_flops["encoder"] < videomae.forward_flops["encoder"]


def test_a_model_without_blocks_is_counted_as_it_is() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4))

    cost = step_cost(model, lambda model, clips: model(torch.empty(clips, 8)).sum(), clips=3)

    # Nobody asks for the gradient of the input.
    assert cost == StepCost(
        parameters={"encoder": 8 * 16 + 16 + 16 * 4 + 4},
        hidden_matrices=0,
        forward_flops={"encoder": 2 * (8 * 16 + 16 * 4)},
        backward_flops=2 * (8 * 16 + 2 * 16 * 4),
        recompute_flops=0,
        activations=cost.activations,
    )
    assert cost.activations["float32"] == Activations(plain=4 * 3 * (8 + 16), checkpointed=4 * 3 * (8 + 16))


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("blocks.3.attn.qkv.weight", "encoder"),
        ("norm.bias", "encoder"),
        ("decoder_mom.head.bias", "momentum decoder"),
        ("projector_vid.layers.0.weight", "video projector"),
        ("decoder_blocks.0.norm1.weight", "decoder"),
        ("fc_norm.weight", "head"),
    ],
)
def test_a_name_tells_the_part(name: str, part: str) -> None:
    assert part_of(name) == part
