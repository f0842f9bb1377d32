"""Noise that is a function of a seed and of the position in the image, on any device.

Random bits are those of SplitMix64 (Steele, Lea and Flood 2014): output i is a hash of seed + (i + 1) * GOLDEN in
integer arithmetic, so a CPU and a GPU draw the same bits, whatever the image, thread or order. These bits index tables
of values.
"""

import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from face2scene.degradation.functional.banded import empty_aligned

CHUNK = 32768  # words of 64 bits, each for two values: on a CPU, these stay in a core's cache
LARGE_CHUNK = 2**22  # on a GPU
GOLDEN = 0x9E3779B97F4A7C15
LEVELS = 256
OUTCOMES = 256  # photon counts of a level's table; they reach eight standard deviations to either side


def random_words(seed: int, start: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """Outputs `start` to `start + count - 1` of SplitMix64 from `seed`, int64 (count,)."""
    if torch.device(device).type == "cpu":
        return torch.from_numpy(_words_of_numpy(seed, start, count).view(np.int64))
    counters = _counters(max(count, _chunk(device)), str(device))[:count]
    word = counters + _signed(seed + (start + 1) * GOLDEN)
    word ^= (word >> 30).bitwise_and_((1 << 34) - 1)  # masked, since the shifts are logical and torch's are arithmetic
    word *= _signed(0xBF58476D1CE4E5B9)
    word ^= (word >> 27).bitwise_and_((1 << 37) - 1)
    word *= _signed(0x94D049BB133111EB)
    word ^= (word >> 31).bitwise_and_((1 << 33) - 1)
    return word


def _words_of_numpy(seed: int, start: int, count: int) -> np.ndarray:
    """`random_words` in a third of torch's time: NumPy's shifts are logical and its 64-bit products faster."""
    counters = _counters(max(count, CHUNK), "cpu").numpy()[:count].view(np.uint64)
    word = counters + np.uint64((seed + (start + 1) * GOLDEN) % 2**64)
    scratch = np.empty_like(word)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        np.right_shift(word, np.uint64(shift), out=scratch)
        np.bitwise_xor(word, scratch, out=word)
        if factor != 1:
            np.multiply(word, np.uint64(factor), out=word)
    return word


def gaussian(seed: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """Standard normal values, float32 (count,).

    A value is the sum of two independent draws from the normal distribution's 65536 middle quantiles, divided by the
    root of 2. Variance 1; the share beyond four standard deviations is right within 2 %, beyond five within 17 %,
    beyond 6.1 it is 0.
    """
    table = _quantiles(str(device))
    values = empty_aligned(count, device=device)
    for start, part in _chunks(values):
        bits = _words(seed, start, len(part), device)
        first = table.index_select(0, bits & 0xFFFF)
        second = table.index_select(0, bits.bitwise_right_shift_(16).bitwise_and_(0xFFFF))
        torch.add(first, second, out=part)
    return values


def shot(intensity: Tensor, seed: int) -> tuple[Tensor, int]:
    """Photon noise of an image read in 8-bit steps.

    White counts as many photons as the image has different levels, rounded up to a power of two. Each of the 256 levels
    has a table (Walker's alias method, 1974) from which one look-up draws a Poisson count; probabilities are exact to
    2^-31.

    Args:
        intensity: float32 in [0, 1], any shape.

    Returns:
        Count minus mean count, float32 of the same shape, and the photons of white.
    """
    flat = intensity.reshape(-1)
    used = torch.zeros(LEVELS, dtype=torch.int64, device=flat.device)
    for _, part in _chunks(flat):
        used += torch.bincount(_levels(part), minlength=LEVELS)
        if (found := int(used.count_nonzero())) > LEVELS // 2:
            break  # the power of two is known
    photons = 2 ** math.ceil(math.log2(found))
    alias, offset = _poisson_tables(photons, str(flat.device))
    noise = empty_aligned(len(flat), device=flat.device)
    for start, part in _chunks(noise):
        level = _levels(flat[start : start + len(part)])
        bits = _words(seed, start, len(part), flat.device)
        outcome = bits & (OUTCOMES - 1)
        entry = alias.index_select(0, torch.add(outcome, level, alpha=OUTCOMES))
        # Below the entry's threshold the outcome stands, else it is its alias, the entry's last bits. In integers:
        # a comparison and a selection take ten times as long. `below` is all ones or all zeros.
        bits.bitwise_right_shift_(1).bitwise_and_(0x7FFFFFFF)
        below = bits.sub_(entry.bitwise_and(~(OUTCOMES - 1))).bitwise_right_shift_(31)
        entry.bitwise_and_(OUTCOMES - 1)
        outcome.bitwise_xor_(entry).bitwise_and_(below).bitwise_xor_(entry)
        torch.add(offset.index_select(0, level), outcome, out=part)
    return noise.view(intensity.shape), photons


def _levels(intensity: Tensor) -> Tensor:
    return intensity.mul(255).add_(0.5).to(torch.int32)


def _chunk(device: torch.device | str) -> int:
    return CHUNK if torch.device(device).type == "cpu" else LARGE_CHUNK


def _chunks(values: Tensor) -> Iterator[tuple[int, Tensor]]:
    step = 2 * _chunk(values.device)
    for start in range(0, len(values), step):
        yield start, values[start : start + step]


def _words(seed: int, start: int, count: int, device: torch.device | str) -> Tensor:
    """`count` times 32 random bits, int32; `start` counts values and is even."""
    return random_words(seed, start // 2, (count + 1) // 2, device).view(torch.int32)[:count]


@lru_cache(maxsize=8)
def _counters(count: int, device: str) -> Tensor:
    return torch.arange(count, device=device) * _signed(GOLDEN)


def _signed(word: int) -> int:
    word &= 2**64 - 1
    return word - 2**64 if word >= 2**63 else word


@lru_cache(maxsize=8)
def _quantiles(device: str) -> Tensor:
    middles = (torch.arange(65536, dtype=torch.float64) + 0.5) / 65536
    values = torch.special.ndtri(middles)
    return (values / (values.square().mean() * 2).sqrt()).float().to(device)


@lru_cache(maxsize=32)
def _poisson_tables(photons: int, device: str) -> tuple[Tensor, Tensor]:
    """`shot`'s look-up: int32 (LEVELS * OUTCOMES,) entries, and what an outcome is to be added to, (LEVELS,)."""
    mean = torch.arange(LEVELS, dtype=torch.float64)[:, None] * photons / (LEVELS - 1)
    lowest = mean.floor() - OUTCOMES // 2
    count = lowest + torch.arange(OUTCOMES)
    chance = torch.where(count < 0, 0.0, torch.exp(torch.xlogy(count, mean) - mean - torch.lgamma(count.clamp(0) + 1)))
    chance *= OUTCOMES / chance.sum(dim=1, keepdim=True)
    threshold, alias = _alias(chance)
    entry = (threshold * 2**23).long().clamp(max=2**23 - 1) * OUTCOMES + alias
    return entry.to(torch.int32).flatten().to(device), (lowest - mean).float().flatten().to(device)


def _alias(chance: Tensor) -> tuple[Tensor, Tensor]:
    """Walker's tables of distributions (rows, n), each of mean 1: an outcome's share of its own column, and the outcome
    that has the rest of it."""
    rows, count = chance.shape
    chance, row = chance.clone(), torch.arange(rows)
    alias = torch.arange(count).repeat(rows, 1)
    done = torch.zeros(rows, count, dtype=torch.bool)
    for _ in range(count - 1):  # the smallest column is filled up by the largest and is done
        poor = torch.where(done, torch.inf, chance).argmin(dim=1)
        rich = torch.where(done, -torch.inf, chance).argmax(dim=1)
        settled = poor != rich
        done[row, poor] = True
        alias[row, poor] = torch.where(settled, rich, poor)
        chance[row, rich] -= torch.where(settled, 1 - chance[row, poor], 0.0)
    return chance.clamp(0, 1), alias
