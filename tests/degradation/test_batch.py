"""Batches, loader workers, threads and gradients give the result of one image alone."""

import numpy as np
import pytest
import torch
from degradation_batches import OPERATORS, draw_recipes, make_image, operator_id
from torch.utils.data import DataLoader

from face2scene.degradation import (
    Blur,
    Jpeg,
    MotionBlur,
    PoissonNoise,
    Recipe,
    Resize,
    RestoreSize,
    SensorNoise,
    Sinc,
    SpatiallyVaryingBlur,
    Webp,
    apply_batch,
)
from face2scene.degradation.functional import banded, noise
from face2scene.image_io.arrays import to_array, to_bytes, to_tensor

pytestmark = pytest.mark.numerics


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


CAMERA_OPERATORS = [
    MotionBlur(12, 0.3, bend_px=1.0),
    SpatiallyVaryingBlur("aniso", 21, 3.0, 0.3, sigma_y=1.0, theta_rad=0.2),
    SensorNoise.at_iso(1600, red_gain=2.0),
    Webp(70),
]


class _DegradedDataset(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, number: int) -> np.ndarray:
        return draw_recipes("paper", 4)[number].apply_array(to_bytes(make_image(seed=number)))


def test_batch_equals_single_images():
    recipes = [*draw_recipes("paper", 3), Recipe()]
    images = torch.stack([make_image(seed=n) for n in range(4)])
    together = apply_batch(images, recipes)
    for n in (2, 0, 3, 1):
        assert torch.equal(together[n], recipes[n].apply(images[n]))
    assert torch.equal(apply_batch(images.flip(0), recipes[::-1]), together.flip(0))
    assert torch.equal(images[0], make_image(seed=0))  # left as they were
    assert apply_batch(images[:0], []).shape == (0, 3, 96, 80)


def test_batch_can_return_low_res():
    small = apply_batch(torch.stack([make_image(), make_image()]), draw_recipes("paper", 2), keep_size=False)
    assert small.shape == (2, 3, 24, 20)


def test_thread_count_changes_no_byte(threads):
    generator = np.random.default_rng(1)
    each = [Recipe((operator, RestoreSize()), noise_seed=3) for operator in [*OPERATORS, *CAMERA_OPERATORS]]
    for recipe in [*each, *draw_recipes("paper", 4), *draw_recipes("severe", 2), *draw_recipes("mild", 2)]:
        image = make_image(*(int(side) for side in generator.integers(97, 420, 2)))
        threads(1)
        alone = recipe.apply(image)
        for count in (2, 3):
            threads(count)
            assert torch.equal(recipe.apply(image), alone), recipe.to_json()
            assert torch.get_num_threads() == count
    with pytest.raises(ValueError, match="smaller size"):
        Recipe((Blur("iso", 21, 3.0),)).apply(make_image(5, 5))
    assert torch.get_num_threads() == 3  # after an error too


def test_large_pages_change_no_byte(monkeypatch):
    image, recipe = make_image(150, 170), draw_recipes("paper", 1)[0]
    usual = recipe.apply(image)
    monkeypatch.setattr(banded, "LARGE", 1)
    assert torch.equal(recipe.apply(image), usual)
    assert banded.empty_aligned(3, 7).data_ptr() % (4 * banded.ALIGNED) == 0


def test_memory_layout_changes_no_byte():
    image = make_image(101, 97)
    elsewhere = torch.empty(image.numel() + 5)[5:].view(image.shape).copy_(image)
    channels_last = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    for recipe in draw_recipes("paper", 4, seed=2):
        assert torch.equal(recipe.apply(elsewhere), recipe.apply(image))
        assert torch.equal(recipe.apply(channels_last), recipe.apply(image))


def test_array_equals_tensor(photo):
    for recipe in draw_recipes("severe", 3):
        expected = recipe.apply(to_tensor(photo[:200, :180]))
        floats = recipe.apply_array(photo[:200, :180])
        assert floats.dtype == np.float32 and np.array_equal(floats, to_array(expected))
        assert np.array_equal(recipe.apply_array(photo[:200, :180].astype(np.float64)), floats)
        whole = recipe.apply_array(to_bytes(photo[:200, :180]))  # this photo has 8 bits: nothing is lost
        assert whole.dtype == np.uint8 and np.array_equal(whole, to_bytes(expected))
    assert Recipe((Resize(0.5), RestoreSize())).apply_array(photo, keep_size=False).shape == (256, 256, 3)


def test_workers_equal_main_process():
    here = [_DegradedDataset()[number] for number in range(4)]
    for batch, expected in zip(DataLoader(_DegradedDataset(), batch_size=None, num_workers=2), here, strict=True):
        assert np.array_equal(batch, expected)


