"""Exponential moving average (EMA) of trained weights, for validation and export."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from face2scene.train.fsdp import full_tensor, shard_like


class EMA:
    """Averages of a module's weights that require gradients; unsharded on every process.

    The weights are looked up by name at every call, because sharding replaces them and `prepare` moves them.

    Args:
        buffers: average its floating-point buffers too, such as running statistics.
        decay: of step n it is at most (1 + n) / (10 + n), so that the initial weights soon lose their influence.

    Raises:
        ValueError: a decay outside (0, 1).
    """

    def __init__(self, module: nn.Module, decay: float, *, buffers: bool = False):
        if not 0 < decay < 1:
            raise ValueError(f"ema of train.restorer or train.fadex must be between 0 and 1, or null, not {decay}.")
        self.module, self.decay, self.steps = module, decay, 0
        chosen: dict[str, Tensor] = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
        if buffers:
            chosen |= {name: buffer for name, buffer in module.named_buffers() if buffer.is_floating_point()}
        self.values = {name: weight.detach().clone() for name, weight in chosen.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Update the averages with the current weights; once per optimiser step."""
        self.steps += 1
        keep = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, weight in self._weights():
            average = self.values[name].to(weight.device)  # the averages may be older than the module's move to a GPU
            self.values[name] = average.lerp_(full_tensor(weight), 1 - keep)

    @contextmanager
    def average_parameters(self) -> Iterator[None]:
        """Inside, the weights have the averaged values; enter it before `summon_full_params`."""
        own = {name: weight.detach().clone() for name, weight in self._weights()}
        self._assign(self.values)
        try:
            yield
        finally:
            self._assign(own)

    @torch.no_grad()
    def _assign(self, values: Mapping[str, Tensor]) -> None:
        for name, weight in self._weights():
            weight.copy_(shard_like(values[name], weight))

    def _weights(self) -> list[tuple[str, Tensor]]:
        everything = chain(self.module.named_parameters(), self.module.named_buffers())
        return [(name, weight) for name, weight in everything if name in self.values]

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "values": dict(self.values)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.steps = state["steps"]
        for name, value in self.values.items():
            value.copy_(state["values"][name])
