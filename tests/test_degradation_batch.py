"""Degradations in bulk: batches, loader workers, threads and gradients give what one image alone gets."""

import importlib
import io
import math
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from scipy import stats
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.transforms import functional as transforms

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

CONFIGS = Path(__file__).parents[1] / "configs" / "degradation"
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


def drawn(name: str, count: int, seed: int = 0) -> list[Recipe]:
    values = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{name}.yaml"))
    space = Space(**{key: value for key, value in values.items() if key != "_target_"})
    rng = np.random.default_rng(seed)
    return [space.draw(rng) for _ in range(count)]


def name_of(operator: object) -> str:
    return repr(operator)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# One image, a batch, an array


def test_each_picture_of_a_batch_gets_what_its_own_recipe_gives_it_alone():
    recipes = [*drawn("paper", 3), Recipe()]
    images = torch.stack([make_image(seed=n) for n in range(4)])
    together = apply_batch(images, recipes)
    for n in (2, 0, 3, 1):
        assert torch.equal(together[n], recipes[n].apply(images[n]))
    assert torch.equal(apply_batch(images.flip(0), recipes[::-1]), together.flip(0))
    assert torch.equal(images[0], make_image(seed=0))  # left as they were
    assert apply_batch(images[:0], []).shape == (0, 3, 96, 80)


def test_a_batch_of_one_operator_hands_out_the_small_pictures_too():
    small = apply_batch(torch.stack([make_image(), make_image()]), drawn("paper", 2), keep_size=False)
    assert small.shape == (2, 3, 24, 20)


CAMERA = [
    MotionBlur(12, 0.3, bend_px=1.0),
    SpatiallyVaryingBlur("aniso", 21, 3.0, 0.3, sigma_y=1.0, theta_rad=0.2),
    SensorNoise.at_iso(1600, red_gain=2.0),
    Webp(70),
]


def test_a_number_of_threads_changes_no_byte_and_stays_what_it_was(threads):
    generator = np.random.default_rng(1)
    each = [Recipe((operator, RestoreSize()), noise_seed=3) for operator in [*OPERATORS, *CAMERA]]
    for recipe in [*each, *drawn("paper", 4), *drawn("severe", 2), *drawn("mild", 2)]:
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


def test_a_large_picture_gives_the_bytes_of_memory_in_small_pages(monkeypatch):
    image, recipe = make_image(150, 170), drawn("paper", 1)[0]
    usual = recipe.apply(image)
    monkeypatch.setattr(banded, "LARGE", 1)
    assert torch.equal(recipe.apply(image), usual)
    assert banded.empty_aligned(3, 7).data_ptr() % (4 * banded.ALIGNED) == 0


def test_where_in_memory_a_picture_lies_changes_no_byte():
    image = make_image(101, 97)
    elsewhere = torch.empty(image.numel() + 5)[5:].view(image.shape).copy_(image)
    channels_last = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    for recipe in drawn("paper", 4, seed=2):
        assert torch.equal(recipe.apply(elsewhere), recipe.apply(image))
        assert torch.equal(recipe.apply(channels_last), recipe.apply(image))


def test_an_array_gets_what_the_same_tensor_gets(photo):
    for recipe in drawn("severe", 3):
        expected = recipe.apply(to_tensor(photo[:200, :180]))
        floats = recipe.apply_array(photo[:200, :180])
        assert floats.dtype == np.float32 and np.array_equal(floats, to_array(expected))
        assert np.array_equal(recipe.apply_array(photo[:200, :180].astype(np.float64)), floats)
        whole = recipe.apply_array(to_bytes(photo[:200, :180]))  # this photo has 8 bits: nothing is lost
        assert whole.dtype == np.uint8 and np.array_equal(whole, to_bytes(expected))
    assert Recipe((Resize(0.5), RestoreSize())).apply_array(photo, keep_size=False).shape == (256, 256, 3)


class _Loaded(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, number: int) -> np.ndarray:
        return drawn("paper", 4)[number].apply_array(to_bytes(make_image(seed=number)))


def test_loader_workers_give_the_bytes_of_the_main_process():
    here = [_Loaded()[number] for number in range(4)]
    for batch, expected in zip(DataLoader(_Loaded(), batch_size=None, num_workers=2), here, strict=True):
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
def test_what_is_no_batch_is_refused(images, recipes, message):
    with pytest.raises(ValueError, match=message):
        apply_batch(images, recipes)


def test_a_batch_whose_results_differ_in_size_is_refused():
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
def test_what_is_no_array_picture_is_refused(array, message):
    with pytest.raises(ValueError, match=message):
        Recipe().apply_array(array)


# The ways to compute one operator