@pytest.mark.parametrize(
    ("images", "recipes", "message"),
    [
        (torch.rand(3, 8, 8), [Recipe()], r"\(B, 3, H, W\) with B recipes, got \(3, 8, 8\)"),
        (torch.rand(2, 3, 8, 8), [Recipe()], "got .* and 1 recipes"),
        (np.zeros((1, 3, 8, 8), np.float32), [Recipe()], "got ndarray"),
        (torch.rand(1, 4, 8, 8), [Recipe()], r"\(3, H, W\), got \(4, 8, 8\)"),
        (torch.full((1, 3, 8, 8), 2.0), [Recipe()], r"\[0, 1\], got 2"),
        (torch.rand(1, 3, 8, 8), [Recipe((Blur("iso", 21, 1.0),))], "Blur.size is 21, .* at most 15"),
        (torch.rand(1, 3, 8, 8), [Recipe((Sinc(1.0, 21),))], "Sinc.size is 21, .* at most 15"),
    ],
)
def test_invalid_batch_is_refused(images, recipes, message):
    with pytest.raises(ValueError, match=message):
        apply_batch(images, recipes)


def test_batch_of_mixed_sizes_is_refused():
    recipes = [Recipe((Resize(0.5),)), Recipe((Resize(0.25),))]
    with pytest.raises(ValueError, match=r"images of \(48, 40\) and \(24, 20\) pixels"):
        apply_batch(torch.stack([make_image(), make_image()]), recipes, keep_size=False)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((8, 8), np.uint8), r"\(H, W, 3\), got \(8, 8\)"),
        (np.zeros((3, 8, 8), np.uint8), r"\(H, W, 3\), got \(3, 8, 8\)"),
        (np.zeros((8, 8, 3), np.uint16), "uint8, or float in .*, got uint16"),
        (np.full((8, 8, 3), np.nan), "nan"),
        (np.full((8, 8, 3), 255.0), r"\[0, 1\], got 255"),
        (torch.zeros(3, 8, 8), "got Tensor"),
        (np.zeros((0, 8, 3), np.uint8), "at least one pixel"),
    ],
)
def test_invalid_array_is_refused(array, message):
    with pytest.raises(ValueError, match=message):
        Recipe().apply_array(array)


@pytest.mark.parametrize("operator", OPERATORS, ids=operator_id)
def test_gradient_path_matches_forward(operator):
    image = make_image().mul(0.8).add(0.1)
    recipe = Recipe((operator, RestoreSize()))
    wanted = image.clone().requires_grad_()
    degraded = recipe.apply(wanted, gradients=True)
    # The formula of JPEG rounds, and what another way computes may round the other way.
    torch.testing.assert_close(degraded.detach(), recipe.apply(image), rtol=0, atol=1e-4)
    assert not recipe.apply(wanted).requires_grad  # not asked for
    weight = make_image(seed=5)
    (gradient,) = torch.autograd.grad((degraded * weight).sum(), wanted)
    assert gradient.isfinite().all() and gradient.abs().mean() > 1e-3
    if not isinstance(operator, Jpeg | PoissonNoise):  # these two round; the others are linear where nothing is cut off
        step = 1e-2 * make_image(seed=6)
        moved = recipe.apply((image + step).requires_grad_(), gradients=True)
        slope = ((moved - degraded) * weight).sum().item()
        assert (gradient * step).sum().item() == pytest.approx(slope, rel=0.01)


def test_batch_gradients_stay_per_image():
    images = torch.stack([make_image(), make_image(seed=1)]).requires_grad_()
    recipes = [Recipe((OPERATORS[0], Jpeg(70, "differentiable"))), Recipe((OPERATORS[4], RestoreSize()))]
    degraded = apply_batch(images, recipes, gradients=True)
    (gradient,) = torch.autograd.grad(degraded[1].sum(), images)
    assert gradient[1].abs().sum() > 0 and not gradient[0].any()
    assert not apply_batch(images, recipes).requires_grad


@pytest.mark.gpu
@pytest.mark.parametrize("operator", [*OPERATORS, Jpeg(60)], ids=operator_id)
def test_gpu_matches_cpu_per_operator(operator):
    recipe = Recipe((operator,))
    image = make_image(512, 512)
    there = recipe.apply(image.cuda(), keep_size=False)
    assert there.is_cuda
    here = recipe.apply(image, keep_size=False)
    if operator == Jpeg(60, "differentiable"):  # it rounds
        assert (there.cpu() - here).abs().mean() < 1e-3
    else:
        torch.testing.assert_close(there.cpu(), here, rtol=0, atol=1e-4)


@pytest.mark.gpu
def test_gpu_noise_equals_cpu():
    assert torch.equal(noise.gaussian(5, 100_001, "cuda").cpu(), noise.gaussian(5, 100_001))
    assert torch.equal(noise.shot(make_image().cuda(), 5)[0].cpu(), noise.shot(make_image(), 5)[0])
    recipes, images = draw_recipes("paper", 4), torch.stack([make_image(256, 256, seed=n) for n in range(4)])
    there, here = apply_batch(images.cuda(), recipes), apply_batch(images, recipes)
    assert there.is_cuda and (there.cpu() - here).abs().mean() < 1e-3
