"""Noise."""

import math

import numpy as np
import pytest
import torch
from degradation_batches import make_image
from scipy import stats

from face2scene.degradation.functional import noise

pytestmark = pytest.mark.numerics


def test_random_words_match_splitmix64():
    words = [word % 2**64 for word in noise.random_words(1234567, 0, 3).tolist()]
    assert words == [6457827717110365317, 3203168211198807973, 9817491932198370423]  # its published test
    assert torch.equal(noise.random_words(9, 100, 50), noise.random_words(9, 0, 150)[100:])


def test_chunk_size_changes_no_value(monkeypatch):
    expected = noise.gaussian(3, 9999), noise.shot(make_image(), 3)[0]
    monkeypatch.setattr(noise, "CHUNK", 250)
    assert torch.equal(noise.gaussian(3, 9999), expected[0])
    assert torch.equal(noise.shot(make_image(), 3)[0], expected[1])


def test_gaussian_noise_is_normal_in_tails():
    values = noise.gaussian(7, 4_000_000)
    assert stats.kstest(values[:500_000].numpy(), "norm").pvalue > 0.01
    for edge in (3.0, 4.0, 4.5):
        found, expected = int((values.abs() > edge).sum()), 4_000_000 * 2 * stats.norm.sf(edge)
        assert abs(found - expected) < 4 * math.sqrt(expected)
    neighbours = torch.corrcoef(torch.stack((values[:-1], values[1:])))[0, 1]
    other_seed = torch.corrcoef(torch.stack((values[:500_000], noise.gaussian(8, 500_000))))[0, 1]
    assert abs(neighbours) < 0.002 and abs(other_seed) < 0.006


@pytest.mark.parametrize("photons", [1, 16, 256])
def test_poisson_tables_match_pmf(photons):
    entries, offsets = noise._poisson_tables(photons, "cpu")
    entries = entries.view(256, 256).long()
    own = (entries >> 8).double() / 2**23
    chance = (own / 256).scatter_add(1, entries & 255, (1 - own) / 256)
    mean = np.arange(256)[:, None] * photons / 255
    count = np.round(offsets.double().numpy()[:, None] + mean) + np.arange(256)
    expected = np.where(count < 0, 0, stats.poisson.pmf(count, mean))
    assert np.abs(chance.numpy() - expected).max() < 1e-8
    assert stats.poisson.sf(count[:, -1], mean[:, 0]).max() < 1e-12  # nothing is cut off


@pytest.mark.parametrize("level", [0, 3, 40, 200, 255])
def test_photon_counts_pass_chi_square(level):
    image = torch.full((512, 512), level / 255)
    image[:1, :256] = torch.arange(256) / 255  # all levels are used: white is 256 photons
    centred, photons = noise.shot(image, seed=level)
    mean = level * 256 / 255
    counts = np.round(centred[1:].numpy().ravel() + mean).astype(int)
    assert photons == 256 and np.abs(counts - mean - centred[1:].numpy().ravel()).max() < 1e-3
    if level == 0:
        assert not counts.any()
        return
    low, high = (int(q) for q in stats.poisson.ppf((1e-4, 1 - 1e-4), mean))
    edges = np.arange(low, high + 1)  # the bins are each count between, and the two tails
    found = np.bincount(np.clip(counts, low, high + 1) - low, minlength=high - low + 2)
    chances = np.diff(np.concatenate(([0], stats.poisson.cdf(edges, mean), [1])))
    assert stats.chisquare(found, chances * len(counts)).pvalue > 1e-3
