"""The card beside a converted model: what it is, where it came from, how to load it. No clock, host or path in it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Final

from mvd_offline.models.checkpoints import read_metadata
from mvd_offline.models.conversion import Converted
from mvd_offline.recipe import load_recipe, recipe_header, shipped_recipes
from mvd_offline.runs.folder import RunFolder
from mvd_offline.runs.metrics import PROBE
from mvd_offline.shards.atomic import publish_bytes
from mvd_offline.training.run import IDENTITY_FILE, RECIPE_FILE, identity_in_words, read_identity

_LIBRARIES: Final = {"hf": "transformers", "timm": "timm", "onnx": "onnx", "pt2": "pytorch"}

_SHARES: Final = ("top1", "top5")

_LICENCE: Final = (
    "mvd-offline is Apache-2.0, which says nothing about weights. The repositories by which the weights of MAE, "
    "VideoMAE and MVD were released are CC BY-NC 4.0 (not for commercial use; VideoMAE's: most of it). If these "
    "weights were trained to predict features of such teachers, or started from them, read those terms before you pass "
    "them on, and set `license` above."
)


def card_path(converted: Converted) -> Path:
    """`README.md` in a folder, `NAME.md` beside a file."""
    out = Path(converted.out)
    return out / "README.md" if out.is_dir() else out.with_name(f"{out.name}.md")


def write_card(converted: Converted, source: str, to: str) -> Path:
    """Write the card of a conversion, and return its place. A file that is there and says something else is kept.

    Args:
        source: the checkpoint; what its metadata and the run folder around it tell is in the card.
    """
    path, text = card_path(converted), card(converted, source, to).encode()
    if path.exists() and path.read_bytes() != text:
        path = path.with_suffix(".new.md")  # it may be somebody's own, or have been edited, as the card asks for
    publish_bytes(path, text)
    return path


def card(converted: Converted, source: str, to: str) -> str:
    """The card's text, with Hugging Face's front matter."""
    name = Path(converted.out).resolve().name
    sections = [_front_matter(converted, to), f"# {name}", _table(converted.sizes)]
    if recipe := _recipe(source):
        sections += ["## Recipe", recipe]
    sections += ["## Data and teachers", text] if (text := _identity(source)) else []
    sections += ["## Results", text] if (text := _results(source)) else []
    sections += ["## How to load it", f"```python\n{snippet(converted, to)}\n```"]
    if notes := [f"- {note}" for note in converted.notes]:
        sections += ["## Notes", "\n".join(notes)]
    return "\n\n".join([*sections, "## Licence", _LICENCE]) + "\n"


def _front_matter(converted: Converted, to: str) -> str:
    images = converted.layout == "mae" or converted.sizes.get("frames") == 1
    task = "feature-extraction"
    if converted.layout == "classifier":
        task = "image-classification" if images else "video-classification"
    tags = ["mvd-offline", "masked-video-distillation", "vision-transformer", "image" if images else "video"]
    lines = [f"library_name: {_LIBRARIES.get(to, 'mvd-offline')}", f"pipeline_tag: {task}", "license: other", "tags:"]
    return "\n".join(["---", *lines, *(f"- {tag}" for tag in tags), "---"])


def _table(rows: dict[str, Any]) -> str:
    lines = [f"| {name.replace('_', ' ')} | {value} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _recipe(source: str) -> str:
    text = read_metadata(source).get("recipe", "")
    file = Path(source).parent / "recipe.yaml"
    if not text and file.is_file():
        text = file.read_text(encoding="utf-8")
    if not text:
        return ""
    import yaml

    recipe = load_recipe(yaml.safe_load(text))
    for name, file in shipped_recipes().items():
        # Twins, the demo's and the science's have their folder in their name.
        if name == f"{recipe.kind}/{recipe.name}" or name.replace("/", "_") == recipe.name:
            return f"`{name}`: {recipe_header(file.read_text(encoding='utf-8'))[0]}"
    return f"`{recipe.name}` ({recipe.kind}); none of this name ships with mvd-offline."


def _identity(source: str) -> str:
    """Hashes that name the store, its columns (and with them the teachers) and the weights that the run began with."""
    run = Path(source).parent
    if not (run / IDENTITY_FILE).is_file():
        return ""
    fields = sorted(read_identity(run).items())
    return _table({identity_in_words(name): f"`{value}`" for name, value in fields if "/" not in value})


def _results(source: str) -> str:
    """The last losses, probes and the test of these very weights, as far as the run's folder has them."""
    folder, averaged = Path(source).parent, Path(source).stem.endswith("_ema")
    if not (folder / RECIPE_FILE).is_file():
        return ""
    run, found = RunFolder.read(folder), dict[str, str]()
    if run.metrics.training:
        last = run.metrics.training[-1]
        found["step"] = str(last.step)
        losses = {name: value for name, value in last.values.items() if "loss" in name and math.isfinite(value)}
        found |= {f"last {name}": _number(value) for name, value in losses.items()}
    if not averaged:
        while_training = [run.metrics.series(name) for name in run.metrics.names(PROBE) if "_top" in name]
        found |= {f"probe {one.name.removeprefix(PROBE)}": _share(one.last) for one in while_training}
        found |= {f"{kind} probe {key}": _share(result[key]) for kind, result in run.probes.items() for key in _SHARES}
    if test := run.evaluations.get("ema" if averaged else ""):
        found |= {f"test {key}": _share(test[key]) for key in _SHARES} | {"test videos": str(test["videos"])}
    return _table(found) if found else ""