@dataclass(frozen=True)
class Lopsided:
    """A kernel without symmetry, as a shaken hand has."""

    size: int = 9

    def kernel(self) -> torch.Tensor:
        kernel = torch.rand(self.size, self.size, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        return kernel / kernel.sum()


@pytest.mark.parametrize("operator", [*OPERATORS[:4], Lopsided()], ids=name_of)
def test_every_way_to_convolve_gives_the_same(operator, monkeypatch):
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
    convolve._bands.cache_clear()
    ways["separable"] = convolve.convolve(image, operator)
    convolve._factors.cache_clear()
    convolve._bands.cache_clear()
    expected = convolve.plain(image.double(), kernel).float()
    for way, blurred in ways.items():
        torch.testing.assert_close(blurred, expected, rtol=0, atol=2e-6, msg=lambda text, way=way: f"{way}: {text}")


@pytest.mark.parametrize("sizes", [((150, 131), (61, 90)), ((64, 80), (97, 111)), ((40, 30), (3, 2))])
@pytest.mark.parametrize(("mode", "antialias"), [(m, a) for m in resize.MODES for a in (False, True)])
def test_a_blur_and_the_resize_after_it_are_one_step_or_two(mode, antialias, sizes):
    image, blur = make_image(*sizes[0]), Blur("iso", 13, sigma_x=1.2)
    at_once = convolve.convolve_and_resize(image, blur, sizes[1], mode, antialias)
    in_turn = resize.resize(convolve.convolve(image, blur), sizes[1], mode, antialias)
    torch.testing.assert_close(at_once, in_turn, rtol=0, atol=2e-6)
    with pytest.raises(ValueError, match=r"Blur\.size is 13, but the image is 6 x 6"):
        convolve.convolve_and_resize(make_image(6, 6), blur, sizes[1], mode, antialias)
    turned = Blur("aniso", 13, 2.0, 0.6, theta_rad=0.7)  # not separable
    assert convolve.convolve_and_resize(image, turned, sizes[1], mode, antialias) is None


def test_a_kernel_without_symmetry_smears_a_point_into_itself():
    point = torch.zeros(3, 31, 31)
    point[:, 15, 15] = 1
    smeared = convolve.convolve(point, Lopsided())[0, 11:20, 11:20]
    torch.testing.assert_close(smeared.double(), Lopsided().kernel(), rtol=0, atol=1e-6)


SIZES = [((96, 80), (401, 333)), ((401, 333), (97, 80)), ((64, 64), (1, 2)), ((1, 3), (9, 5)), ((65, 33), (64, 34))]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(("mode", "antialias"), [(m, a) for m in resize.MODES for a in (False, True)])
def test_resizing_is_torchs(mode, antialias, sizes):
    image = make_image(*sizes[0])
    options = {} if mode == "area" else {"align_corners": False, "antialias": antialias}
    expected = F.interpolate(image[None], size=sizes[1], mode=mode, **options)[0].clamp(0, 1)
    torch.testing.assert_close(resize.resize(image, sizes[1], mode, antialias), expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize("factor", [0.3, 0.477, 0.999, 1.37])
@pytest.mark.parametrize("mode", resize.MODES)
@pytest.mark.parametrize("gradients", [False, True])
def test_a_resize_by_factor_is_torchs_own(mode, factor, gradients):
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


@pytest.mark.parametrize("operator", OPERATORS, ids=name_of)
def test_gradients_flow_on_request_and_change_the_picture_by_rounding_only(operator):
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


def test_gradients_flow_through_a_batch_to_each_picture():
    images = torch.stack([make_image(), make_image(seed=1)]).requires_grad_()
    recipes = [Recipe((OPERATORS[0], Jpeg(70, "differentiable"))), Recipe((OPERATORS[4], RestoreSize()))]
    degraded = apply_batch(images, recipes, gradients=True)
    (gradient,) = torch.autograd.grad(degraded[1].sum(), images)
    assert gradient[1].abs().sum() > 0 and not gradient[0].any()
    assert not apply_batch(images, recipes).requires_grad


def test_a_real_codec_refuses_gradients_and_says_what_to_do():
    with pytest.raises(ValueError, match=r"Jpeg.codec is 'libjpeg'.*'differentiable'"):
        Recipe((Jpeg(50),)).apply(make_image().requires_grad_(), gradients=True)


# JPEG


@pytest.mark.parametrize("quality", [1, 30, 75, 95, 100])
def test_the_real_jpeg_is_pillows_at_the_same_quality_and_subsampling(quality, photo):
    for image in (photo[:131, :97], to_array(make_image(64, 67))):  # a photo, and noise that hardly compresses
        file = io.BytesIO()
        Image.fromarray(to_bytes(image)).save(file, "JPEG", quality=quality, subsampling="4:2:0")
        expected = np.asarray(Image.open(file))
        assert np.array_equal(to_bytes(Recipe((Jpeg(quality),)).apply_array(image)), expected)


def test_a_large_picture_goes_through_the_codec_in_one_piece(monkeypatch, photo):
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
def test_the_differentiable_jpeg_is_basicsrs_with_upright_tables(quality, photo, diffjpeg):
    image = to_tensor(photo[:160, :112])
    # basicsr's tables are turned over their diagonal; so is an image whose sides are exchanged.
    with torch.no_grad():
        expected = diffjpeg(differentiable=True)(image.transpose(1, 2)[None].contiguous(), quality=quality)[0]
    difference = (Recipe((Jpeg(quality, "differentiable"),)).apply(image) - expected.transpose(1, 2)).abs()
    assert (difference > 1e-4).float().mean() < 1e-3  # a value at the edge may round the other way
    assert difference.mean() < 1e-5


@pytest.mark.parametrize("quality", [5.5, 30, 50, 75.25, 99.9])
def test_diffjpeg_is_basicsrs_with_its_border_and_tables(quality, photo, diffjpeg):
    image = to_tensor(photo[:150, :109])
    with torch.no_grad():
        expected = diffjpeg(differentiable=False)(image[None], quality=quality)[0]
    recipe = Recipe((Jpeg(quality, "diffjpeg"),))
    difference = (recipe.apply(image) - expected).abs()
    assert (difference > 1e-4).float().mean() < 1e-3 and difference.mean() < 1e-5
    upright = Recipe((Jpeg(round(quality), "differentiable"),)).apply(image)
    assert (upright - expected).abs().mean() > 1e-3
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_a_space_draws_real_qualities_for_diffjpeg_alone():
    for codec, kind in (("diffjpeg", float), ("differentiable", int), ("libjpeg", int)):
        space, rng = Space(jpeg_codec=codec), np.random.default_rng(0)
        drawn = [o for _ in range(20) for o in space.draw(rng).operators if isinstance(o, Jpeg)]
        assert {(type(o.quality), o.codec) for o in drawn} == {(kind, codec)}
    with pytest.raises(ValueError, match=r"Space\.jpeg_codec is 'turbo': it must be one of libjpeg"):
        Space(jpeg_codec="turbo")


@pytest.mark.parametrize("quality", [10, 50, 90])
def test_the_differentiable_jpeg_is_near_the_real_one(quality, photo):
    image = to_tensor(photo[:200, 100:300])
    real, formula = (Recipe((Jpeg(quality, c),)).apply(image) for c in jpeg.CODECS[:2])
    degradation = (real - image).square().mean()
    assert (formula - real).square().mean() < 0.25 * degradation
    assert (formula - image).square().mean() / degradation == pytest.approx(1, abs=0.25)


def test_the_differentiable_jpeg_takes_any_size_and_the_best_quality():
    image = make_image(33, 21)
    best = Recipe((Jpeg(100, "differentiable"),)).apply(image)
    assert best.shape == image.shape and best.isfinite().all()
    flat = torch.full((3, 33, 21), 0.5)  # the padding must not darken the border
    torch.testing.assert_close(Recipe((Jpeg(30, "differentiable"),)).apply(flat), flat, rtol=0, atol=0.02)


# Noise


def test_random_bits_are_splitmix64s():
    words = [word % 2**64 for word in noise.random_words(1234567, 0, 3).tolist()]
    assert words == [6457827717110365317, 3203168211198807973, 9817491932198370423]  # its published test
    assert torch.equal(noise.random_words(9, 100, 50), noise.random_words(9, 0, 150)[100:])


def test_the_size_of_a_chunk_changes_no_value(monkeypatch):
    expected = noise.gaussian(3, 9999), noise.shot(make_image(), 3)[0]
    monkeypatch.setattr(noise, "CHUNK", 250)
    assert torch.equal(noise.gaussian(3, 9999), expected[0])
    assert torch.equal(noise.shot(make_image(), 3)[0], expected[1])


def test_gaussian_noise_is_normal_out_to_its_tails():
    values = noise.gaussian(7, 4_000_000)
    assert stats.kstest(values[:500_000].numpy(), "norm").pvalue > 0.01
    for edge in (3.0, 4.0, 4.5):
        found, expected = int((values.abs() > edge).sum()), 4_000_000 * 2 * stats.norm.sf(edge)
        assert abs(found - expected) < 4 * math.sqrt(expected)
    neighbours = torch.corrcoef(torch.stack((values[:-1], values[1:])))[0, 1]
    other_seed = torch.corrcoef(torch.stack((values[:500_000], noise.gaussian(8, 500_000))))[0, 1]
    assert abs(neighbours) < 0.002 and abs(other_seed) < 0.006


@pytest.mark.parametrize("photons", [1, 16, 256])
def test_the_tables_of_photon_counts_hold_poissons_probabilities(photons):
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
def test_photon_counts_are_poissons_by_chi_square(level):
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
@pytest.mark.parametrize("operator", [*OPERATORS, Jpeg(60)], ids=name_of)
def test_a_gpu_agrees_with_the_cpu_within_the_stated_tolerance(operator):
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
def test_a_gpu_draws_the_bits_of_the_cpu_and_agrees_in_the_mean_over_whole_recipes():
    assert torch.equal(noise.gaussian(5, 100_001, "cuda").cpu(), noise.gaussian(5, 100_001))
    assert torch.equal(noise.shot(make_image().cuda(), 5)[0].cpu(), noise.shot(make_image(), 5)[0])
    recipes, images = drawn("paper", 4), torch.stack([make_image(256, 256, seed=n) for n in range(4)])
    there, here = apply_batch(images.cuda(), recipes), apply_batch(images, recipes)
    assert there.is_cuda and (there.cpu() - here).abs().mean() < 1e-3
