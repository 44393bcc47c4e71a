"""Reading checkpoints of every known origin into official tensor names, and loading them without silent gaps.

Official MAE, VideoMAE and MVD files, timm weights, Hugging Face folders and this project's own safetensors all end as
one `Checkpoint`. Nothing is unpickled except tensors and plain containers (`weights_only=True`).
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError  # noqa: TID251 - the error that torch.load raises; nothing is unpickled here
from typing import Any, Literal, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mvd_offline.errors import CheckpointError, UsageError
from mvd_offline.models.huggingface import from_huggingface, is_huggingface
from mvd_offline.models.positions import Positions
from mvd_offline.models.vit import Arch, heads_for_width

Layout: TypeAlias = Literal["mae", "videomae_pretrain", "video_encoder", "classifier", "mvd_student"]

State: TypeAlias = dict[str, Tensor]

# Tensors that a use of a checkpoint ignores by design, as full-match patterns; anything else unexpected is an error.
# Position tables are formulas and are recomputed; a teacher's output is taken before the final norm, so norm, heads
# and decoders play no part; fine-tuning discards the pretraining norm and starts fc_norm anew.
_DECODERS = (
    r"mask_token\w*",
    r"decoder(_\w+)?(\..*)?",
    r"(down|projector)_[a-z]+\..*",
    r"encoder_to_decoder\..*",
)
_POSITION_TABLES = (r"(decoder_)?pos_embed(_[a-z]+)?",)
UNUSED: Mapping[str, Sequence[str]] = {
    "image teacher": (*_DECODERS, *_POSITION_TABLES, r"(fc_)?norm\..*", r"head\..*"),
    "video teacher": (*_DECODERS, *_POSITION_TABLES, r"(fc_)?norm\..*", r"head\..*"),
    "classifier to fine-tune": (*_DECODERS, *_POSITION_TABLES, r"norm\..*"),
    "classifier": _POSITION_TABLES,
    "student": (),
}

_WRAPPERS = re.compile(r"^(module\.|_orig_mod\.|backbone\.)+")


@dataclass(frozen=True)
class Checkpoint:
    """Tensors under official names, and what the file says about them.

    Attributes:
        state: float32 tensors. `videomae_pretrain` keeps the `encoder.` and `decoder.` prefixes.
        config: sizes from a Hugging Face config.json or from our own metadata; empty for plain weights.
        positions: the position table that the encoder was trained with, or None where names do not tell
            (an official fine-tuned file may come from VideoMAE or from MVD).
    """

    source: str
    state: State
    layout: Layout
    heads: int | None = None
    decoder_heads: int | None = None
    positions: Positions | None = None
    image_size: int | None = None
    frames: int | None = None
    config: Mapping[str, Any] = field(default_factory=dict)

    def encoder_state(self) -> State:
        """The state without VideoMAE's `encoder.` prefix."""
        if self.layout != "videomae_pretrain":
            return dict(self.state)
        return {name.removeprefix("encoder."): tensor for name, tensor in self.state.items()}

    def arch(self, heads: int | None = None) -> Arch:
        """Sizes of the encoder. Heads: given, recorded, or known for the width.

        Raises:
            CheckpointError: given heads that differ from the recorded ones, or heads that nothing tells.
        """
        state = self.encoder_state()
        width = self.patch_weight.shape[0]
        depth = 1 + max((int(m[1]) for name in state if (m := re.match(r"blocks\.(\d+)\.", name))), default=-1)
        if depth == 0:
            raise CheckpointError(f"{self.source}: it has a patch embedding but no blocks.0.*; no encoder can be made")
        return Arch(width, depth, self._heads(heads, self.heads, width, "heads"))

    def decoder(self, prefix: str, heads: int | None = None) -> Arch:
        """Sizes of the decoder whose blocks are named `prefix`N."""
        depth = 1 + max(int(m[1]) for name in self.state if (m := re.match(rf"{prefix}(\d+)\.", name)))
        width = self.state[f"{prefix}0.norm1.weight"].shape[0]
        return Arch(width, depth, self._heads(heads, self.decoder_heads, width, "decoder_heads"))

    @property
    def patch_weight(self) -> Tensor:
        prefix = "encoder." if self.layout == "videomae_pretrain" else ""
        return self.state[f"{prefix}patch_embed.proj.weight"]

    @property
    def patch_size(self) -> int:
        return self.patch_weight.shape[-1]

    @property
    def tubelet_size(self) -> int:
        return self.patch_weight.shape[2] if self.patch_weight.ndim == 5 else 1

    def _heads(self, given: int | None, recorded: int | None, width: int, argument: str) -> int:
        if given and recorded and given != recorded:
            raise CheckpointError(
                f"{self.source}: {argument}={given} was given, but the file records {recorded}; leave it out"
            )
        heads = given or recorded
        if heads is None:
            try:
                heads = heads_for_width(width) if argument == "heads" else _decoder_heads(width)
            except UsageError as error:
                raise CheckpointError(f"{self.source}: {str(error).replace('heads=', argument + '=')}") from None
        if width % heads:
            raise CheckpointError(f"{self.source}: {argument}={heads} does not divide the width {width}")
        return heads