def _share(value: float | None) -> str:
    return "none" if value is None else f"{100 * value:.2f} %"


def _number(value: float) -> str:
    return f"{value:.4g}"


# ---- how to load it ----------------------------------------------------------------------------------------------


def snippet(converted: Converted, to: str) -> str:
    """Python that loads what was written, from the folder that it lies in, and runs it on one clip."""
    name, sizes = Path(converted.out).resolve().name, converted.sizes
    side, frames, heads = sizes["image_size"], sizes.get("frames", 1), sizes.get("heads")
    clip = f"torch.zeros(1, 3, {frames}, {side}, {side})"
    match to:
        case "hf":
            return _of_transformers(converted, name, side, frames)
        case "timm":
            image = f"torch.zeros(1, 3, {side}, {side})"
            arguments = ", ".join(f"{key}={value!r}" for key, value in converted.arguments.items())
            build = f'"local-dir:{name}", pretrained=True'
            if Path(converted.out).is_file():
                build = f'"vit_base_patch16_224", checkpoint_path="{name}", {arguments}'
            return f"import timm\nimport torch\n\nmodel = timm.create_model({build}).eval()\noutput = model({image})"
        case "onnx":
            array = clip.replace("torch.zeros(", "np.zeros((")[:-1] + "), np.float32)"
            load = f'session = onnxruntime.InferenceSession("{name}")\n'
            return (
                f'import numpy as np\nimport onnxruntime\n\n{load}(output,) = session.run(None, {{"video": {array}}})'
            )
        case "pt2":
            return f'import torch\n\nmodel = torch.export.load("{name}").module()\noutput = model({clip})'
    told = f", heads={heads}" if to == "mvd" and heads else ""
    if converted.layout == "classifier":
        lines = f'from mvd_offline.models import load_classifier\n\nmodel = load_classifier("{name}"{told}'
        told_sizes = f', image_size={side}, frames={frames}, positions="{sizes["positions"]}"' if to == "mvd" else ""
        return f"import torch\n{lines}{told_sizes})\noutput = model({clip})"
    if converted.layout == "mvd_student":
        if told and "decoder_heads" in sizes:
            told += f", decoder_heads={sizes['decoder_heads']}"
        lines = f'from mvd_offline.models import load_student\n\nmodel = load_student("{name}"{told})'
        return f"import torch\n{lines}\noutput = model.encode({clip})"
    kind = "image" if converted.layout == "mae" else "video"
    lines = f'from mvd_offline.models import load_teacher\n\nmodel = load_teacher("{name}", "{kind}"{told}'
    length = f", frames={2 if kind == 'image' else frames}, image_size={side})"
    clip = clip.replace("3, 1,", "3, 2,") if kind == "image" else clip
    return f"import torch\n{lines}{length}\noutput = model({clip})"


def _of_transformers(converted: Converted, name: str, side: int, frames: int) -> str:
    config = json.loads((Path(converted.out) / "config.json").read_text(encoding="utf-8"))
    model, trusted = config["architectures"][0], ""
    if "auto_map" in config:
        model = "AutoModelForVideoClassification" if converted.layout == "classifier" else "AutoModel"
        trusted = ", trust_remote_code=True"
    shape = f"1, 3, {side}, {side}" if converted.layout == "mae" else f"1, {frames}, 3, {side}, {side}"
    load = f'model = {model}.from_pretrained("{name}"{trusted}).eval()'
    if model == "VideoMAEForPreTraining":
        return f"from transformers import {model}\n\n{load}"
    return f"import torch\nfrom transformers import {model}\n\n{load}\noutput = model(torch.zeros({shape}))"
