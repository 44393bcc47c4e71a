"""Baked clips on their way to the device that decodes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mvd_offline.errors import MvdError
from mvd_offline.shards.jpeg import check_size, split_frames


@dataclass(frozen=True)
class PackedClips:
    """The JPEGs of B clips of T frames; `to` gives the pixels.

    Attributes:
        files: uint8, all of them, one after the other.
        lengths: int64 (B, T), of each.
        side: S, pixels.
    """

    files: Tensor
    lengths: Tensor
    side: int

    @classmethod
    def of(cls, payloads: Sequence[memoryview], frames: int, side: int) -> PackedClips:
        """Args:
            payloads: rows of a column of baked clips.

        Raises:
            CodecError: one of them is none of these.
        """
        files = [file for payload in payloads for file in split_frames(payload, frames)]
        for file in files:
            check_size(file, side, side)
        joined = np.concatenate([np.frombuffer(file, np.uint8) for file in files])
        lengths = torch.tensor([len(file) for file in files]).reshape(len(payloads), frames)
        return cls(torch.from_numpy(joined), lengths, side)

    def to(self, device: torch.device, **how: Any) -> Tensor:
        """uint8 (B, T, S, S, 3) RGB, decoded on the device: by nvJPEG on an NVIDIA GPU, by libjpeg on a processor.

        Args:
            how: as of `Tensor.to`, which this stands in for; the files stay where they are.

        Raises:
            MvdError: they cannot be decoded there.
        """
        from torchvision.io import ImageReadMode, decode_jpeg

        try:
            frames = decode_jpeg(
                list(self.files.split(self.lengths.flatten().tolist())), mode=ImageReadMode.RGB, device=device
            )
        except RuntimeError as error:
            raise MvdError(
                f"the JPEGs of a micro-batch cannot be decoded on {device}: {error}. Where torchvision was built "
                "without nvJPEG, or the driver lacks it, set unpack_clips to loader."
            ) from None
        return torch.stack(frames).movedim(1, -1).reshape(*self.lengths.shape, self.side, self.side, 3)
