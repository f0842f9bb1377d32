"""What a pair of faces itself holds of a degradation."""

import math

import numpy as np
import pytest
import torch

from face2scene.degradation import Blur, Jpeg, Recipe, Resize
from face2scene.degradation.operators.basic import RestoreSize
from face2scene.models.fadex.pair_statistics import (
    GROUPS,
    PAIR_STATISTICS,
    PATCH,
    PERIODS,
    SLOWEST,
    pair_statistics,
)


def spectra(gt, degraded):
    """(7, GROUPS): the first six as `pair_statistics` orders them, the seventh the power of another origin."""
    return pair_statistics(gt[None], degraded[None])[0, : 7 * GROUPS].view(7, GROUPS)


def texture(size=192):
    return torch.rand((3, size, size), generator=torch.Generator().manual_seed(0)) * 0.5 + 0.25


@pytest.mark.parametrize("size", [(16, 16), (17, 40), (160, 96), (520, 48)])
def test_statistics_are_of_one_length(size):
    found = pair_statistics(torch.rand(2, 3, *size), torch.rand(2, 3, *size))
    assert found.shape == (2, PAIR_STATISTICS) and found.isfinite().all()
    assert pair_statistics(torch.zeros(1, 3, *size), torch.zeros(1, 3, *size)).isfinite().all()


def test_white_noise_has_its_variance_everywhere():
    """Grey: 100 x (0.299^2 + 0.587^2 + 0.114^2); red less blue: 200. Rings above the mean's, within 20 %."""
    gt = texture()
    found = spectra(gt, gt + 10 / 255 * torch.randn(gt.shape, generator=torch.Generator().manual_seed(1)))
    for row, power in ((2, 44.7), (3, 200.0), (6, 44.7)):
        assert found[row].exp().mean() == pytest.approx(power, rel=0.05)
        assert found[row, 2:17].exp().tolist() == pytest.approx([power] * 15, rel=0.2)
    assert found[5, 2:17].tolist() == pytest.approx([1.0] * 15, abs=0.1), "nothing of the face is lost"


def test_blurs_response_is_read():
    """A Gaussian's, exp(-2 (pi sigma f)^2), where more than a tenth is left; the ring's mean is off by up to 0.06."""
    gt = texture()
    found = spectra(gt, Recipe((Blur("iso", 21, sigma_x=1.5),)).apply(gt))[5]
    for ring in range(2, 8):
        expected = math.exp(-2 * (math.pi * 1.5 * ring / PATCH) ** 2)
        assert float(found[ring]) == pytest.approx(expected, abs=0.06), ring


@pytest.mark.parametrize("share", [0.3, 0.45])
def test_enlarging_leaves_its_period(share):
    gt = texture(160)
    degraded = Recipe((Resize(share, "bilinear"), RestoreSize("bilinear"))).apply(gt)
    against = pair_statistics(gt[None], degraded[None])[0, -2 * PERIODS - 1 : -PERIODS - 1]
    expected = (share - SLOWEST) / (0.5 - SLOWEST) * PERIODS
    assert float(against.argmax()) == pytest.approx(expected, abs=1)


def test_jpeg_shows_at_its_blocks(photo):
    gt = torch.from_numpy(np.ascontiguousarray(photo[40:168, 160:288].transpose(2, 0, 1))).float()
    start = 7 * GROUPS
    blocks = [pair_statistics(gt[None], Recipe((Jpeg(q),)).apply(gt)[None])[0, start:] for q in (100, 50, 15)]
    steepest = [float(found[7] + found[15]) for found in blocks]  # of the eight places, along rows and along columns
    assert steepest == sorted(steepest) and steepest[2] > 1.5 * steepest[0]
