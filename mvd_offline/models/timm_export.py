"""Image weights for timm's VisionTransformer: MAE's, and those of students and classifiers of single frames."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch

from mvd_offline.errors import CheckpointError
from mvd_offline.models.checkpoints import Checkpoint, State, fuse_qkv_bias
from mvd_offline.models.conversion import Converted, Sizes, clip_grid, image_size_of
from mvd_offline.models.inputs import IMAGENET_MEAN, IMAGENET_STD
from mvd_offline.models.positions import position_table
from mvd_offline.models.saving import write_safetensors, write_whole

_ARCHITECTURE = "vit_base_patch16_224"
"""Any plain Vision Transformer of timm's will do: `model_args` names every size."""


def write_timm(checkpoint: Checkpoint, out: Path, sizes: Sizes, converted: Converted) -> None:
    """Write image weights: to a .safetensors or .pth file of the tensors, or to a folder for timm's `local-dir:`.

    Raises:
        CheckpointError: weights of clips of several frames, for which timm has no plain Vision Transformer.
    """
    if checkpoint.layout == "mae":
        state = {name: tensor for name, tensor in checkpoint.state.items() if not _is_mae_decoder(name)}
        grid_side = image_size_of(checkpoint, sizes)
    else:
        state, grid_side = _of_single_frames(checkpoint, sizes)
    converted.dropped = sorted(_untied(checkpoint.encoder_state()) - _untied(state))
    arguments = _arguments(checkpoint, sizes, state, grid_side)
    if out.suffix == ".safetensors":
        write_safetensors(out, state, {"format": "pt"})
    elif out.suffix:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_whole(out, buffer.getvalue())
    else:
        write_safetensors(out / "model.safetensors", state, {"format": "pt"})
        write_whole(out / "config.json", (json.dumps(_config(arguments), indent=2, sort_keys=True) + "\n").encode())
    converted.tensors = len(state)
    converted.arguments = arguments


def _is_mae_decoder(name: str) -> bool:
    return name == "mask_token" or name.startswith("decoder_")


def _untied(state: State) -> set[str]:
    """Names of a state, whichever way it holds the biases of queries and values."""
    return {name.replace("q_bias", "qkv.bias") for name in state if not name.endswith("attn.v_bias")}


def _of_single_frames(checkpoint: Checkpoint, sizes: Sizes) -> tuple[State, int]:
    """A video encoder whose clips are one frame is an image encoder without class token.

    Its kernel has a time axis of 1, which goes, and its position table becomes a parameter.
    """
    frames = clip_grid(checkpoint, sizes).t * checkpoint.tubelet_size
    if checkpoint.tubelet_size != 1 or frames != 1:
        raise CheckpointError(
            f"{checkpoint.source}: timm has no video Vision Transformer for this {checkpoint.layout} checkpoint, whose "
            f"clips have {frames} frames and whose tubelets have {checkpoint.tubelet_size}; only MAE weights, and "
            "students and classifiers of single frames (tubelets of 1 frame; --frames 1 where nothing tells), convert "
            "to timm. Allowed for video weights: mvd, hf, safetensors, onnx, pt2"
        )
    grid = clip_grid(checkpoint, sizes)
    kept = ("patch_embed.", "blocks.", "norm.", "fc_norm.", "head.")
    state = {n: t for n, t in fuse_qkv_bias(checkpoint.encoder_state()).items() if n.startswith(kept)}
    state["patch_embed.proj.weight"] = checkpoint.patch_weight[:, :, 0].contiguous()
    positions = sizes.positions or checkpoint.positions or "sincos_3d"
    state["pos_embed"] = position_table(positions, checkpoint.arch(sizes.heads).width, grid).clone()
    return state, grid.h * checkpoint.patch_size


def _arguments(checkpoint: Checkpoint, sizes: Sizes, state: State, image_size: int) -> dict[str, Any]:
    """What `timm.create_model` needs to build the model of these tensors."""
    arch, pooled = checkpoint.arch(sizes.heads), "fc_norm.weight" in state
    return {
        "img_size": image_size,
        "patch_size": checkpoint.patch_size,
        "embed_dim": arch.width,
        "depth": arch.depth,
        "num_heads": arch.heads,
        "class_token": "cls_token" in state,
        "global_pool": "avg" if pooled or "cls_token" not in state else "token",
        "fc_norm": pooled,
        "final_norm": pooled or "norm.weight" in state,
        "num_classes": state["head.weight"].shape[0] if "head.weight" in state else 0,
    }


def _config(arguments: dict[str, Any]) -> dict[str, Any]:
    side, classes = arguments["img_size"], arguments["num_classes"]
    return {
        "architecture": _ARCHITECTURE,
        "num_classes": classes,
        "num_features": arguments["embed_dim"],
        "global_pool": arguments["global_pool"],
        "model_args": {name: value for name, value in arguments.items() if name != "num_classes"},
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [3, side, side],
            "fixed_input_size": True,
            "interpolation": "bilinear",
            "crop_pct": 0.875,
            "mean": list(IMAGENET_MEAN),
            "std": list(IMAGENET_STD),
            "num_classes": classes,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
