"""Schedule, progress and batch sizes of a training."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from face2scene.common.choices import one_of


@dataclass(frozen=True)
class Schedule:
    """Settings of the loop, in optimizer steps.

    Raises:
        ValueError: a setting out of range.
    """

    steps: int  # length of the training
    warmup: int = 0  # steps of linear growth of every learning rate
    decay: str = "constant"  # or `cosine`, down to a hundredth at the end
    log_every: int = 10
    validate_every: int = 0  # 0: only at the end, as for `save_every`
    save_every: int = 0
    keep_states: int = 2  # how many of the newest states stay on disk
    max_norm: float = 1.0  # gradients of each phase are clipped to this norm
    best: str = ""  # a validation metric; whenever it improves, the weights are also exported to weights/best
    best_is: str = "lowest"  # or `highest`

    def __post_init__(self) -> None:
        if self.steps < 1 or self.log_every < 1 or self.keep_states < 1:
            raise ValueError(f"steps, log_every and keep_states must be at least 1: {self}.")
        one_of("schedule.decay", self.decay, ("constant", "cosine"))
        one_of("schedule.best_is", self.best_is, ("lowest", "highest"))

    def improves(self, values: Mapping[str, float], best: float | None) -> bool:
        """Whether the metric in `values` is finite and better than `best` (None before the first).

        Raises:
            ValueError: there is no such metric; the message lists the metrics.
        """
        if not self.best or not values:  # no validation data
            return False
        if self.best not in values:
            raise ValueError(f"schedule.best={self.best} is not among the validation metrics: {', '.join(values)}.")
        value = values[self.best]
        if not math.isfinite(value):
            return False
        return best is None or not math.isfinite(best) or (value < best if self.best_is == "lowest" else value > best)

    def rate(self, step: int) -> float:
        """Factor on the learning rates for step number `step`, counted from 0."""
        warm = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        if self.decay == "constant":
            return warm
        return warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / self.steps)))


def share_batch(
    batch: int, processes: int, *, effective_batch: int | None = None, accumulate: int | None = None
) -> tuple[int, int]:
    """`batch` and `accumulate`, so that any number of processes takes equal steps.

    Args:
        batch: images per call; an upper bound where `effective_batch` is given.
        effective_batch: images per optimizer step, over all calls and processes; None is what the others come to.
        accumulate: calls per optimizer step; None follows from the others, or is 1.

    Raises:
        ValueError: `effective_batch` is not the product of such numbers.
    """
    if effective_batch:
        batch = min(batch, max(1, effective_batch // processes))
        accumulate = accumulate or max(1, round(effective_batch / (batch * processes)))
    accumulate = accumulate or 1
    images = batch * accumulate * processes
    if effective_batch and images != effective_batch:
        raise ValueError(
            f"train.restorer.effective_batch={effective_batch} is not batch x accumulate x processes = {batch} x "
            f"{accumulate} x {processes}: set train.restorer.effective_batch={images}, another "
            "train.restorer.batches.batch, or train.restorer.accumulate=null."
        )
    return batch, accumulate


class Progress:
    """Optimizer steps done, batches consumed and the best validation metric; saved with the state."""

    def __init__(self) -> None:
        self.step = 0
        self.batch = 0
        self.best: float | None = None

    def due(self, every: int) -> bool:
        return bool(every) and self.step % every == 0

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.batch, best = int(state["step"]), int(state["batch"]), state["best"]
        self.best = None if best is None else float(best)
