"""MapNet: FaDeX's map becomes tokens for cross-attention (supplement 2.2, "Degradation Attention").

B pairs, C map channels, E embedding channels, N positions, D token width.

    map (B, C, h, w) -> overlapping patches (B, E, h/2, w/2) -> DegAttn (B, C, h/2, w/2)
        -> means over 1x1, 2x2 and 4x4 cells -> 1 + 4 + 16 tokens (B, 21, D)
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DegAttn(nn.Module):
    """Differential attention between the two halves of the embedding.

    Each half makes its own attention map; what the second sees is subtracted from what the first sees, times a
    learned scalar. Values are read from both halves, so a head's value is twice as wide as its query.

    Args:
        channels: E, split in two halves of E / 2.
        heads: counted over both branches; each branch has half of them.
        out_channels: C of the result.
        start: value of the learned scalar before training; not public, ours is 0.2, the first layer's value in
            the Differential Transformer.
    """

    def __init__(self, channels: int, heads: int, out_channels: int, *, start: float = 0.2):
        super().__init__()
        if heads % 2 or channels % heads:
            raise ValueError(f"heads must be even and divide {channels} channels, not {heads} (mapnet.heads).")
        self.heads = heads // 2  # per branch
        half = channels // 2
        self.query_key = nn.ModuleList(nn.Linear(half, 2 * half, bias=False) for _ in range(2))
        self.value = nn.Linear(channels, channels, bias=False)
        self.subtracted = nn.Parameter(torch.tensor(float(start)))  # lambda
        self.norm = nn.RMSNorm(channels // self.heads, eps=1e-5)  # per head, as in the Differential Transformer
        self.project = nn.Linear(channels, out_channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, E) to (B, N, out_channels)."""
        value = self._split(self.value(x))  # (B, heads, N, E / heads)
        seen = []
        for half, query_key in zip(x.chunk(2, dim=-1), self.query_key, strict=True):
            query, key = query_key(half).chunk(2, dim=-1)
            seen.append(F.scaled_dot_product_attention(self._split(query), self._split(key), value))
        difference = self.norm(seen[0] - self.subtracted * seen[1])
        return self.project(difference.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class MapNet(nn.Module):
    """Degradation tokens at several scales, from the global one to a 4 x 4 grid.

    Args:
        in_channels: C of FaDeX's map.
        channels: E of the patch embedding.
        heads: of DegAttn.
        width: D, the base model's cross-attention width.
        grids: cells per side, coarse to fine; (1,), (1, 2) and (1, 2, 4) are the rows of the paper's Table 3.
    """

    def __init__(
        self,
        *,
        in_channels: int = 256,
        channels: int = 512,
        heads: int = 8,
        width: int = 1024,
        grids: Sequence[int] = (1, 2, 4),
    ):
        super().__init__()
        self.config: dict[str, Any] = {
            "in_channels": in_channels,
            "channels": channels,
            "heads": heads,
            "width": width,
            "grids": list(grids),
        }
        self.grids = tuple(grids)
        self.patches = nn.Conv2d(in_channels, channels, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(channels)
        self.attention = DegAttn(channels, heads, in_channels)
        self.projectors = nn.ModuleList(  # one per scale; whether the paper shares them is not public
            nn.Sequential(nn.Linear(in_channels, width), nn.GELU(), nn.Linear(width, width), nn.LayerNorm(width))
            for _ in self.grids
        )

    @property
    def num_tokens(self) -> int:
        return sum(grid * grid for grid in self.grids)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w), h and w at least twice the finest grid, to (B, tokens, D): global, 2 x 2, 4 x 4.

        Raises:
            ValueError: the map is smaller than the finest grid needs; the face crop was too small.
        """
        embedded = self.patches(features)  # (B, E, h', w')
        height, width = embedded.shape[-2:]
        if min(height, width) < max(self.grids):
            finest = max(self.grids)
            raise ValueError(
                f"A feature map of {tuple(features.shape[-2:])} is too small for a {finest} x {finest} grid of tokens: "
                "use a larger face crop, or fewer scales (mapnet.grids)."
            )
        refined = self.attention(self.norm(embedded.flatten(2).transpose(1, 2)))  # (B, N, C)
        refined = refined.transpose(1, 2).unflatten(2, (height, width))
        tokens = [
            projector(F.adaptive_avg_pool2d(refined, grid).flatten(2).transpose(1, 2))
            for grid, projector in zip(self.grids, self.projectors, strict=True)
        ]
        return torch.cat(tokens, dim=1)
