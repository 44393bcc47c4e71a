"""Names and configs of Hugging Face's VideoMAE and ViTMAE, to and from the official ones.

Read are the names on the hub (query/key/value with q_bias and v_bias) and those of newer transformers releases
(q_proj and fc1 style; a decoder saved as `decoder.decoder_encoder.layer`). Written are the hub's, which every release
reads. Hugging Face's default LayerNorm eps is 1e-12 where the official code uses 1e-6: what is read here always runs
with 1e-6, what is written says 1e-6.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from mvd_offline.errors import CheckpointError

_MARK = re.compile(r"(^|\.)patch_embeddings\.projection\.weight$")

MARKER: Final = "mvd_positions.load_with_trust_remote_code"
"""No tensor of a model: its name says, in the warning of a class that does not know it, how to load the folder. The
code that a folder brings (`modeling_mvd`) has it too."""

# The order matters: attention.output.dense before output.dense.
_TO_OFFICIAL = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^(videomae|vit)\.", ""),
        (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
        (r"^embeddings\.cls_token$", "cls_token"),
        (r"^embeddings\.position_embeddings$", "pos_embed"),
        (r"^(encoder\.layer|encoder\.layers|layers)\.(\d+)\.", r"blocks.\2."),
        (r"^decoder\.(?:decoder_layers|decoder_encoder\.layer)\.(\d+)\.", r"decoder.blocks.\1."),
        (r"\.attention\.attention\.query\.|\.attention\.q_proj\.", ".attn.q."),
        (r"\.attention\.attention\.key\.|\.attention\.k_proj\.", ".attn.k."),
        (r"\.attention\.attention\.value\.|\.attention\.v_proj\.", ".attn.v."),
        (r"\.attention\.attention\.q_bias$", ".attn.q.bias"),
        (r"\.attention\.attention\.v_bias$", ".attn.v.bias"),
        (r"\.attention\.output\.dense\.|\.attention\.o_proj\.", ".attn.proj."),
        (r"\.intermediate\.dense\.", ".mlp.fc1."),
        (r"\.output\.dense\.", ".mlp.fc2."),
        (r"\.layernorm_before\.", ".norm1."),
        (r"\.layernorm_after\.", ".norm2."),
        (r"^layernorm\.", "norm."),
        (r"^classifier\.", "head."),
    )
]
_BLOCK_TO_HF = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


def is_huggingface(state: Mapping[str, Tensor]) -> bool:
    """Whether the tensors carry Hugging Face's names."""
    return any(_MARK.search(name) for name in state)


# ---- reading -----------------------------------------------------------------------------------------------------


