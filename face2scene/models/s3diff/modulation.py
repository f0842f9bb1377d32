"""The modulation of S3Diff's LoRA layers: an r x r matrix per image and block between their two factors.

B images, r the LoRA's rank, K blocks, F frequencies.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from face2scene.common.choices import one_of


class Modulation(nn.Module):
    """Matrices (B, K, r, r), one per image and block, from the Fourier features (B, 4 F) of its two scores.

    Args:
        start: `near_zero` is S3Diff's, with all weights scaled by 1e-5, from which training starts slowly. `identity`
            adds the unit matrix, so that an untrained model is plain LoRA (ours, for short trainings).
    """

    def __init__(self, blocks: int, rank: int, *, waves: int, start: Literal["near_zero", "identity"] = "near_zero"):
        super().__init__()
        one_of("restorer.adapters.start", start, ("near_zero", "identity"))
        self.rank = rank
        self.scores = nn.Sequential(nn.Linear(waves, 256), nn.ReLU())
        self.block = nn.Sequential(nn.Linear(64, 64), nn.ReLU())
        self.fuse = nn.Linear(256 + 64, rank**2)
        self.embedding = nn.Embedding(blocks, 64)
        for layer in (m for part in (self.scores, self.block, self.fuse) for m in part.modules()):
            if not isinstance(layer, nn.Linear):
                continue
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
            layer.weight.data *= 1e-5
        if start == "identity":
            self.fuse.bias.data += torch.eye(rank).flatten()

    def forward(self, waves: Tensor) -> Tensor:
        scores, blocks = self.scores(waves), self.block(self.embedding.weight)
        both = torch.cat(
            [scores[:, None].expand(-1, len(blocks), -1), blocks[None].expand(len(scores), -1, -1)], dim=-1
        )
        return self.fuse(both).unflatten(-1, (self.rank, self.rank))


def vae_block(layer: str) -> int:
    """Index of the block of a layer of the VAE's encoder: down 0 to 3, middle 4, first and last layer 5."""
    _, block, *rest = layer.split(".")
    return int(rest[0]) if block == "down_blocks" else 4 if block == "mid_block" else 5


def unet_block(layer: str) -> int:
    """Index of the block of a layer of the UNet: down 0 to 3, middle 4, up 5 to 8, last layer 9."""
    block, *rest = layer.split(".")
    if block in ("down_blocks", "up_blocks"):
        return int(rest[0]) + (5 if block == "up_blocks" else 0)
    return 4 if block == "mid_block" else 9


@contextmanager
def modulated(network: Any, blocks: Mapping[str, int], matrices: Tensor) -> Iterator[None]:
    """Inside, the output of every LoRA layer's first factor is multiplied by its block's matrix.

    Args:
        network: of diffusers, with LoRA adapters.
        blocks: index of the block, by the layer's name.
        matrices: (B, K, r, r), for the batch that the network is called with.
    """
    handles = [
        network.get_submodule(f"{layer}.lora_A.default").register_forward_hook(
            partial(_multiply, matrix=matrices[:, block])
        )
        for layer, block in blocks.items()
    ]
    recomputing = torch.is_grad_enabled() and network.is_gradient_checkpointing
    if recomputing:  # recomputation happens after the end of this context and needs the same matrices
        network.enable_gradient_checkpointing(partial(_checkpointed, partial(modulated, network, blocks, matrices)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        if recomputing:
            network.enable_gradient_checkpointing()


def _checkpointed(context: Callable[[], AbstractContextManager], block: Callable, *args: Any) -> Any:
    return checkpoint(block, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), context()))


def _multiply(_: nn.Module, __: Any, output: Tensor, *, matrix: Tensor) -> Tensor:
    if len(matrix) != len(output):
        raise ValueError(f"Degradation scores of {len(matrix)} images were given for a batch of {len(output)}.")
    matrix = matrix.to(output.dtype)
    if output.dim() == 4:  # of a convolution: (B, r, h, w)
        return (matrix.mT @ output.flatten(2)).unflatten(2, output.shape[2:])
    return output @ matrix  # of a linear layer: (B, L, r)
