"""A teacher that is the moving average of the student's own encoder (paper, table 9)."""

from __future__ import annotations

import torch
from torch import Tensor

from mvd_offline.models.student import StudentEncoder
from mvd_offline.models.vit import VideoEncoder, gather_tokens
from mvd_offline.recipe import MomentumSection
from mvd_offline.training.averages import Average, piecewise_linear


class MomentumTeacher:
    """Sees the whole clip; its features are the residual stream after the last block, as those of frozen teachers.

    Attributes:
        average: follows the student's encoder, by the decay of each epoch.
    """

    def __init__(self, student: StudentEncoder, section: MomentumSection) -> None:
        self._encoder: VideoEncoder = student.new_encoder()
        self.average = Average(student, piecewise_linear(section.decay), module=self._encoder)

    def targets(self, video: Tensor, tokens: Tensor) -> Tensor:
        """Features of the normalised clips (B, 3, T, H, W) at (B, K) tokens: (B, K, D), without gradients.

        Runs in the student's own precision, as the caller's autocast has it.
        """
        with torch.no_grad():
            return gather_tokens(self._encoder.encode_tokens(video), tokens)
