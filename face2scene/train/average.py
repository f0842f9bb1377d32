"""A moving average of the trained weights, to validate and to share."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class Average:
    """Exponential moving average of some weights.

    Args:
        weights: by name, buffers of numbers among them if they shall follow; they are read at every `update` and never
            changed by it.
        decay: share of the average that a step keeps; the first steps keep less, (1 + n) / (10 + n), so that the
            random start is soon forgotten.
    """

    def __init__(self, weights: Mapping[str, Tensor], decay: float):
        if not 0 < decay < 1:
            raise ValueError(f"ema of train.restorer or train.fadex must be between 0 and 1, or null, not {decay}.")
        self.weights, self.decay, self.steps = dict(weights), decay, 0
        self.values: dict[str, Tensor] = {name: w.detach().clone() for name, w in self.weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now; once per optimiser step."""
        self.steps += 1
        keep = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, weight in self.weights.items():
            self.values[name].lerp_(weight, 1 - keep)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The averaged values are in the weights' place inside this block."""
        own = {name: weight.data for name, weight in self.weights.items()}
        for name, weight in self.weights.items():
            weight.data = self.values[name]
        try:
            yield
        finally:
            for name, weight in self.weights.items():
                weight.data = own[name]

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "values": dict(self.values)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.steps = state["steps"]
        for name, value in self.values.items():
            value.copy_(state["values"][name])