def _decoder_heads(width: int) -> int:
    # Of the released decoders that are narrower than their encoder (MVD and VideoMAE L and H; VideoMAE B).
    return {512: 8, 640: 8, 384: 6}.get(width) or heads_for_width(width)


# ---- reading -----------------------------------------------------------------------------------------------------


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a .pth, .safetensors, Hugging Face folder or `timm:NAME` into official names and float32.

    Raises:
        CheckpointError: no such file, not readable without running code, or a layout that is none of the known ones.
    """
    source = str(path)
    if source.startswith("timm:"):
        return _of_state(source, _read_timm(source.removeprefix("timm:")), {})
    file = Path(path)
    if file.is_dir():
        state, config = _read_folder(file)
    elif file.suffix == ".safetensors" and file.is_file():
        state, config = _read_safetensors(file)
    elif file.is_file():
        state, config = _read_torch(file), {}
    else:
        raise CheckpointError(
            f"{source}: no such file or folder. Weights are a .pth or .safetensors file, a Hugging Face folder or "
            "timm:NAME; correct the path where the recipe (see `mvd-offline recipes show`) or the command names it."
        )
    return _of_state(source, state, config)


def _of_state(source: str, state: State, config: Mapping[str, Any]) -> Checkpoint:
    state = {_WRAPPERS.sub("", name): tensor.float().contiguous() for name, tensor in state.items()}
    facts: dict[str, Any] = {}
    if is_huggingface(state):
        state, facts = from_huggingface(state, config, source)
    elif "format" in config:
        facts = _own_facts(config)
    layout = _layout_of(source, state)
    if layout in ("videomae_pretrain", "mvd_student"):
        facts["positions"] = "interleaved_1d" if layout == "videomae_pretrain" else "sincos_3d"
    return Checkpoint(source=source, state=state, layout=layout, config=config, **facts)


def _own_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    model = config["config"]
    grid = model.get("grid")
    return {
        "heads": model["arch"]["heads"],
        "decoder_heads": (model.get("decoder") or {}).get("heads"),
        "positions": model.get("positions"),
        "image_size": grid["h"] * model["patch_size"] if grid else model.get("image_size"),
        "frames": grid["t"] * model["tubelet_size"] if grid else model.get("frames"),
    }


def _layout_of(source: str, state: Mapping[str, Tensor]) -> Layout:
    if any(name.startswith("encoder.patch_embed.") for name in state):
        return "videomae_pretrain"
    patch = state.get("patch_embed.proj.weight")
    if patch is None or patch.ndim not in (4, 5):
        shown = ", ".join(sorted(state)[:8]) or "no tensors at all"
        raise CheckpointError(
            f"{source}: this is none of the known layouts (MAE, VideoMAE, MVD, timm ViT, Hugging Face VideoMAE or "
            f"ViTMAE): there is no patch_embed.proj.weight. It holds: {shown}, ..."
        )
    if patch.ndim == 4:
        return "mae"
    if any(re.match(r"(down|projector)_[a-z]+\.", name) for name in state):
        return "mvd_student"
    return "classifier" if "head.weight" in state else "video_encoder"


def _read_torch(file: Path) -> State:
    try:
        # Official files carry their argparse.Namespace beside the weights: a plain record, safe to allow.
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{file}: torch.load(weights_only=True) cannot read it: {reason}") from None
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{file}: it holds a {type(loaded).__name__}; a mapping of tensors is needed")
    state = next((loaded[key] for key in ("model", "module") if key in loaded), loaded)
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(
            f"{file}: neither 'model' nor 'module' nor the file itself is a mapping of names to tensors; "
            f"its keys are: {', '.join(map(str, loaded))}"
        )
    return dict(state)


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a safetensors file; of another file, none."""
    if Path(path).suffix != ".safetensors" or not Path(path).is_file():
        return {}
    with safe_open(path, framework="pt") as reader:
        return dict(reader.metadata() or {})


