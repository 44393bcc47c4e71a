"""Operations and memory of a training step, counted on the very model that would train, without its weights.

Models are built on the `meta` device and run on fake tensors, which have shapes and no values. Operations are those of
`torch.utils.flop_counter`: a multiplication and its addition are two. Papers, and the GFLOPs of MVD's tables, count
them as one: halve these numbers to compare.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from mvd_offline.models.vit import Block
from mvd_offline.training.muon import is_hidden_matrix

PRECISIONS: Final = ("float32", "16-bit")

# torch's counter knows the fused attention of GPUs, and not that of the processor, which fake tensors call.
_ATTENTION: Final[Mapping[Any, Any]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value)
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, query, key, value, *_, **__: sdpa_backward_flop_count(grad, query, key, value)
    ),
}
_KEPT_BLOCKS: Final = 2
_TARGETS: Final = {"img": "image", "vid": "video", "pix": "pixels", "mom": "momentum"}


@dataclass(frozen=True)
class Activations:
    """Bytes that the backward pass of a micro-batch needs of its forward pass, at its end."""

    plain: int
    checkpointed: int
    """With activation checkpointing: the input of every block, and one block's own."""


@dataclass(frozen=True)
class StepCost:
    """One micro-batch through a model and back. Operations are those of one clip, bytes those of the micro-batch."""

    parameters: dict[str, int]
    """By part: the encoder, each decoder or projector, the head."""
    hidden_matrices: int
    """Of the parameters, those that Muon would train."""
    forward_flops: dict[str, int]
    """By part."""
    backward_flops: int
    recompute_flops: int
    """What activation checkpointing adds to the backward pass: every block runs forward once more."""
    activations: dict[str, Activations]
    """By precision: `float32`, and `16-bit` for autocast to float16 or bfloat16."""

    @property
    def parameter_count(self) -> int:
        return sum(self.parameters.values())

    def flops(self, *, checkpointed: bool) -> int:
        """Forward and backward of one clip."""
        recomputed = self.recompute_flops if checkpointed else 0
        return sum(self.forward_flops.values()) + self.backward_flops + recomputed


