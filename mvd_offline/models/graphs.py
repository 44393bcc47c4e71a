"""Models as graphs that run without this package: ONNX, and PyTorch's exported programs (.pt2)."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from mvd_offline.errors import CheckpointError, UsageError
from mvd_offline.models.checkpoints import Checkpoint
from mvd_offline.models.classifier import Classifier
from mvd_offline.models.conversion import Converted, Sizes
from mvd_offline.models.loading import load_classifier, load_student
from mvd_offline.models.saving import write_whole
from mvd_offline.models.student import StudentEncoder

INPUT: Final = "video"
CONFIG_FILE: Final = "config.json"
"""Name of the sizes inside a .pt2, for `torch.export.load`'s `extra_files`; in an ONNX file, `config`."""

MOST_IN_ONE_FILE = 1_900_000_000
"""Bytes of weights that an ONNX file holds itself: protobuf ends at 2 GiB. More go into a file beside it."""

_TOLERANCE = 1e-3
"""Largest difference of outputs, relative to their largest value, that a graph may have before it is refused."""


class StudentFeatures(nn.Module):
    """A student's encoder and final norm: (B, 3, T, H, W) to (B, N, D)."""

    def __init__(self, student: StudentEncoder) -> None:
        super().__init__()
        self.student = student

    def forward(self, video: Tensor) -> Tensor:
        return self.student.encode(video)


def write_graph(
    form: Literal["onnx", "pt2"], checkpoint: Checkpoint, out: Path, sizes: Sizes, converted: Converted
) -> None:
    """Write a classifier (to logits) or a student (to the tokens of its encoder) as a graph of any batch size.

    What was written is run on a random clip before it counts.

    Raises:
        CheckpointError: another layout, or a graph whose outputs are not the model's.
        UsageError: another ending, or the packages that write ONNX are not installed.
    """
    if out.suffix != f".{form}":
        raise UsageError(f"{out}: this target writes a .{form} file; give it that ending")
    model, config, output = _model_of(checkpoint, sizes)
    shape = (2, 3, config["frames"], config["image_size"], config["image_size"])
    video = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    write = _write_onnx if form == "onnx" else _write_program
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporters, about their own code
        expected = model(video[:1])
        found = write(model, video, config, output, out)
    difference = float((found - expected).abs().max())
    if not difference <= _TOLERANCE * max(1.0, float(expected.abs().max())):
        out.unlink()
        raise CheckpointError(
            f"{checkpoint.source}: as {form} its {output} differ by {difference:.3g} on a random clip, so that nothing "
            "was kept; convert to safetensors or hf instead, and tell us your versions of torch and onnxscript."
        )
    converted.difference = difference
    converted.tensors = len(model.state_dict())


def _model_of(checkpoint: Checkpoint, sizes: Sizes) -> tuple[nn.Module, dict[str, Any], str]:
    """The module to export, its sizes, and the name of what it gives."""
    source = checkpoint.source
    if checkpoint.layout == "classifier":
        classifier = load_classifier(
            source, sizes.heads, image_size=sizes.image_size, frames=sizes.frames, positions=sizes.positions
        )
        return classifier, _config_of(classifier), "logits"
    if checkpoint.layout == "mvd_student":
        student = load_student(source, sizes.heads, decoder_heads=sizes.decoder_heads)
        return StudentFeatures(student).eval(), _config_of(student), "tokens"
    raise CheckpointError(
        f"{source}: only classifiers and students become graphs, and this is a {checkpoint.layout} checkpoint. "
        "Allowed for it: mvd, hf, safetensors, and timm for image weights"
    )


def _config_of(model: Classifier | StudentEncoder) -> dict[str, Any]:
    return {**model.config(), "frames": model.frames, "image_size": model.image_size}


def _write_program(model: nn.Module, video: Tensor, config: dict[str, Any], output: str, out: Path) -> Tensor:
    """Write a .pt2; what it gives for the first clip."""
    del output
    program = torch.export.export(model, (video,), dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}})
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={CONFIG_FILE: json.dumps(config, sort_keys=True)})
    write_whole(out, buffer.getvalue())
    return torch.export.load(out).module()(video[:1])


def _write_onnx(model: nn.Module, video: Tensor, config: dict[str, Any], output: str, out: Path) -> Tensor:
    """Write an ONNX file; what it gives for the first clip."""
    onnxruntime = _require_onnx()
    program = torch.onnx.export(
        model,
        (video,),
        input_names=[INPUT],
        output_names=[output],
        dynamic_shapes={INPUT: {0: "batch"}},
        dynamo=True,
        verbose=False,
    )
    if program is None:
        raise CheckpointError(f"torch.onnx.export of torch {torch.__version__} returned no program")
    graph = program.model
    for node in graph.graph.all_nodes():
        node.metadata_props.clear()  # stack traces with paths of this machine
    graph.metadata_props["config"] = json.dumps(config, sort_keys=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    if weights > MOST_IN_ONE_FILE:
        program.save(out, external_data=True)
    else:
        write_whole(out, program.model_proto.SerializeToString(deterministic=True))
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run([output], {INPUT: video[:1].numpy()})[0])


def _require_onnx() -> Any:
    missing = []
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            module = __import__(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise UsageError(
            f"--to onnx needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed here: "
            "pip install 'mvd-offline[onnx]' (or pip install onnx onnxscript onnxruntime). --to pt2 needs no more than "
            "torch."
        )
    return module
