"""Any checkpoint that can be read, written for another program: `convert_checkpoint`."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch

from mvd_offline.errors import UsageError
from mvd_offline.models.checkpoints import Checkpoint, State, read_checkpoint, split_qkv_bias
from mvd_offline.models.conversion import Converted, Sizes, decoder_of, image_size_of, sizes_of
from mvd_offline.models.folders import write_folder
from mvd_offline.models.graphs import write_graph
from mvd_offline.models.loading import load_classifier, load_student
from mvd_offline.models.saving import save_model, write_safetensors, write_whole
from mvd_offline.models.timm_export import write_timm

__all__ = ["Converted", "Sizes", "Target", "convert_checkpoint"]

Target: TypeAlias = Literal["mvd", "hf", "timm", "safetensors", "onnx", "pt2"]

Writer: TypeAlias = Callable[[Checkpoint, Path, Sizes, Converted], None]


def convert_checkpoint(source: str | Path, to: Target, out: str | Path, sizes: Sizes | None = None) -> Converted:
    """Read `source` and write it as `to`.

    Args:
        to: `mvd`: official names in a .pth (MVD, VideoMAE and MAE files keep their own layout; a student's decoders of
            pixels and of a momentum teacher, and projectors, have none and are dropped); `hf`: a folder for
            transformers; `timm`: image weights without decoder; `safetensors`: our own file, which keeps all; `onnx`
            and `pt2` (torch.export): the graph of a classifier, or of a student's encoder.
        out: a file; for `hf` a folder, and for `timm` either.

    Raises:
        CheckpointError: unreadable, or of a layout that the target has no place for.
    """
    writers: dict[str, Writer] = {
        "mvd": _to_official,
        "hf": write_folder,
        "timm": write_timm,
        "safetensors": _to_own,
        "onnx": partial(write_graph, "onnx"),
        "pt2": partial(write_graph, "pt2"),
    }
    if to not in writers:
        raise UsageError(f"cannot convert to {to!r}; known: {', '.join(writers)}")
    checkpoint = read_checkpoint(source)
    converted = Converted(layout=checkpoint.layout, out=str(out))
    writers[to](checkpoint, Path(out), sizes or Sizes(), converted)
    converted.sizes = sizes_of(checkpoint, sizes or Sizes())
    return converted


# ---- official ----------------------------------------------------------------------------------------------------


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
    decoder = decoder_of(checkpoint, sizes)
    arch = checkpoint.arch(sizes.heads)
    config = {
        "arch": asdict(arch),
        "decoder": asdict(decoder) if decoder else None,
        "image_size": image_size_of(checkpoint, sizes),
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
