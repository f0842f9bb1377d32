"""Several spaces as one: a recipe is drawn from one of them, chosen by its share."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from face2scene.degradation.recipe import Recipe
from face2scene.degradation.space import Space


@dataclass(frozen=True)
class Mixture:
    """Draws from one of several spaces, for a training that has to know more than one kind of damage.

    Args:
        spaces: by name.
        shares: of the draws, by the same names; they sum to 1.

    Raises:
        ValueError: names that differ, or shares that do not sum to 1.
    """

    spaces: Mapping[str, Space]
    shares: Mapping[str, float]

    def __post_init__(self) -> None:
        if set(self.spaces) != set(self.shares):
            raise ValueError(
                f"degradation.shares names {sorted(self.shares)} and degradation.spaces {sorted(self.spaces)}: "
                "every space needs one share."
            )
        if any(share < 0 for share in self.shares.values()) or abs(sum(self.shares.values()) - 1) > 1e-6:
            raise ValueError(f"degradation.shares must be at least 0 and sum to 1, got {dict(self.shares)}.")

    def draw(self, rng: np.random.Generator) -> Recipe:
        """A new recipe of one of the spaces."""
        names = list(self.shares)
        place = np.searchsorted(np.cumsum([self.shares[name] for name in names]), rng.random(), side="right")
        return self.spaces[names[min(int(place), len(names) - 1)]].draw(rng)
