"""Any checkpoint that can be read, written as official .pth, Hugging Face folder, timm or our own safetensors."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from mvd_offline.errors import CheckpointError, UsageError
from mvd_offline.geometry import TokenGrid
from mvd_offline.models.checkpoints import Checkpoint, State, read_checkpoint, split_qkv_bias
from mvd_offline.models.huggingface import videomae_names, vitmae_names
from mvd_offline.models.loading import load_classifier, load_student
from mvd_offline.models.positions import Positions, position_table
from mvd_offline.models.saving import save_model, write_safetensors, write_whole
from mvd_offline.models.vit import LAYER_NORM_EPS, Arch

Target: TypeAlias = Literal["mvd", "hf", "timm", "safetensors"]

_OWN_TABLE_NOTE = (
    "Hugging Face's VideoMAE adds its own 1-D position table, but these weights were trained with MVD's 3-D one: after "
    "from_pretrained, set embeddings.position_embeddings of the VideoMAEModel to the tensor in positions.safetensors"
)


@dataclass(frozen=True)
class Sizes:
    """What weights do not record; None means known, recorded, or the default of 16 frames of 224 pixels."""

    heads: int | None = None
    decoder_heads: int | None = None
    image_size: int | None = None
    frames: int | None = None
    positions: Positions | None = None


@dataclass
class Converted:
    """What `convert_checkpoint` did: the layout it found, what it wrote and left out, and what a user must know."""

    layout: str
    out: str
    tensors: int = 0
    dropped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def convert_checkpoint(source: str | Path, to: Target, out: str | Path, sizes: Sizes | None = None) -> Converted:
    """Read `source` and write it as `to`.

    Args:
        to: `mvd`: official names in a .pth (MVD, VideoMAE and MAE files keep their own layout; a student's decoders of
            pixels and of a momentum teacher, and projectors, have none and are dropped); `hf`: a folder for
            transformers; `timm`: image weights without decoder (.safetensors or .pth); `safetensors`: our own file,
            which keeps all.
        out: a file, or for `hf` a folder.

    Raises:
        CheckpointError: unreadable, or of a layout that the target has no place for.
    """
    writers = {"mvd": _to_official, "hf": _to_huggingface, "timm": _to_timm, "safetensors": _to_own}
    if to not in writers:
        raise UsageError(f"cannot convert to {to!r}; known: {', '.join(writers)}")
    checkpoint = read_checkpoint(source)
    converted = Converted(layout=checkpoint.layout, out=str(out))
    writers[to](checkpoint, Path(out), sizes or Sizes(), converted)
    return converted


# ---- official and timm -------------------------------------------------------------------------------------------


def _to_official(checkpoint: Checkpoint, out: Path, sizes: Sizes, converted: Converted) -> None:
    container = "module" if checkpoint.layout == "classifier" else "model"
    if checkpoint.layout == "mae":
        state = checkpoint.state
    elif checkpoint.layout == "mvd_student":
        student = load_student(checkpoint.source, sizes.heads, decoder_heads=sizes.decoder_heads).state_dict()
        state = {name: tensor for name, tensor in student.items() if _is_official(name)}
        converted.dropped = sorted(student.keys() - state.keys())
        if not any(name.startswith("decoder_") for name in state):
            converted.notes.append(
                "what this student predicted has no official place, so that the file holds its encoder alone, with "
                "MVD's 3-D positions: start fine-tuning from it"
            )
    else:
        state = split_qkv_bias(checkpoint.state)
    positions = sizes.positions or checkpoint.positions
    if checkpoint.layout == "video_encoder" and positions == "interleaved_1d":
        # The prefix is what tells VideoMAE's weights, and with them its positions, from MVD's.
        state = {f"encoder.{name}": tensor for name, tensor in state.items()}
    if checkpoint.layout == "classifier" and positions == "interleaved_1d":
        converted.notes.append(
            "official fine-tuned files do not record their positions: load this one with positions='interleaved_1d'"
        )
    _write_torch(out, {container: state})
    converted.tensors = len(state)


def _is_official(name: str) -> bool:
    """Whether the official student has such a tensor: it knows the decoders of image and video teachers only."""
    part = name.split(".")[0]
    return not part.startswith("projector_") and not part.endswith(("_pix", "_mom"))


def _to_timm(checkpoint: Checkpoint, out: Path, sizes: Sizes, converted: Converted) -> None:
    del sizes
    if checkpoint.layout != "mae":
        raise CheckpointError(
            f"{checkpoint.source}: timm has no video Vision Transformer for a {checkpoint.layout} checkpoint; only MAE "
            "weights convert to timm. Allowed for video weights: mvd, hf, safetensors"
        )
    state = {name: tensor for name, tensor in checkpoint.state.items() if not _is_mae_decoder(name)}
    converted.dropped = sorted(checkpoint.state.keys() - state.keys())
    if out.suffix == ".safetensors":
        write_safetensors(out, state, {"format": "pt"})
    else:
        _write_torch(out, state)
    converted.tensors = len(state)


def _is_mae_decoder(name: str) -> bool:
    return name == "mask_token" or name.startswith("decoder_")


def _write_torch(out: Path, payload: Any) -> None:
    if out.suffix == ".safetensors" or out.is_dir():
        raise UsageError(f"{out}: this target writes a file for torch.load; name it like student.pth")
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    write_whole(out, buffer.getvalue())


# ---- our own -----------------------------------------------------------------------------------------------------


def _to_own(checkpoint: Checkpoint, out: Path, sizes: Sizes, converted: Converted) -> None:
    if out.suffix != ".safetensors":
        raise UsageError(f"{out}: this target writes a .safetensors file; give it that ending")
    if checkpoint.layout == "mvd_student":
        student = load_student(checkpoint.source, sizes.heads, decoder_heads=sizes.decoder_heads)
        save_model(out, student)
        converted.tensors = len(student.state_dict())
        return
    if checkpoint.layout == "classifier":
        classifier = load_classifier(
            checkpoint.source,
            sizes.heads,
            image_size=sizes.image_size,
            frames=sizes.frames,
            positions=sizes.positions,
        )
        save_model(out, classifier)
        converted.tensors = len(classifier.state_dict())
        converted.dropped = sorted(checkpoint.state.keys() - _possible_names(classifier.state_dict()))
        return
    state = checkpoint.state if checkpoint.layout == "mae" else split_qkv_bias(checkpoint.state)
    decoder = _decoder_arch(checkpoint, sizes)
    arch = checkpoint.arch(sizes.heads)
    config = {
        "arch": asdict(arch),
        "decoder": asdict(decoder) if decoder else None,
        "image_size": _image_size(checkpoint, sizes),
        "patch_size": checkpoint.patch_size,
        "positions": sizes.positions or checkpoint.positions,
    }
    if checkpoint.layout != "mae":
        config |= {"frames": sizes.frames or checkpoint.frames or 16, "tubelet_size": checkpoint.tubelet_size}
    metadata = {
        "format": f"mvd-offline {checkpoint.layout}",
        "heads": str(arch.heads),
        "config": json.dumps(config, sort_keys=True),
    }
    write_safetensors(out, state, metadata)
    converted.tensors = len(state)


def _possible_names(state: State) -> set[str]:
    """Names under which a split-bias model's tensors may have been stored, fused or not."""
    return {*state, *(name.replace("q_bias", "qkv.bias") for name in state if name.endswith("attn.q_bias"))}


