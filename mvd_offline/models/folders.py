"""Folders that transformers loads: config, weights, preprocessing, and the code that MVD's positions need."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from mvd_offline.errors import UsageError
from mvd_offline.geometry import TokenGrid
from mvd_offline.models.checkpoints import Checkpoint, split_qkv_bias
from mvd_offline.models.conversion import Converted, Sizes, clip_grid, decoder_of, image_size_of
from mvd_offline.models.huggingface import MARKER, videomae_names, vitmae_names
from mvd_offline.models.inputs import IMAGENET_MEAN, IMAGENET_STD
from mvd_offline.models.positions import position_table
from mvd_offline.models.saving import write_safetensors, write_whole
from mvd_offline.models.vit import LAYER_NORM_EPS

CODE_FILE: Final = "modeling_mvd.py"

_OWN_TABLE_NOTE = (
    "load it with AutoModel or AutoModelForVideoClassification and trust_remote_code=True, which runs the folder's "
    f"{CODE_FILE}: these weights were trained with MVD's 3-D position table. transformers' own VideoMAE classes "
    f"compute a 1-D one that no file can replace; they warn of an unexpected {MARKER}, and give other outputs until "
    "you set embeddings.position_embeddings of the VideoMAEModel to the tensor in positions.safetensors"
)
_PIL_BILINEAR, _PIL_BICUBIC = 2, 3


def write_folder(checkpoint: Checkpoint, out: Path, sizes: Sizes, converted: Converted) -> None:
    """Write `checkpoint` as a folder for transformers: VideoMAE, ViTMAE, or VideoMAE with MVD's positions."""
    if out.suffix in (".pth", ".safetensors", ".onnx", ".pt2"):
        raise UsageError(f"{out}: this target writes a folder with config.json and model.safetensors")
    arch = checkpoint.arch(sizes.heads)
    config: dict[str, Any] = {
        "hidden_size": arch.width,
        "num_hidden_layers": arch.depth,
        "num_attention_heads": arch.heads,
        "intermediate_size": 4 * arch.width,
        "hidden_act": "gelu",
        "layer_norm_eps": LAYER_NORM_EPS,
        "image_size": image_size_of(checkpoint, sizes),
        "patch_size": checkpoint.patch_size,
    }
    if decoder := decoder_of(checkpoint, sizes):
        config |= {
            "decoder_hidden_size": decoder.width,
            "decoder_num_hidden_layers": decoder.depth,
            "decoder_num_attention_heads": decoder.heads,
            "decoder_intermediate_size": 4 * decoder.width,
        }
    if checkpoint.layout == "mae":
        state = vitmae_names(checkpoint.state, checkpoint.source, bare=decoder is None)
        config |= {"model_type": "vit_mae", "qkv_bias": True, "norm_pix_loss": True}
        config["architectures"] = ["ViTMAEModel" if decoder is None else "ViTMAEForPreTraining"]
    else:
        state = _videomae(checkpoint, out, sizes, config, converted)
    write_safetensors(out / "model.safetensors", state, {"format": "pt"})
    _write_json(out / "config.json", config)
    _write_json(out / "preprocessor_config.json", _preprocessing(config))
    converted.tensors = len(state)


def _write_json(path: Path, data: dict[str, Any]) -> None:
    write_whole(path, (json.dumps(data, indent=2, sort_keys=True) + "\n").encode())


def _videomae(
    checkpoint: Checkpoint, out: Path, sizes: Sizes, config: dict[str, Any], converted: Converted
) -> dict[str, Tensor]:
    """Tensors under Hugging Face's names; completes `config`, and writes what MVD's positions need."""
    state = split_qkv_bias(checkpoint.state)
    positions = sizes.positions or checkpoint.positions or "sincos_3d"
    grid = clip_grid(checkpoint, sizes)
    model = "VideoMAEModel"
    if "encoder_to_decoder.weight" in state:
        model = "VideoMAEForPreTraining"
    elif checkpoint.layout == "classifier":
        model = "VideoMAEForVideoClassification"
    if checkpoint.layout == "mvd_student":
        kept = ("patch_embed.", "blocks.", "norm.")
        converted.dropped = sorted(name for name in state if not name.startswith(kept))
        state = {name: tensor for name, tensor in state.items() if name.startswith(kept)}
    config |= {
        "architectures": [model],
        "model_type": "videomae",
        "qv_bias": True,
        "norm_pix_loss": True,
        "num_frames": grid.t * checkpoint.tubelet_size,
        "tubelet_size": checkpoint.tubelet_size,
        "image_size": grid.h * checkpoint.patch_size,
        "use_mean_pooling": not any(name.startswith(("norm.", "encoder.norm.")) for name in state),
    }
    if "head.weight" in state:
        labels = {str(i): f"LABEL_{i}" for i in range(state["head.weight"].shape[0])}
        config |= {"id2label": labels, "label2id": {label: int(i) for i, label in labels.items()}}
    named = videomae_names(state, bare=model == "VideoMAEModel")
    if positions == "sincos_3d":
        _write_own_positions(out, config, grid)
        converted.notes.append(_OWN_TABLE_NOTE)
        named[MARKER] = torch.ones(1)
    return named


def _write_own_positions(out: Path, config: dict[str, Any], grid: TokenGrid) -> None:
    """MVD's table as code for those who run it, and as a tensor for those who do not."""
    config |= {
        "architectures": [name.replace("VideoMAE", "MVD") for name in config["architectures"]],
        "mvd_positions": "sincos_3d",
        "auto_map": {
            "AutoModel": "modeling_mvd.MVDModel",
            "AutoModelForVideoClassification": "modeling_mvd.MVDForVideoClassification",
        },
    }
    table = position_table("sincos_3d", config["hidden_size"], grid)
    write_safetensors(out / "positions.safetensors", {"position_embeddings": table}, {"format": "pt"})
    write_whole(out / CODE_FILE, Path(__file__).with_name(CODE_FILE).read_bytes())


def _preprocessing(config: dict[str, Any]) -> dict[str, Any]:
    """What AutoImageProcessor builds: shorter side to the input size, its centre, ImageNet's constants."""
    side = config["image_size"]
    square = {"height": side, "width": side}
    shared = {
        "do_resize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(IMAGENET_MEAN),
        "image_std": list(IMAGENET_STD),
    }
    if config["model_type"] == "vit_mae":
        return {**shared, "image_processor_type": "ViTImageProcessor", "size": square, "resample": _PIL_BICUBIC}
    return {
        **shared,
        "image_processor_type": "VideoMAEImageProcessor",
        "video_processor_type": "VideoMAEVideoProcessor",
        "size": {"shortest_edge": side},
        "do_center_crop": True,
        "crop_size": square,
        "resample": _PIL_BILINEAR,
    }