def from_huggingface(
    state: Mapping[str, Tensor], config: Mapping[str, Any], source: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Official names, and the facts (heads, sizes, positions) that config.json gives.

    Raises:
        CheckpointError: an activation that the official models do not have.
    """
    if config.get("hidden_act", "gelu") != "gelu":
        raise CheckpointError(f"{source}: hidden_act is {config['hidden_act']!r}; only exact gelu is supported")
    renamed = {_official_name(name): tensor for name, tensor in state.items() if name != MARKER}
    image = "cls_token" in renamed
    official = _join_qkv(renamed, fused=image)
    facts: dict[str, Any] = {
        "heads": config.get("num_attention_heads"),
        "decoder_heads": config.get("decoder_num_attention_heads"),
        "image_size": _side(config.get("image_size")),
        "frames": config.get("num_frames"),
    }
    if image:
        official = {_mae_decoder_name(name): tensor for name, tensor in official.items()}
    else:
        facts["positions"] = config.get("mvd_positions", "interleaved_1d")
        if "encoder_to_decoder.weight" in official:
            official = {_with_encoder_prefix(name): tensor for name, tensor in official.items()}
    return official, facts


def _side(size: int | list[int] | None) -> int | None:
    return size[0] if isinstance(size, list) else size


def _official_name(name: str) -> str:
    for pattern, replacement in _TO_OFFICIAL:
        name = pattern.sub(replacement, name)
    return name


def _join_qkv(state: Mapping[str, Tensor], *, fused: bool) -> dict[str, Tensor]:
    """Rows q, k, v into one weight; biases into qkv.bias, or into q_bias and v_bias."""
    joined: dict[str, Tensor] = {}
    for name, tensor in state.items():
        match = re.fullmatch(r"(.*\.attn)\.([qkv])\.(weight|bias)", name)
        if match is None:
            joined[name] = tensor
            continue
        prefix, part, what = match.groups()
        parts = [state.get(f"{prefix}.{p}.{what}") for p in "qkv"]
        if what == "bias" and not fused and part != "k":
            joined[f"{prefix}.{part}_bias"] = tensor
        elif all(p is not None for p in parts):
            joined[f"{prefix}.qkv.{what}"] = torch.cat([p for p in parts if p is not None])
        else:
            joined[name] = tensor  # an incomplete trio keeps its name and is listed as unexpected
    return joined


def _mae_decoder_name(name: str) -> str:
    """ViTMAE nests the decoder; MAE has flat names."""
    if name.startswith("decoder.blocks."):
        return "decoder_blocks." + name.removeprefix("decoder.blocks.")
    return name.removeprefix("decoder.")


def _with_encoder_prefix(name: str) -> str:
    if name.startswith(("patch_embed.", "blocks.", "norm.")):
        return f"encoder.{name}"
    return name


# ---- writing -----------------------------------------------------------------------------------------------------


def videomae_names(state: Mapping[str, Tensor], *, bare: bool) -> dict[str, Tensor]:
    """Official VideoMAE tensors (with or without `encoder.`) under Hugging Face's names; `bare` is a VideoMAEModel."""
    base = "" if bare else "videomae."
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        name = name.removeprefix("encoder.")
        if match := re.fullmatch(r"(decoder\.)?blocks\.(\d+)\.(.*)", name):
            prefix = "decoder.decoder_layers" if match[1] else f"{base}encoder.layer"
            out |= _block_to_hf(f"{prefix}.{match[2]}", match[3], tensor)
        elif name.startswith("patch_embed.proj."):
            out[name.replace("patch_embed.proj", f"{base}embeddings.patch_embeddings.projection")] = tensor
        elif name.startswith("norm."):
            out[f"{base}layernorm.{name.removeprefix('norm.')}"] = tensor
        elif name.startswith("head."):
            out[f"classifier.{name.removeprefix('head.')}"] = tensor
        else:
            out[name] = tensor
    return out


def vitmae_names(state: Mapping[str, Tensor], source: str, *, bare: bool) -> dict[str, Tensor]:
    """Official MAE tensors under Hugging Face's names; `bare` is a ViTMAEModel.

    Raises:
        CheckpointError: tensors that ViTMAE has no place for, such as a classifier's.
    """
    base = "" if bare else "vit."
    renames = {
        "cls_token": f"{base}embeddings.cls_token",
        "pos_embed": f"{base}embeddings.position_embeddings",
        "patch_embed.proj.weight": f"{base}embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.bias": f"{base}embeddings.patch_embeddings.projection.bias",
        "norm.weight": f"{base}layernorm.weight",
        "norm.bias": f"{base}layernorm.bias",
    }
    out: dict[str, Tensor] = {}
    homeless = []
    for name, tensor in state.items():
        if match := re.fullmatch(r"(decoder_)?blocks\.(\d+)\.(.*)", name):
            prefix = "decoder.decoder_layers" if match[1] else f"{base}encoder.layer"
            if _has_place_in_block(match[3]):
                out |= _block_to_hf(f"{prefix}.{match[2]}", match[3], tensor)
            else:
                homeless.append(name)
        elif name in renames:
            out[renames[name]] = tensor
        elif name == "mask_token" or name.startswith("decoder_"):
            out[f"decoder.{name}"] = tensor
        else:
            homeless.append(name)
    if homeless:
        # Not dropped: where fc_norm stands for the final norm, the encoder that is left would give other outputs.
        raise CheckpointError(
            f"{source}: transformers' ViTMAE, to which image weights convert, has no place for {', '.join(homeless)}; "
            "it is MAE's pretraining alone, without a classifier. Allowed for these weights: timm, safetensors, mvd"
        )
    return out


def _has_place_in_block(name: str) -> bool:
    return name in ("attn.q_bias", "attn.v_bias") or name.rpartition(".")[0] in {"attn.qkv", *_BLOCK_TO_HF}


def _block_to_hf(prefix: str, name: str, tensor: Tensor) -> dict[str, Tensor]:
    if name in ("attn.q_bias", "attn.v_bias"):
        return {f"{prefix}.attention.{name.replace('attn', 'attention')}": tensor}
    if name in ("attn.qkv.weight", "attn.qkv.bias"):
        what = name.rpartition(".")[2]
        parts = ("query", "key", "value")
        return {
            f"{prefix}.attention.attention.{part}.{what}": rows.clone()
            for part, rows in zip(parts, tensor.chunk(3), strict=True)
        }
    module, _, what = name.rpartition(".")
    return {f"{prefix}.{_BLOCK_TO_HF[module]}.{what}": tensor}
