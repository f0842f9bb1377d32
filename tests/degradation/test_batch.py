"""Batches, loader workers, threads and gradients give the result of one image alone."""

import importlib
import io
import math
import sys
import types
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from scipy import stats
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.transforms import functional as transforms

from face2scene.common.reproducibility import REPOSITORY
from face2scene.degradation import (
    Blur,
    GaussianNoise,
    Jpeg,
    MotionBlur,
    PoissonNoise,
    Recipe,
    Resize,
    RestoreSize,
    SensorNoise,
    Sinc,
    Space,
    SpatiallyVaryingBlur,
    Webp,
    apply_batch,
)
from face2scene.degradation.functional import banded, convolve, jpeg, kernels, noise, resize
from face2scene.image_io.arrays import to_array, to_bytes, to_tensor

pytestmark = pytest.mark.numerics

CONFIGS = REPOSITORY / "configs" / "degradation"
OPERATORS = [
    Blur("iso", 13, sigma_x=1.2),
    Blur("aniso", 15, sigma_x=2.0, sigma_y=0.6, theta_rad=0.7),
    Blur("plateau_iso", 21, sigma_x=2.0, beta=1.3),
    Sinc(1.4, 13),
    Resize(0.43, "area"),
    Resize(0.6, "bilinear", antialias=False),
    Resize(1.3, "bicubic", antialias=False),
    Resize(0.5, "bicubic"),
    GaussianNoise(9.0),
    GaussianNoise(9.0, grey=True),
    PoissonNoise(1.2),
    PoissonNoise(1.2, grey=True),
    Jpeg(60, "differentiable"),
]


def make_image(height: int = 96, width: int = 80, seed: int = 0) -> torch.Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def draw_recipes(name: str, count: int, seed: int = 0) -> list[Recipe]:
    values = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{name}.yaml"))
    space = Space(**{key: value for key, value in values.items() if key != "_target_"})
    rng = np.random.default_rng(seed)
    return [space.draw(rng) for _ in range(count)]


def operator_id(operator: object) -> str:
    return repr(operator)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# One image, a batch, an array


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


CAMERA_OPERATORS = [
    MotionBlur(12, 0.3, bend_px=1.0),
    SpatiallyVaryingBlur("aniso", 21, 3.0, 0.3, sigma_y=1.0, theta_rad=0.2),
    SensorNoise.at_iso(1600, red_gain=2.0),
    Webp(70),
]


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


class _DegradedDataset(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, number: int) -> np.ndarray:
        return draw_recipes("paper", 4)[number].apply_array(to_bytes(make_image(seed=number)))


def test_workers_equal_main_process():
    here = [_DegradedDataset()[number] for number in range(4)]
    for batch, expected in zip(DataLoader(_DegradedDataset(), batch_size=None, num_workers=2), here, strict=True):
        assert np.array_equal(batch, expected)


# Bad input


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


# The ways to compute one operator


@dataclass(frozen=True)
class AsymmetricKernel:
    """A kernel without symmetry, as a shaken hand has."""

    size: int = 9

    def kernel(self) -> torch.Tensor:
        kernel = torch.rand(self.size, self.size, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        return kernel / kernel.sum()


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


SIZES = [((96, 80), (401, 333)), ((401, 333), (97, 80)), ((64, 64), (1, 2)), ((1, 3), (9, 5)), ((65, 33), (64, 34))]


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


def test_libjpeg_refuses_gradients():
    with pytest.raises(ValueError, match=r"Jpeg.codec is 'libjpeg'.*'differentiable'"):
        Recipe((Jpeg(50),)).apply(make_image().requires_grad_(), gradients=True)


# JPEG


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


@pytest.fixture(scope="module")
def diffjpeg():
    """basicsr's class."""
    old = types.ModuleType("torchvision.transforms.functional_tensor")  # basicsr 1.4.2 imports it; it was removed
    old.rgb_to_grayscale = transforms.rgb_to_grayscale
    sys.modules.setdefault(old.__name__, old)
    pytest.importorskip("basicsr", reason="the witness comes with the extra `degrade`")
    return importlib.import_module("basicsr.utils.diffjpeg").DiffJPEG


@pytest.mark.parametrize("quality", [5, 30, 49, 50, 75, 95])
def test_differentiable_jpeg_matches_basicsr(quality, photo, diffjpeg):
    image = to_tensor(photo[:160, :112])
    # basicsr's tables are turned over their diagonal; so is an image whose sides are exchanged.
    with torch.no_grad():
        expected = diffjpeg(differentiable=True)(image.transpose(1, 2)[None].contiguous(), quality=quality)[0]
    difference = (Recipe((Jpeg(quality, "differentiable"),)).apply(image) - expected.transpose(1, 2)).abs()
    assert (difference > 1e-4).float().mean() < 1e-3  # a value at the edge may round the other way
    assert difference.mean() < 1e-5


@pytest.mark.parametrize("quality", [5.5, 30, 50, 75.25, 99.9])
def test_diffjpeg_matches_basicsr(quality, photo, diffjpeg):
    image = to_tensor(photo[:150, :109])
    with torch.no_grad():
        expected = diffjpeg(differentiable=False)(image[None], quality=quality)[0]
    recipe = Recipe((Jpeg(quality, "diffjpeg"),))
    difference = (recipe.apply(image) - expected).abs()
    assert (difference > 1e-4).float().mean() < 1e-3 and difference.mean() < 1e-5
    upright = Recipe((Jpeg(round(quality), "differentiable"),)).apply(image)
    assert (upright - expected).abs().mean() > 1e-3
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_only_diffjpeg_draws_float_quality():
    for codec, kind in (("diffjpeg", float), ("differentiable", int), ("libjpeg", int)):
        space, rng = Space(jpeg_codec=codec), np.random.default_rng(0)
        draw_recipes = [o for _ in range(20) for o in space.draw(rng).operators if isinstance(o, Jpeg)]
        assert {(type(o.quality), o.codec) for o in draw_recipes} == {(kind, codec)}
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


# Noise


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
    make_image = torch.full((512, 512), level / 255)
    make_image[:1, :256] = torch.arange(256) / 255  # all levels are used: white is 256 photons
    centred, photons = noise.shot(make_image, seed=level)
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


# A GPU


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