def part_of(name: str) -> str:
    """The part of a model that a parameter or submodule belongs to, by its dotted name.

    >>> part_of("blocks.3.attn.qkv.weight"), part_of("down_img.bias"), part_of("mask_token_pix")
    ('encoder', 'image decoder', 'pixels decoder')
    """
    if match := re.match(r"(decoder|down|mask_token|projector)_(img|vid|pix|mom)\b", name):
        return f"{_TARGETS[match[2]]} {'projector' if match[1] == 'projector' else 'decoder'}"
    if re.match(r"(decoder|mask_token|encoder_to_decoder)", name):
        return "decoder"
    return "head" if re.match(r"(fc_norm|head)\b", name) else "encoder"


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Trained parameters by part."""
    counts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            counts[part_of(name)] += parameter.numel()
    return dict(counts)


def forward_flops(model: nn.Module, run: Callable[[nn.Module], object]) -> int:
    """Operations of `run(model)`, without gradients. The model, built on `meta`, is of no use afterwards."""
    stacks = _shorten(model)
    with _fake(model), torch.no_grad():
        with _counter() as counter, _noting_inputs(stacks) as inputs:
            run(model)
        whole = counter.get_total_flops()
        for stack in stacks:
            with _counter() as counter:
                _run_block(stack.last, inputs[stack.name])
            whole += stack.left_out * counter.get_total_flops()
    return whole


def step_cost(model: nn.Module, loss: Callable[[nn.Module, int], Tensor], *, clips: int) -> StepCost:
    """Count a micro-batch, forward and backward.

    Of a stack of equal blocks two are run; what the second costs is counted as often as there are more.

    Args:
        model: built on `meta`, without activation checkpointing; of no use afterwards.
        loss: of the model on a micro-batch of that many clips.
        clips: of one micro-batch.
    """
    parameters = count_parameters(model)
    hidden = sum(weight.numel() for name, weight in model.named_parameters() if is_hidden_matrix(name, weight))
    stacks = _shorten(model)
    with _fake(model):
        model.train()
        static = {_storage(tensor) for tensor in [*model.parameters(), *model.buffers()]}
        run = partial(loss, model, clips)
        with _noting_inputs(stacks) as inputs:
            whole = _count(run, static)
        forward, backward, recomputed = whole.forward, whole.backward, 0
        for stack in stacks:
            given = inputs[stack.name]
            block = _count(partial(_run_block, stack.last, given), static)
            end = _count(partial(_run_block, stack.last, given, given.last), static)
            forward[part_of(stack.name)] += stack.left_out * block.forward_total
            backward += stack.left_out * block.backward
            recomputed += (stack.length - 1) * block.forward_total + end.forward_total
        full = _activations(whole.saved, stacks, inputs, partial(_saved_by, static=static))
        with _noting_inputs(stacks) as inputs:
            saved = _saved_by(run, static, half=True)
        half = _activations(saved, stacks, inputs, partial(_saved_by, static=static, half=True))
    return StepCost(
        parameters=parameters,
        hidden_matrices=hidden,
        forward_flops={part: flops // clips for part, flops in forward.items()},
        backward_flops=backward // clips,
        recompute_flops=recomputed // clips,
        activations=dict(zip(PRECISIONS, (full, half), strict=True)),
    )


@dataclass(frozen=True)
class _Count:
    """Of a pass there and back in float32: operations, and bytes that the way back needs of the way there."""

    forward: Counter[str]
    """By part of the model."""
    forward_total: int
    backward: int
    saved: int


def _count(run: Callable[[], Tensor], static: set[int]) -> _Count:
    with _counter() as counter:
        with _saving(static) as saved:
            value = run()
        forward, total, kept = _by_part(counter), counter.get_total_flops(), sum(saved.values())
        value.sum().backward()
    return _Count(forward, total, counter.get_total_flops() - total, kept)


def _saved_by(run: Callable[[], Tensor], static: set[int], *, half: bool = False) -> int:
    with _saving(static) as saved, torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        kept = run()  # while it is there, so is all that its backward pass needs
        total = sum(saved.values())
        del kept
    return total


def _activations(
    plain: int, stacks: list[_Stack], inputs: Mapping[str, _Inputs], saved_by: Callable[[Callable[[], Tensor]], int]
) -> Activations:
    """Of the whole model, from what its shortened form keeps (`plain`) and what each block keeps."""
    checkpointed, largest = plain, 0
    for stack in stacks:
        given = inputs[stack.name]
        blocks = [saved_by(partial(_run_block, block, given)) for block in list(stack.blocks)[:-1]]
        blocks.append(saved_by(partial(_run_block, stack.last, given, given.last)))
        block = saved_by(partial(_run_block, stack.last, given)) if stack.left_out else 0
        plain += stack.left_out * block
        checkpointed += stack.length * given.hidden_bytes - sum(blocks)
        largest = max(largest, block, *blocks)
    return Activations(plain, checkpointed + largest)


def _run_block(block: nn.Module, inputs: _Inputs, last: int | None = None) -> Tensor:
    output: Tensor = block(*inputs.new(), last)
    return output


# ---- stacks of equal blocks --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Stack:
    """Blocks that follow each other. The first may differ, as it never drops a path, and the last, of which a decoder
    wants fewer tokens; called like the others, the last costs what each between them does.
    """

    name: str
    blocks: nn.ModuleList
    length: int

    @property
    def left_out(self) -> int:
        return self.length - len(self.blocks)

    @property
    def last(self) -> nn.Module:
        return self.blocks[-1]


@dataclass(frozen=True)
class _Inputs:
    """Shapes and dtypes of what a block is called with: hidden tokens (B, N, D), and maybe noise for drop path."""

    facts: tuple[tuple[torch.Size, torch.dtype] | None, ...]
    last: int | None
    """How many tokens are wanted of the block; all when None."""

    def new(self) -> list[Tensor | None]:
        hidden, *others = [None if fact is None else torch.empty(fact[0], dtype=fact[1]) for fact in self.facts]
        assert hidden is not None
        return [hidden.requires_grad_(torch.is_grad_enabled()), *others]

    @property
    def hidden_bytes(self) -> int:
        hidden = self.new()[0]
        assert hidden is not None
        return hidden.nbytes


def _shorten(model: nn.Module) -> list[_Stack]:
    """Leave no more blocks in each stack than show what one costs."""
    stacks = []
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) and all(isinstance(block, Block) for block in module):
            stacks.append(_Stack(name, module, len(module)))
    for stack in stacks:
        del stack.blocks[_KEPT_BLOCKS:]
    return stacks


@contextmanager
def _noting_inputs(stacks: list[_Stack]) -> Iterator[dict[str, _Inputs]]:
    """By stack, what its last block is called with."""
    found: dict[str, _Inputs] = {}

    def note(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(block: nn.Module, given: tuple[Any, ...]) -> None:
            *tensors, last = given
            found[name] = _Inputs(tuple(None if t is None else (t.shape, t.dtype) for t in tensors), last)

        return hook

    handles = [stack.last.register_forward_pre_hook(note(stack.name)) for stack in stacks]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


# ---- counting ----------------------------------------------------------------------------------------------------


@contextmanager
def _fake(model: nn.Module) -> Iterator[None]:
    """Tensors without values, the model's own among them."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        yield


def _counter() -> FlopCounterMode:
    return FlopCounterMode(display=False, custom_mapping=dict(_ATTENTION))


def _by_part(counter: FlopCounterMode) -> Counter[str]:
    """Operations of the outermost submodules, summed by part."""
    counts: Counter[str] = Counter()
    taken: list[str] = []
    for name, operations in sorted(counter.get_flop_counts().items()):
        path = name.partition(".")[2]
        if path and not any(path.startswith(f"{other}.") for other in taken):
            taken.append(path)
            counts[part_of(path)] += sum(operations.values())
    return counts


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


@contextmanager
def _saving(static: set[int]) -> Iterator[dict[int, int]]:
    """Bytes, by storage, that the backward pass needs; `static` storages (the model's) are left out."""
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if (storage := _storage(tensor)) not in static:
            saved[storage] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved
