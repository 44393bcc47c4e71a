"""The structure of the official pretraining loop, written anew from what is known of it: a yardstick.

What this project leaves out or does otherwise is all here: pixels that come as normalised float32; every patch embedded
by a convolution and the masked ones thrown away; attention that writes its whole matrix; boolean masks, for which a GPU
is waited for; one decoder after the other, and their whole sequences through all of their blocks; teachers in the step;
an optimiser that goes over the parameters one by one; a device that is waited for at the end of each step.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn import functional as F

from mvd_offline.losses import Objective
from mvd_offline.models.image_encoder import ImageEncoder
from mvd_offline.models.inputs import front_frames
from mvd_offline.models.student import SHORT_NAMES, Student
from mvd_offline.models.teachers import Teacher
from mvd_offline.models.vit import Attention, Block, Decoder, VideoEncoder
from mvd_offline.recipe import OptimSection, Precision, TeacherName

Encoder: TypeAlias = VideoEncoder | ImageEncoder

_DTYPES: Mapping[str, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16}


class OfficialLikeStep:
    """A training step as the official loop makes it, of a copy of a student and of the teachers themselves.

    Drop path takes the batch's noise in place of its own draws, so that its losses can be compared with others'.
    """

    def __init__(
        self,
        student: Student,
        teachers: Mapping[TeacherName, Teacher],
        objectives: Mapping[str, Objective],
        groups: list[dict[str, object]],
        optim: OptimSection,
        precision: Precision,
        device: torch.device,
    ) -> None:
        """`groups`: of `student`'s parameters, by which those of the copy are grouped."""
        self.student = copy.deepcopy(student).to(device).train()
        self._teachers = {name: teacher.to(device) for name, teacher in teachers.items()}
        self._objectives, self._device, self._precision = objectives, device, precision
        self._optimizer = torch.optim.AdamW(
            _groups_of(self.student, groups), lr=0.0, betas=optim.betas, eps=optim.eps, foreach=False
        )
        self._scaler = GradScaler(device.type, enabled=precision == "fp16")

    def step(self, videos: Mapping[int, Tensor], mask: Tensor, drop_noise: Tensor) -> dict[str, float]:
        """Losses of one batch, whose update has a learning rate of 0.

        Args:
            videos: float32 (B, 3, T, S, S), normalised, by side in pixels: the student's and each teacher's.
            mask: bool (B, N), True = masked.
            drop_noise: (B, drop_path_sites), uniform in [0, 1).
        """
        dtype = _DTYPES.get(self._precision)
        with torch.autocast(self._device.type, dtype=dtype, enabled=dtype is not None):
            with torch.no_grad():
                targets: dict[str, Tensor] = {
                    name: self._features(teacher, videos)[mask] for name, teacher in self._teachers.items()
                }
            predictions = predict(self.student, videos[self.student.image_size], mask, drop_noise)
            losses = {
                name: term(predictions[name], targets[name].reshape(predictions[name].shape))
                for name, term in self._objectives.items()
            }
            loss = torch.stack([term.weight * losses[name] for name, term in self._objectives.items()]).sum()
        values = {"loss": loss.item(), **{f"loss_{name}": value.item() for name, value in losses.items()}}
        self._optimizer.zero_grad()
        self._scaler.scale(loss).backward()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return values

    def _features(self, teacher: Teacher, videos: Mapping[int, Tensor]) -> Tensor:
        # A teacher's precision is part of what it is, whatever the student's: losses could not be compared otherwise.
        dtype = getattr(torch, teacher.precision)
        enabled = dtype is not torch.float32
        with torch.autocast(self._device.type, dtype=dtype if enabled else None, enabled=enabled):
            return teacher_features(teacher, videos[teacher.image_size]).float()


# ---- models ------------------------------------------------------------------------------------------------------


