"""What predicts a teacher's features token by token, where no token is hidden."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Projector(nn.Module):
    """Linear layers with exact GELU between them: (B, N, in_features) to (B, N, out_features)."""

    def __init__(self, in_features: int, width: int, out_features: int, depth: int) -> None:
        """`width` is that of the hidden layers; one layer (`depth` 1) has none."""
        super().__init__()
        sizes = [in_features, *[width] * (depth - 1), out_features]
        self.layers = nn.ModuleList(nn.Linear(sizes[i], sizes[i + 1]) for i in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.gelu(layer(x))
        return self.layers[-1](x)
