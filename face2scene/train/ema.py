"""A moving average of the trained weights, to validate and to share."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from face2scene.train.fsdp import full_tensor, shard_like


class EMA:
    """Exponential moving average of some weights.

    Args:
        module: whose weights that require gradients are averaged; each is looked up anew, because sharding replaces
            them. They are never changed by an `update`. The averages themselves are whole on every process.
        buffers: average its buffers of numbers too, such as running statistics.
        decay: share of the average that a step keeps; the first steps keep less, (1 + n) / (10 + n), so that the
            random start is soon forgotten.
    """

    def __init__(self, module: nn.Module, decay: float, *, buffers: bool = False):
        if not 0 < decay < 1:
            raise ValueError(f"ema of train.restorer or train.fadex must be between 0 and 1, or null, not {decay}.")
        self.module, self.decay, self.steps = module, decay, 0
        chosen = [(name, weight) for name, weight in module.named_parameters() if weight.requires_grad]
        chosen += [(name, b) for name, b in module.named_buffers() if b.is_floating_point()] if buffers else []
        self.values: dict[str, Tensor] = {name: weight.detach().clone() for name, weight in chosen}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now; once per optimiser step."""
        self.steps += 1
        keep = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, weight in self._weights():
            self.values[name].lerp_(full_tensor(weight), 1 - keep)

    @contextmanager
    def average_parameters(self) -> Iterator[None]:
        """The averaged values are in the weights' place inside this block; with sharded weights, before a gathering."""
        own = {name: weight.detach().clone() for name, weight in self._weights()}
        self._put(self.values)
        try:
            yield
        finally:
            self._put(own)

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, weight in self._weights():
            value = values[name]
            weight.copy_(value if isinstance(value, DTensor) else shard_like(value, weight))

    def _weights(self) -> list[tuple[str, Tensor]]:
        everything = chain(self.module.named_parameters(), self.module.named_buffers())
        return [(name, weight) for name, weight in everything if name in self.values]

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "values": dict(self.values)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.steps = state["steps"]
        for name, value in self.values.items():
            value.copy_(state["values"][name])
