"""VideoMAE with the positions of Masked Video Distillation: code that a folder for transformers brings along.

`AutoModel.from_pretrained(FOLDER, trust_remote_code=True)` runs this file. transformers' own VideoMAE classes compute
another position table, which no tensor of a file can replace; everything else is theirs. The file needs transformers
and torch only, so that it works where mvd-offline is not installed.
"""

import torch
from torch import nn
from transformers import VideoMAEConfig, VideoMAEForVideoClassification, VideoMAEModel

# A tensor of the weights that no model has. transformers' own classes, which compute another table, name it in a
# warning when they load the folder.
MARKER = "mvd_positions.load_with_trust_remote_code"


class MVDModel(VideoMAEModel):
    """The encoder: `pixel_values` (B, T, 3, H, W) to `last_hidden_state` (B, tokens, hidden_size)."""

    _keys_to_ignore_on_load_unexpected = (MARKER,)

    def __init__(self, config: VideoMAEConfig) -> None:
        super().__init__(config)
        self.embeddings.position_embeddings = sincos_3d(config)


class MVDForVideoClassification(VideoMAEForVideoClassification):
    """The encoder with a classifier: `pixel_values` (B, T, 3, H, W) to `logits` (B, classes)."""

    _keys_to_ignore_on_load_unexpected = (MARKER,)

    def __init__(self, config: VideoMAEConfig) -> None:
        super().__init__(config)
        self.videomae.embeddings.position_embeddings = sincos_3d(config)
        if isinstance(self.fc_norm, nn.LayerNorm):
            self.fc_norm.eps = config.layer_norm_eps


def sincos_3d(config: VideoMAEConfig) -> torch.Tensor:
    """MVD's table, (1, tokens, hidden_size) with tokens in time, row, column order.

    A quarter of the width tells the time, three eighths the column and three eighths the row.
    """
    side, width = config.image_size // config.patch_size, config.hidden_size
    sizes = (config.num_frames // config.tubelet_size, side, side)
    # On the CPU whatever the default device is: transformers builds models on the meta device.
    axes = [torch.arange(size, dtype=torch.float64, device="cpu") for size in sizes]
    time, row, column = (axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij"))
    spatial = width // 16 * 6
    parts = [_sincos(time, width // 4), _sincos(column, spatial), _sincos(row, spatial)]
    return torch.cat(parts, dim=1).float()[None]


def _sincos(position: torch.Tensor, width: int) -> torch.Tensor:
    count = width // 2
    powers = -torch.arange(count, dtype=torch.float64, device="cpu") / count
    angles = position[:, None] * torch.pow(torch.tensor(10000.0, dtype=torch.float64, device="cpu"), powers)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _take_names_of_videomae() -> None:
    """Releases that call the files' tensors by other names rename them for their own classes alone: for ours too."""
    try:
        from transformers.conversion_mapping import (
            get_checkpoint_conversion_mapping,
            register_checkpoint_conversion_mapping,
        )
    except ImportError:
        return  # a release whose names are the files'
    if names := get_checkpoint_conversion_mapping("videomae"):
        for model in (MVDModel, MVDForVideoClassification):
            register_checkpoint_conversion_mapping(model.__name__, names, overwrite=True)


_take_names_of_videomae()
