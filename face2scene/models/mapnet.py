"""MapNet: from FaDeX's map to tokens for cross-attention (supplement 2.2, "Degradation Attention").

B pairs, C map channels, E embedding channels, N positions, D token width.

    map (B, C, h, w) -> overlapping patches (B, E, h/2, w/2) -> DegAttn (B, C, h/2, w/2)
        -> means over 1x1, 2x2 and 4x4 cells -> 1 + 4 + 16 tokens (B, 21, D)
"""

from collections.abc import Sequence
from itertools import cycle
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from face2scene.common.choices import one_of
from face2scene.common.model_files import recorded


class DegAttn(nn.Module):
    """Differential attention between the two halves of the embedding.

    Each half gives an attention map; the second branch's output, times a learned scalar, is subtracted from the
    first's. Values come from both halves, so a head's value is twice as wide as its query. This is the Differential
    Transformer's attention with block-structured weights, without its constant factor 1 - start.

    Args:
        channels: E, split in two halves of E / 2.
        heads: counted over both branches; each branch has half of them.
        out_channels: C of the result.
        start: initial value of the learned scalar; not public, 0.2 is the first layer's in the Differential
            Transformer.
        scalar: `free`, a parameter, or `reparametrised` as in the Differential Transformer: exp(q1 k1) - exp(q2 k2) +
            start, with four vectors from N(0, 0.1). Which one the paper uses is not public.
        norm: RMSNorm over each `head`, as in the Differential Transformer, or over `all` heads jointly; not public.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        out_channels: int,
        *,
        start: float = 0.2,
        scalar: Literal["free", "reparametrised"] = "free",
        norm: Literal["head", "all"] = "head",
    ):
        super().__init__()
        if heads % 2 or channels % heads:
            raise ValueError(f"heads must be even and divide {channels} channels, not {heads} (mapnet.heads).")
        one_of("mapnet.scalar", scalar, ("free", "reparametrised"))
        one_of("mapnet.norm", norm, ("head", "all"))
        self.heads = heads // 2  # per branch
        half = channels // 2
        self.query_key = nn.ModuleList(nn.Linear(half, 2 * half, bias=False) for _ in range(2))
        self.value = nn.Linear(channels, channels, bias=False)
        self.start = float(start)
        if scalar == "free":
            self.subtracted = nn.Parameter(torch.tensor([self.start]))  # lambda; fully_shard takes no 0-d weights
            self.register_load_state_dict_pre_hook(_scalar_as_vector)
        else:
            self.vectors = nn.Parameter(0.1 * torch.randn(4, half // self.heads))  # q1, k1, q2, k2
        self.per_head = norm == "head"
        self.norm = nn.RMSNorm(channels // self.heads if self.per_head else channels, eps=1e-5)
        self.project = nn.Linear(channels, out_channels, bias=False)

    @property
    def scalar(self) -> Tensor:
        """lambda, the factor of the second branch; one element."""
        if hasattr(self, "subtracted"):
            return self.subtracted
        query_1, key_1, query_2, key_2 = self.vectors.float()
        return (query_1 @ key_1).exp() - (query_2 @ key_2).exp() + self.start

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, E) to (B, N, out_channels)."""
        value = _split(self.value(x), self.heads)  # (B, heads, N, E / heads)
        branches = []
        for half, query_key in zip(x.chunk(2, dim=-1), self.query_key, strict=True):
            query, key = (_split(part, self.heads) for part in query_key(half).chunk(2, dim=-1))
            # In two halves, since the fused kernels take values of the query's width alone.
            parts = [F.scaled_dot_product_attention(query, key, half_value) for half_value in value.chunk(2, dim=-1)]
            branches.append(torch.cat(parts, dim=-1))
        difference = branches[0] - self.scalar.to(branches[1]) * branches[1]
        if self.per_head:
            difference = self.norm(difference)
        joined = difference.transpose(1, 2).flatten(2)  # (B, N, E)
        return self.project(joined if self.per_head else self.norm(joined))


class PlainAttention(nn.Module):
    """Multi-head self-attention on the whole embedding, for comparison with DegAttn (ours).

    Args:
        channels: E.
        heads: each of width E / heads.
        out_channels: C of the result.
    """

    def __init__(self, channels: int, heads: int, out_channels: int):
        super().__init__()
        if channels % heads:
            raise ValueError(f"heads must divide {channels} channels, not {heads} (mapnet.heads).")
        self.heads = heads
        self.query_key_value = nn.Linear(channels, 3 * channels, bias=False)
        self.project = nn.Linear(channels, out_channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, E) to (B, N, out_channels)."""
        query, key, value = (_split(part, self.heads) for part in self.query_key_value(x).chunk(3, dim=-1))
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.project(attended.transpose(1, 2).flatten(2))


def _scalar_as_vector(_: nn.Module, state: dict[str, Tensor], prefix: str, *__: Any) -> None:
    # Earlier weights have a lambda of shape ().
    if (name := f"{prefix}subtracted") in state:
        state[name] = state[name].reshape(1)


def _split(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


class MapNet(nn.Module):
    """Degradation tokens at several scales, from the global one to a 4 x 4 grid.

    Args:
        in_channels: C of FaDeX's map.
        channels: E of the patch embedding.
        heads: of the attention.
        width: D, the base model's cross-attention width.
        grids: cells per side, coarse to fine; (1,), (1, 2) and (1, 2, 4) are the rows of the paper's Table 3.
        attention: `differential`, which is `DegAttn`, or `plain`.
        scalar, norm: of `DegAttn`; not used by plain attention.
        projectors: `separate`, one per scale, or `shared`; not stated in the paper.
    """

    config: dict[str, Any]  # the constructor's arguments

    @recorded()
    def __init__(
        self,
        *,
        in_channels: int = 256,
        channels: int = 512,
        heads: int = 8,
        width: int = 1024,
        grids: Sequence[int] = (1, 2, 4),
        attention: Literal["differential", "plain"] = "differential",
        scalar: Literal["free", "reparametrised"] = "free",
        norm: Literal["head", "all"] = "head",
        projectors: Literal["separate", "shared"] = "separate",
    ):
        super().__init__()
        one_of("mapnet.attention", attention, ("differential", "plain"))
        one_of("mapnet.projectors", projectors, ("separate", "shared"))
        self.grids = tuple(grids)
        self.patches = nn.Conv2d(in_channels, channels, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(channels)
        self.attention: nn.Module = (
            PlainAttention(channels, heads, in_channels)
            if attention == "plain"
            else DegAttn(channels, heads, in_channels, scalar=scalar, norm=norm)
        )
        self.projectors = nn.ModuleList(
            nn.Sequential(nn.Linear(in_channels, width), nn.GELU(), nn.Linear(width, width), nn.LayerNorm(width))
            for _ in (self.grids if projectors == "separate" else self.grids[:1])
        )

    @property
    def num_tokens(self) -> int:
        return sum(grid * grid for grid in self.grids)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w), h and w at least twice the finest grid, to (B, tokens, D): global, 2 x 2, 4 x 4.

        Raises:
            ValueError: the map is too small for the finest grid, because the face crop was too small.
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
            projector(self.pool(refined, grid).flatten(2).transpose(1, 2))
            for grid, projector in zip(self.grids, cycle(self.projectors), strict=False)
        ]
        return torch.cat(tokens, dim=1)

    @staticmethod
    def pool(features: Tensor, grid: int) -> Tensor:
        """Means over a grid of cells: (B, C, h, w) to (B, C, grid, grid)."""
        return F.adaptive_avg_pool2d(features, grid)
