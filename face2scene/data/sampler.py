"""The order of a training's images: every image once an epoch, sets mixed by weight, shards kept together.

Sample number i is a pure function of i and the seed, so a training resumes at the exact sample with any number of
workers and processes, without a saved state.
"""

from collections.abc import Hashable, Sequence
from functools import lru_cache

import numpy as np

from face2scene.common.reproducibility import seed_from

_BLOCK = 10_000  # samples over which non-integer weights hold exactly


class MixtureSampler:
    """An endless order over the images of several sets.

    Within every block of samples each set has its exact share. The block's length is the sum of the weights, divided by
    their greatest common divisor, if these are integers (the paper's 11,266, 16,486 and 29,697 make one epoch of the
    three sets), else 10,000. A set's images have a new order every epoch: its shards are shuffled, then the images of
    each `window` consecutive shards are shuffled together, so that few archives are open at a time.

    Args:
        shards: the shard of every image, for every set. Where all are equal, the set is shuffled as a whole.
        weights: of the sets; None is their numbers of images.
        seed: of the order.
        window: shards that are read at the same time.

    Raises:
        ValueError: an empty set, or weights that are not above 0.
    """

    def __init__(
        self,
        shards: Sequence[Sequence[Hashable]],
        weights: Sequence[float] | None = None,
        *,
        seed: int = 0,
        window: int = 8,
    ):
        self.counts = [len(of) for of in shards]
        if not self.counts or min(self.counts) == 0:
            raise ValueError("A mix needs sets with at least one image each.")
        weights = list(self.counts if weights is None else weights)
        if len(weights) != len(shards) or min(weights) <= 0:
            raise ValueError(f"A mix needs a weight above 0 for each of its {len(shards)} sets, not {weights}.")
        self.seed, self.window = seed, window
        self._groups = [_grouped(of) for of in shards]
        self.quotas = _quotas(weights)
        self.block = sum(self.quotas)

    def __getitem__(self, sample: int) -> tuple[int, int]:
        """Set and number of the image of sample number `sample`."""
        block, place = divmod(sample, self.block)
        sets, ranks = self._mix(block)
        part = int(sets[place])
        epoch, position = divmod(block * self.quotas[part] + int(ranks[place]), self.counts[part])
        return part, int(self._epoch(part, epoch)[position])

    @lru_cache(maxsize=4)  # noqa: B019  the last sampler stays in memory
    def _mix(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """The set of every place of a block, and the rank of the place among those of its set."""
        sets = np.repeat(np.arange(len(self.quotas)), self.quotas)
        if len(self.quotas) > 1:
            np.random.default_rng(seed_from(self.seed, "mix", block)).shuffle(sets)
        ranks = np.empty(len(sets), np.int64)
        for part in range(len(self.quotas)):
            ranks[sets == part] = np.arange(self.quotas[part])
        return sets, ranks

    @lru_cache(maxsize=16)  # noqa: B019
    def _epoch(self, part: int, epoch: int) -> np.ndarray:
        rng = np.random.default_rng(seed_from(self.seed, "epoch", part, epoch))
        groups = [self._groups[part][n] for n in rng.permutation(len(self._groups[part]))]
        rows = [
            rng.permutation(np.concatenate(groups[first : first + self.window]))
            for first in range(0, len(groups), self.window)
        ]
        return np.concatenate(rows)


def _grouped(shards: Sequence[Hashable]) -> list[np.ndarray]:
    places: dict[Hashable, list[int]] = {}
    for number, shard in enumerate(shards):
        places.setdefault(shard, []).append(number)
    return [np.array(numbers, np.int32) for numbers in places.values()]


def _quotas(weights: Sequence[float]) -> list[int]:
    if all(float(w).is_integer() for w in weights):
        integers = [int(w) for w in weights]
        return [w // int(np.gcd.reduce(integers)) for w in integers]
    exact = np.array(weights, float) / sum(weights) * _BLOCK
    quotas = np.floor(exact).astype(int)
    for part in np.argsort(quotas - exact)[: _BLOCK - quotas.sum()]:  # largest remainders first
        quotas[part] += 1
    if quotas.min() == 0:
        raise ValueError(f"A weight of a mix is under a {_BLOCK}th of all: {list(weights)}.")
    return quotas.tolist()