def _decoder_arch(checkpoint: Checkpoint, sizes: Sizes) -> Arch | None:
    prefix = {"mae": "decoder_blocks.", "videomae_pretrain": "decoder.blocks."}.get(checkpoint.layout)
    if prefix is None or f"{prefix}0.norm1.weight" not in checkpoint.state:
        return None
    heads = sizes.decoder_heads
    if checkpoint.layout == "mae" and heads is None and checkpoint.decoder_heads is None:
        heads = 16  # of every released MAE decoder
    return checkpoint.decoder(prefix, heads)


def _image_size(checkpoint: Checkpoint, sizes: Sizes) -> int:
    table = checkpoint.state.get("pos_embed")
    stored = None
    if checkpoint.layout == "mae" and table is not None:
        stored = round((table.shape[1] - 1) ** 0.5) * checkpoint.patch_size
    return sizes.image_size or checkpoint.image_size or stored or 224


# ---- Hugging Face ------------------------------------------------------------------------------------------------


def _to_huggingface(checkpoint: Checkpoint, out: Path, sizes: Sizes, converted: Converted) -> None:
    if out.suffix in (".pth", ".safetensors"):
        raise UsageError(f"{out}: this target writes a folder with config.json and model.safetensors")
    arch = checkpoint.arch(sizes.heads)
    config = {
        "hidden_size": arch.width,
        "num_hidden_layers": arch.depth,
        "num_attention_heads": arch.heads,
        "intermediate_size": 4 * arch.width,
        "hidden_act": "gelu",
        "layer_norm_eps": LAYER_NORM_EPS,
        "image_size": _image_size(checkpoint, sizes),
        "patch_size": checkpoint.patch_size,
    }
    if decoder := _decoder_arch(checkpoint, sizes):
        config |= {
            "decoder_hidden_size": decoder.width,
            "decoder_num_hidden_layers": decoder.depth,
            "decoder_num_attention_heads": decoder.heads,
            "decoder_intermediate_size": 4 * decoder.width,
        }
    if checkpoint.layout == "mae":
        state = vitmae_names(checkpoint.state, bare=decoder is None)
        config |= {"model_type": "vit_mae", "qkv_bias": True, "norm_pix_loss": True}
        config["architectures"] = ["ViTMAEModel" if decoder is None else "ViTMAEForPreTraining"]
    else:
        state = _videomae(checkpoint, out, sizes, config, converted)
    write_safetensors(out / "model.safetensors", state, {"format": "pt"})
    write_whole(out / "config.json", (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())
    converted.tensors = len(state)


def _videomae(
    checkpoint: Checkpoint, out: Path, sizes: Sizes, config: dict[str, Any], converted: Converted
) -> dict[str, Tensor]:
    """Tensors under Hugging Face's names; completes `config`, and writes MVD's position table where it is needed."""
    state = split_qkv_bias(checkpoint.state)
    positions = sizes.positions or checkpoint.positions or "sincos_3d"
    grid = _clip_grid(checkpoint, sizes, config)
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
    if positions == "sincos_3d":
        config["mvd_positions"] = positions
        table = position_table(positions, config["hidden_size"], grid)
        write_safetensors(out / "positions.safetensors", {"position_embeddings": table}, {"format": "pt"})
        converted.notes.append(_OWN_TABLE_NOTE)
    return videomae_names(state, bare=model == "VideoMAEModel")


def _clip_grid(checkpoint: Checkpoint, sizes: Sizes, config: dict[str, Any]) -> TokenGrid:
    if checkpoint.layout == "mvd_student":
        return load_student(checkpoint.source, sizes.heads, decoder_heads=sizes.decoder_heads).grid
    return TokenGrid.of_clip(
        frames=sizes.frames or checkpoint.frames or 16,
        image_size=config["image_size"],
        tubelet_size=checkpoint.tubelet_size,
        patch_size=checkpoint.patch_size,
    )
