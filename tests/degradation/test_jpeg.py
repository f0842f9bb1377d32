"""Jpeg."""

import io

import numpy as np
import pytest
import torch
from basicsr_compat import DiffJPEG
from degradation_batches import make_image
from PIL import Image

from face2scene.degradation import (
    Jpeg,
    Recipe,
    Space,
)
from face2scene.degradation.functional import jpeg
from face2scene.image_io.arrays import to_array, to_bytes, to_tensor

pytestmark = pytest.mark.numerics


def test_libjpeg_refuses_gradients():
    with pytest.raises(ValueError, match=r"Jpeg.codec is 'libjpeg'.*'differentiable'"):
        Recipe((Jpeg(50),)).apply(make_image().requires_grad_(), gradients=True)


@pytest.mark.parametrize("quality", [1, 30, 75, 95, 100])
def test_libjpeg_equals_pillow(quality, photo):
    for image in (photo[:131, :97], to_array(make_image(64, 67))):  # a photo, and noise that hardly compresses
        file = io.BytesIO()
        Image.fromarray(to_bytes(image)).save(file, "JPEG", quality=quality, subsampling="4:2:0")
        expected = np.asarray(Image.open(file))
        assert np.array_equal(to_bytes(Recipe((Jpeg(quality),)).apply_array(image)), expected)


def test_strips_leave_no_jpeg_seams(monkeypatch, photo):
    whole = jpeg.codec(to_tensor(photo), 70)
    monkeypatch.setattr(jpeg, "STRIP", 512 * 37)
    assert torch.equal(jpeg.codec(to_tensor(photo), 70), whole)


@pytest.mark.parametrize("quality", [5, 30, 49, 50, 75, 95])
def test_differentiable_jpeg_matches_basicsr(quality, photo):
    image = to_tensor(photo[:160, :112])
    # basicsr's tables are turned over their diagonal; so is an image whose sides are exchanged.
    with torch.no_grad():
        expected = DiffJPEG(differentiable=True)(image.transpose(1, 2)[None].contiguous(), quality=quality)[0]
    difference = (Recipe((Jpeg(quality, "differentiable"),)).apply(image) - expected.transpose(1, 2)).abs()
    assert (difference > 1e-4).float().mean() < 1e-3  # a value at the edge may round the other way
    assert difference.mean() < 1e-5


@pytest.mark.parametrize("quality", [5.5, 30, 50, 75.25, 99.9])
def test_diffjpeg_matches_basicsr(quality, photo):
    image = to_tensor(photo[:150, :109])
    with torch.no_grad():
        expected = DiffJPEG(differentiable=False)(image[None], quality=quality)[0]
    recipe = Recipe((Jpeg(quality, "diffjpeg"),))
    difference = (recipe.apply(image) - expected).abs()
    assert (difference > 1e-4).float().mean() < 1e-3 and difference.mean() < 1e-5
    upright = Recipe((Jpeg(round(quality), "differentiable"),)).apply(image)
    assert (upright - expected).abs().mean() > 1e-3
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_only_diffjpeg_draws_float_quality():
    for codec, kind in (("diffjpeg", float), ("differentiable", int), ("libjpeg", int)):
        space, rng = Space(jpeg_codec=codec), np.random.default_rng(0)
        operators = [o for _ in range(20) for o in space.draw(rng).operators if isinstance(o, Jpeg)]
        assert {(type(o.quality), o.codec) for o in operators} == {(kind, codec)}
    with pytest.raises(ValueError, match=r"Space\.jpeg_codec is 'turbo': it must be one of libjpeg"):
        Space(jpeg_codec="turbo")


@pytest.mark.parametrize("quality", [10, 50, 90])
def test_differentiable_jpeg_is_near_libjpeg(quality, photo):
    image = to_tensor(photo[:200, 100:300])
    real, formula = (Recipe((Jpeg(quality, c),)).apply(image) for c in jpeg.CODECS[:2])
    degradation = (real - image).square().mean()
    assert (formula - real).square().mean() < 0.25 * degradation
    assert (formula - image).square().mean() / degradation == pytest.approx(1, abs=0.25)


def test_differentiable_jpeg_any_size():
    image = make_image(33, 21)
    best = Recipe((Jpeg(100, "differentiable"),)).apply(image)
    assert best.shape == image.shape and best.isfinite().all()
    flat = torch.full((3, 33, 21), 0.5)  # the padding must not darken the border
    torch.testing.assert_close(Recipe((Jpeg(30, "differentiable"),)).apply(flat), flat, rtol=0, atol=0.02)