def _read_safetensors(file: Path) -> tuple[State, Mapping[str, Any]]:
    try:
        with safe_open(file, framework="pt") as reader:
            metadata = reader.metadata() or {}
            state = {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise CheckpointError(f"{file}: not readable as safetensors: {error}") from None
    if not metadata.get("format", "").startswith("mvd-offline "):
        return state, {}
    try:
        return state, {**metadata, "config": json.loads(metadata["config"])}
    except (KeyError, ValueError):
        raise CheckpointError(f"{file}: its metadata is damaged: 'config' is missing or is not JSON") from None


def _read_folder(folder: Path) -> tuple[State, Mapping[str, Any]]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: a Hugging Face folder has a readable config.json: {error}") from None
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        parts = [_read_safetensors(folder / Path(shard).name)[0] for shard in shards]
        return {name: tensor for part in parts for name, tensor in part.items()}, config
    if (folder / "model.safetensors").is_file():
        return _read_safetensors(folder / "model.safetensors")[0], config
    if (folder / "pytorch_model.bin").is_file():
        return _read_torch(folder / "pytorch_model.bin"), config
    raise CheckpointError(f"{folder}: it has a config.json but neither model.safetensors nor pytorch_model.bin")


def _read_timm(name: str) -> State:
    import timm

    known = timm.list_pretrained(f"{name.split('.')[0]}*")
    if name not in known and not ("." not in name and timm.is_model(name)):
        near = difflib.get_close_matches(name, known or timm.list_pretrained(), n=3, cutoff=0.5)
        hint = ", ".join(near) or "see timm.list_pretrained('vit_*')"
        raise CheckpointError(f"timm:{name}: timm {timm.__version__} has no such model; near it: {hint}")
    try:
        return timm.create_model(name, pretrained=True, num_classes=0).state_dict()
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"timm:{name}: its weights are neither in the local cache nor can they be downloaded ({reason}). "
            "Download them where there is a network and pass the file's path instead"
        ) from None


# ---- q, k and v biases -------------------------------------------------------------------------------------------


def fuse_qkv_bias(state: Mapping[str, Tensor]) -> State:
    """q_bias and v_bias to one qkv.bias with a zero key part: exactly the same function."""
    fused: State = {}
    for name, tensor in state.items():
        if name.endswith("attn.q_bias"):
            value = state.get(name.replace("q_bias", "v_bias"))
            if value is not None:
                fused[name.replace("q_bias", "qkv.bias")] = torch.cat([tensor, torch.zeros_like(tensor), value])
                continue
        elif name.endswith("attn.v_bias") and name.replace("v_bias", "q_bias") in state:
            continue
        fused[name] = tensor
    return fused


def split_qkv_bias(state: Mapping[str, Tensor]) -> State:
    """qkv.bias to q_bias and v_bias. A key bias adds one constant to a query's logits, which softmax cancels."""
    split: State = {}
    for name, tensor in state.items():
        if name.endswith("attn.qkv.bias"):
            split[name.replace("qkv.bias", "q_bias")], _, split[name.replace("qkv.bias", "v_bias")] = (
                part.clone() for part in tensor.chunk(3)
            )
        else:
            split[name] = tensor
    return split


# ---- loading -----------------------------------------------------------------------------------------------------


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], *, use: str, source: str) -> None:
    """Give `module` the tensors of `state`; it may have been built on the meta device.

    Args:
        use: a key of `UNUSED`: which extra tensors are fine.

    Raises:
        CheckpointError: lists every missing, unexpected and misshapen tensor.
    """
    wanted = module.state_dict()
    unused = [re.compile(pattern) for pattern in UNUSED[use]]
    missing = sorted(wanted.keys() - state.keys())
    extra = sorted(name for name in state.keys() - wanted.keys() if not any(p.fullmatch(name) for p in unused))
    misshapen = [
        f"{name} (found {tuple(state[name].shape)}, needed {tuple(wanted[name].shape)})"
        for name in sorted(wanted.keys() & state.keys())
        if state[name].shape != wanted[name].shape
    ]
    findings = [
        f"{what}: {', '.join(names)}"
        for what, names in (("missing", missing), ("unexpected", extra), ("misshapen", misshapen))
        if names
    ]
    if findings:
        raise CheckpointError(f"{source} does not fit the {use}. " + ". ".join(findings))
    module.load_state_dict({name: state[name] for name in wanted}, assign=True)


def weights_sha256(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over the sorted tensors: for each its name, shape, dtype and raw bytes. Independent of file formats."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        tensor = tensor.detach().cpu().contiguous()
        dtype = str(tensor.dtype).removeprefix("torch.")
        digest.update(json.dumps([name, list(tensor.shape), dtype]).encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
