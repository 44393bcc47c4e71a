"""Attention, patches, masks and blocks."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from mvd_offline.errors import UsageError
from mvd_offline.models.vit import (
    Arch,
    Attention,
    Block,
    PatchEmbed,
    heads_for_width,
    make_blocks,
    resolve_arch,
    run_blocks,
    split_mask,
)


def test_embedding_visible_patches_equals_the_convolution_forward_and_backward(video, mask):
    embed = PatchEmbed(48, patch_size=16, tubelet_size=2)
    plain = embed.proj(video).flatten(2).transpose(1, 2)[~mask].view(2, 6, 48)
    visible, _ = split_mask(mask)
    gathered = embed(video, visible)
    torch.testing.assert_close(gathered, plain)

    upstream = torch.randn(2, 6, 48)
    wanted = torch.autograd.grad(plain, list(embed.parameters()), upstream)
    found = torch.autograd.grad(gathered, list(embed.parameters()), upstream)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_embedding_all_patches_equals_the_convolution(video):
    embed = PatchEmbed(48, patch_size=16, tubelet_size=2)
    torch.testing.assert_close(embed(video), embed.proj(video).flatten(2).transpose(1, 2))


def test_a_clip_that_patches_do_not_divide_is_refused():
    embed = PatchEmbed(48, patch_size=16, tubelet_size=2)
    with pytest.raises(UsageError, match="multiples of 16, not"):
        embed.grid_of(torch.zeros(1, 3, 4, 40, 48))


def test_attention_scales_queries_and_has_no_key_bias():
    torch.manual_seed(0)
    attention = Attention(12, 3, "split")
    torch.nn.init.normal_(attention.q_bias)
    torch.nn.init.normal_(attention.v_bias)
    x = torch.randn(2, 5, 12)
    q, k, v = (F.linear(x, w).view(2, 5, 3, 4).transpose(1, 2) for w in attention.qkv.weight.chunk(3))
    q = q + attention.q_bias.view(3, 1, 4)
    v = v + attention.v_bias.view(3, 1, 4)
    weights = (q * 4**-0.5 @ k.transpose(-2, -1)).softmax(dim=-1)
    expected = attention.proj((weights @ v).transpose(1, 2).reshape(2, 5, 12))
    torch.testing.assert_close(attention(x), expected)
    assert {name for name, _ in attention.named_parameters()} == {
        "q_bias", "v_bias", "qkv.weight", "proj.weight", "proj.bias",
    }  # fmt: skip


def test_a_key_bias_changes_nothing():
    torch.manual_seed(0)
    attention = Attention(12, 3, "fused")
    x = torch.randn(2, 5, 12)
    before = attention(x)
    with torch.no_grad():
        attention.qkv.bias[12:24] = torch.randn(12)
    torch.testing.assert_close(attention(x), before)


def test_masks_split_into_raster_ordered_indices(mask):
    visible, masked = split_mask(mask)
    for row in range(2):
        assert visible[row].tolist() == (~mask[row]).nonzero().flatten().tolist()
        assert masked[row].tolist() == mask[row].nonzero().flatten().tolist()
    assert torch.equal(split_mask(mask, 12)[1], masked)


@pytest.mark.parametrize("rows", [[[1, 1, 0], [1, 0, 0]], [[0, 0, 0]], [[1, 1, 1]]])
def test_uneven_empty_and_full_masks_are_refused(rows):
    with pytest.raises(UsageError, match="same number of masked tokens in each row"):
        split_mask(torch.tensor(rows, dtype=torch.bool))


def test_drop_path_grows_linearly_over_the_blocks():
    rates = [block.drop_path for block in make_blocks(Arch(12, 5, 3), "split", 0.2)]
    assert rates == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])


def test_drop_path_drops_whole_branches_by_the_noise_given_and_rescales_the_rest():
    block = Block(12, 3, "split", drop_path=0.5).train()
    x = torch.randn(2, 4, 12)
    dropped = block(x, torch.zeros(2, 2))
    assert torch.equal(dropped, x)
    kept = block(x, torch.ones(2, 2) * 0.99)
    attended = x + 2 * block.attn(block.norm1(x))
    torch.testing.assert_close(kept, attended + 2 * block.mlp(block.norm2(attended)))


def test_drop_path_repeats_with_the_global_seed():
    block = Block(12, 3, "split", drop_path=0.5).train()
    x = torch.randn(16, 4, 12)
    outputs = []
    for _ in range(2):
        torch.manual_seed(3)
        outputs.append(block(x))
    assert torch.equal(*outputs)
    assert not torch.equal(block(x), outputs[0])


def test_activation_checkpointing_changes_neither_result_nor_gradient():
    blocks = make_blocks(Arch(12, 3, 3), "split", 0.5).train()
    x = torch.randn(4, 5, 12)
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        loss = run_blocks(blocks, x, recompute).square().mean()
        gradients.append(torch.autograd.grad(loss, [*blocks.parameters()], allow_unused=True))
    for one, other in zip(*gradients, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_of_the_last_tokens_alone_a_block_computes_what_it_does_of_all(drop_path):
    torch.manual_seed(0)
    block, x = Block(12, 3, "split", drop_path).train(), torch.randn(4, 7, 12, requires_grad=True)
    torch.nn.init.normal_(block.attn.q_bias)
    noise, upstream = torch.rand(4, 2), torch.randn(4, 5, 12)
    every, last = block(x, noise)[:, -5:], block(x, noise, 5)
    torch.testing.assert_close(last, every)

    inputs = [x, *block.parameters()]
    wanted, found = (torch.autograd.grad(result, inputs, upstream) for result in (every, last))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_of_a_stack_only_the_last_block_leaves_tokens_out():
    torch.manual_seed(0)
    blocks, x = make_blocks(Arch(12, 3, 3), "split"), torch.randn(2, 7, 12)
    every = run_blocks(blocks, x)
    torch.testing.assert_close(run_blocks(blocks, x, last=4), every[:, -4:])
    torch.testing.assert_close(run_blocks(blocks, x, checkpoint_activations=True, last=4), every[:, -4:])


def test_heads_are_known_for_the_released_widths_only():
    assert [heads_for_width(width) for width in (192, 384, 768, 1024, 1280)] == [3, 6, 12, 16, 16]
    with pytest.raises(UsageError, match="width 80 is not known"):
        heads_for_width(80)


def test_an_arch_can_be_overridden_and_unknown_ones_list_the_known():
    assert resolve_arch("vit_small", depth=4) == Arch(384, 4, 6)
    assert resolve_arch("vit_small", width=64, heads=4) == Arch(64, 12, 4)
    with pytest.raises(UsageError, match="known: vit_tiny, vit_small"):
        resolve_arch("vit_giant")
