"""Convolve and resize."""

from dataclasses import dataclass

import pytest
import torch
from degradation_batches import OPERATORS, make_image, operator_id
from torch.nn import functional as F

from face2scene.degradation import (
    Blur,
    Recipe,
    Resize,
)
from face2scene.degradation.functional import banded, convolve, kernels, resize

pytestmark = pytest.mark.numerics


@dataclass(frozen=True)
class AsymmetricKernel:
    """A kernel without symmetry, as a shaken hand has."""

    size: int = 9

    def kernel(self) -> torch.Tensor:
        kernel = torch.rand(self.size, self.size, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        return kernel / kernel.sum()


SIZES = [((96, 80), (401, 333)), ((401, 333), (97, 80)), ((64, 64), (1, 2)), ((1, 3), (9, 5)), ((65, 33), (64, 34))]


@pytest.mark.parametrize("operator", [*OPERATORS[:4], AsymmetricKernel()], ids=operator_id)
def test_convolution_methods_agree(operator, monkeypatch):
    image, kernel = make_image(150, 131), kernels.trim(operator.kernel())
    ways = {
        "plain": convolve.plain(image, kernel),
        "torch": convolve.by_fourier(image, kernel),
        "scipy": convolve.by_scipy(image, kernel),
        "windows": convolve.by_windows(image, kernel),
        "chosen": convolve.convolve(image, operator),
    }
    monkeypatch.setattr(convolve, "TILE", 5000)
    ways["tiles"] = convolve.by_scipy(image, kernel)
    ways["strips of windows"] = convolve.by_windows(image, kernel)
    assert torch.equal(ways["strips of windows"], ways["windows"])  # whatever the height of a strip
    monkeypatch.setattr(convolve, "LARGEST_WINDOWED", (1,))
    monkeypatch.setattr(convolve, "MAX_RANK", 21)
    monkeypatch.setattr(banded, "STRIP", 5000)
    convolve._factors.cache_clear()
    convolve._matrix.cache_clear()
    ways["separable"] = convolve.convolve(image, operator)
    convolve._factors.cache_clear()
    convolve._matrix.cache_clear()
    expected = convolve.plain(image.double(), kernel).float()
    for way, blurred in ways.items():
        torch.testing.assert_close(blurred, expected, rtol=0, atol=2e-6, msg=lambda text, way=way: f"{way}: {text}")


@pytest.mark.parametrize("sizes", [((150, 131), (61, 90)), ((64, 80), (97, 111)), ((40, 30), (3, 2))])
@pytest.mark.parametrize(("mode", "antialias"), [(m, a) for m in resize.MODES for a in (False, True)])
def test_fused_blur_resize_equals_two_steps(mode, antialias, sizes):
    image, blur = make_image(*sizes[0]), Blur("iso", 13, sigma_x=1.2)
    at_once = convolve.convolve_and_resize(image, blur, sizes[1], mode, antialias)
    in_turn = resize.resize(convolve.convolve(image, blur), sizes[1], mode, antialias)
    torch.testing.assert_close(at_once, in_turn, rtol=0, atol=2e-6)
    with pytest.raises(ValueError, match=r"Blur\.size is 13, but the image is 6 x 6"):
        convolve.convolve_and_resize(make_image(6, 6), blur, sizes[1], mode, antialias)
    turned = Blur("aniso", 13, 2.0, 0.6, theta_rad=0.7)  # not separable
    assert convolve.convolve_and_resize(image, turned, sizes[1], mode, antialias) is None


def test_asymmetric_kernel_is_not_flipped():
    point = torch.zeros(3, 31, 31)
    point[:, 15, 15] = 1
    smeared = convolve.convolve(point, AsymmetricKernel())[0, 11:20, 11:20]
    torch.testing.assert_close(smeared.double(), AsymmetricKernel().kernel(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(("mode", "antialias"), [(m, a) for m in resize.MODES for a in (False, True)])
def test_resize_matches_torch_by_size(mode, antialias, sizes):
    image = make_image(*sizes[0])
    options = {} if mode == "area" else {"align_corners": False, "antialias": antialias}
    expected = F.interpolate(image[None], size=sizes[1], mode=mode, **options)[0].clamp(0, 1)
    torch.testing.assert_close(resize.resize(image, sizes[1], mode, antialias), expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize("factor", [0.3, 0.477, 0.999, 1.37])
@pytest.mark.parametrize("mode", resize.MODES)
@pytest.mark.parametrize("gradients", [False, True])
def test_resize_matches_torch_by_factor(mode, factor, gradients):
    """As the first resize of Real-ESRGAN's and S3Diff's code; by the sizes it lies up to a pixel beside it."""
    image = make_image(65, 131).mul(0.6).add(0.2)
    expected = F.interpolate(image[None], scale_factor=factor, mode=mode)[0]
    operators = [Resize(factor, mode, antialias=False, by_factor=by) for by in (True, False)]
    given = image.clone().requires_grad_(gradients)
    own, by_size = (Recipe((o,)).apply(given, keep_size=False, gradients=gradients).detach() for o in operators)
    torch.testing.assert_close(own, expected, rtol=0, atol=5e-5)
    assert mode == "area" or (by_size - expected).abs().max() > 0.02
    blur = Blur("iso", 7, sigma_x=1.0)
    both = Recipe((blur, operators[0])).apply(image, keep_size=False)
    in_turn = F.interpolate(convolve.convolve(image, blur)[None], scale_factor=factor, mode=mode)[0]
    torch.testing.assert_close(both, in_turn, rtol=0, atol=5e-5)
