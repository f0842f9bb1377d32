"""Several restorers as one: every face is shown to one of them, chosen by its share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Mixed:
    """One of several restorers at random, for a training that has to bear whatever Stage I gives.

    The paper trains FaDeX on restored and on true faces (facts 1.2); the shares, and a mix of qualities, are ours.

    Args:
        restorers: by name; each has `restore(degraded, references, truth=, rng=)` and keeps the crop's size.
        shares: of the faces, by the same names; they sum to 1.

    Raises:
        ValueError: names that differ, or shares that do not sum to 1.
    """

    restorers: Mapping[str, Any]
    shares: Mapping[str, float]
    name: str = "mixed"

    def __post_init__(self) -> None:
        if set(self.restorers) != set(self.shares):
            raise ValueError(
                f"ref_fr.shares names {sorted(self.shares)} and ref_fr.restorers {sorted(self.restorers)}: every "
                "restorer needs one share."
            )
        if any(share < 0 for share in self.shares.values()) or abs(sum(self.shares.values()) - 1) > 1e-6:
            raise ValueError(f"ref_fr.shares must be at least 0 and sum to 1, got {dict(self.shares)}.")

    @property
    def needs_truth(self) -> bool:
        return any(restorer.needs_truth for restorer in self.restorers.values())

    def restore(
        self, degraded: Tensor, references: Sequence[Path], *, truth: Tensor | None, rng: np.random.Generator
    ) -> Tensor:
        names = list(self.shares)
        place = np.searchsorted(np.cumsum([self.shares[name] for name in names]), rng.random(), side="right")
        chosen = self.restorers[names[min(int(place), len(names) - 1)]]
        return chosen.restore(degraded, references, truth=truth, rng=rng)