def predict(student: Student, video: Tensor, mask: Tensor, drop_noise: Tensor) -> dict[str, Tensor]:
    """(B, M, width of the target) for each target of a normalised clip (B, 3, T, H, W)."""
    sites = [2 * student.arch.depth, *[2 * student.decoder_arch.depth] * len(student.targets)]
    noise, *decoder_noise = drop_noise.split(sites, dim=1)
    x = visible_tokens(embed_all(student, video), mask)
    x = student.norm(run(student.blocks, x, noise))
    predictions = {}
    for name, own_noise in zip(student.targets, decoder_noise, strict=True):
        short = SHORT_NAMES[name]
        decoder = student.get_submodule(f"decoder_{short}")
        assert isinstance(decoder, Decoder)
        positions = student.get_buffer(f"pos_embed_{short}").expand(len(video), -1, -1)
        seen = student.get_submodule(f"down_{short}")(x) + visible_tokens(positions, mask)
        hidden = student.get_parameter(f"mask_token_{short}") + visible_tokens(positions, ~mask)
        decoded = run(decoder.blocks, torch.cat([seen, hidden], dim=1), own_noise)
        predictions[name] = decoder.head(decoder.norm(decoded[:, -hidden.shape[1] :]))
    return predictions


def teacher_features(teacher: Teacher, video: Tensor) -> Tensor:
    """(B, N, D) of a normalised clip; the image teacher's frames are a batch of images."""
    encoder = teacher.encoder
    if isinstance(encoder, ImageEncoder):
        images = front_frames(video, teacher.tubelet_size).transpose(1, 2).flatten(0, 1)
        first = (encoder.cls_token + encoder.pos_embed[:, :1]).expand(len(images), -1, -1)
        x = run(encoder.blocks, torch.cat([first, embed_all(encoder, images)], dim=1))
        return x[:, 1:].reshape(len(video), -1, x.shape[2])
    assert isinstance(encoder, VideoEncoder)
    return run(encoder.blocks, embed_all(encoder, video))


def embed_all(encoder: Encoder, pixels: Tensor) -> Tensor:
    """Every patch, with its position: (B, N, D)."""
    return (
        encoder.patch_embed.proj(pixels).flatten(2).transpose(1, 2)
        + encoder.pos_embed[:, isinstance(encoder, ImageEncoder) :]
    )


def visible_tokens(x: Tensor, mask: Tensor) -> Tensor:
    """Of (B, N, D), the tokens that are not masked: (B, V, D)."""
    return x[~mask].reshape(len(x), -1, x.shape[2])


def run(blocks: nn.ModuleList, x: Tensor, drop_noise: Tensor | None = None) -> Tensor:
    """Apply the blocks with attention that holds all of its matrix."""
    for number, block in enumerate(blocks):
        assert isinstance(block, Block)
        noise = None if drop_noise is None else drop_noise[:, 2 * number : 2 * number + 2]
        x = x + _dropped(block, attention(block.attn, block.norm1(x)), noise, 0)
        x = x + _dropped(block, block.mlp(block.norm2(x)), noise, 1)
    return x


def attention(layer: Attention, x: Tensor) -> Tensor:
    """softmax(q k^T) v, matrix by matrix."""
    batch, tokens, width = x.shape
    if layer.split:
        bias = torch.cat([layer.q_bias, torch.zeros_like(layer.v_bias), layer.v_bias])
        qkv = F.linear(x, layer.qkv.weight, bias)
    else:
        qkv = layer.qkv(x)
    q, k, v = qkv.reshape(batch, tokens, 3, layer.heads, width // layer.heads).permute(2, 0, 3, 1, 4)
    weights = (q * (width // layer.heads) ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1)
    return layer.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, width))


def _dropped(block: Block, branch: Tensor, drop_noise: Tensor | None, site: int) -> Tensor:
    if drop_noise is None or not block.training or block.drop_path == 0.0:
        return branch
    kept = (drop_noise[:, site] >= block.drop_path).to(branch.dtype)
    return branch.div(1.0 - block.drop_path) * kept[:, None, None]


def _groups_of(student: Student, groups: list[dict[str, object]]) -> list[dict[str, object]]:
    """The same groups of another student's parameters."""
    parameters = dict(student.named_parameters())
    found = []
    for group in groups:
        names = group["names"]
        assert isinstance(names, list)
        found.append({"params": [parameters[name] for name in names], "weight_decay": group["weight_decay"]})
    return found
