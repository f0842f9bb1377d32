import doctest
import hashlib
import subprocess
import sys

import hydra.utils
import numpy as np
import pytest
import torch
from degradation_batches import load_space, make_image
from skimage.data import astronaut

from face2scene import degradation
from face2scene.common.reproducibility import REPOSITORY
from face2scene.degradation import (
    PRESETS,
    Bank,
    Blur,
    GaussianNoise,
    Jpeg,
    Mixture,
    PoissonNoise,
    Recipe,
    Resize,
    RestoreSize,
    Sinc,
    Space,
)
from face2scene.degradation.functional import kernels
from face2scene.degradation.recipe import _generator
from face2scene.image_io.arrays import to_tensor

pytestmark = pytest.mark.numerics

CONFIGS = sorted((REPOSITORY / "configs" / "degradation").glob("*.yaml"))
ALL_OPERATORS = Recipe(
    (
        Blur("generalized_aniso", 9, sigma_x=1.7, sigma_y=0.4, theta_rad=-0.3, beta=0.7),
        Resize(0.61, "area"),
        PoissonNoise(1.1, grey=True),
        GaussianNoise(7.3),
        Jpeg(41),
        Sinc(1.9, 7),
        RestoreSize(),
    ),
    noise_seed=5,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_none_space_returns_copy():
    image = make_image()
    degraded = load_space("none").draw(rng()).apply(image)
    assert torch.equal(degraded, image)
    assert degraded.data_ptr() != image.data_ptr()  # writing to the result must not reach the input


def test_zero_strength_is_identity():
    recipe = Recipe((Blur("iso", 21, 0), Resize(1), GaussianNoise(0), PoissonNoise(0), RestoreSize()))
    assert torch.equal(recipe.apply(make_image()), make_image())


def test_input_is_not_modified():
    image = make_image()
    ALL_OPERATORS.apply(image)
    assert torch.equal(image, make_image())


@pytest.mark.parametrize("size", [7, 21, 41])
@pytest.mark.parametrize("family", kernels.FAMILIES)
def test_kernels_are_normalized_and_symmetric(family, size):
    kernel = kernels.bivariate(family, size, 1.3, 1.3 if kernels.is_round(family) else 2.9, 0.7, 1.4)
    assert kernel.sum().item() == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(kernel, kernel.flip(0, 1))
    assert kernels.trim(kernel).sum().item() == pytest.approx(1, abs=1e-12)


def test_gaussian_kernel_covariance():
    kernel = kernels.bivariate("aniso", 41, sigma_x=4.0, sigma_y=1.5, theta_rad=0.5)
    axis = torch.arange(41, dtype=torch.float64) - 20
    xx, yy = (kernel * axis**2).sum(), (kernel * axis[:, None] ** 2).sum()
    xy = (kernel * axis * axis[:, None]).sum()
    covariance = torch.tensor([[xx, xy], [xy, yy]])
    turn = torch.tensor([[np.cos(0.5), -np.sin(0.5)], [np.sin(0.5), np.cos(0.5)]])
    expected = turn @ torch.diag(torch.tensor([16.0, 2.25], dtype=torch.float64)) @ turn.T
    torch.testing.assert_close(covariance, expected, rtol=1e-3, atol=1e-3)


def test_sinc_kernel_frequency_response():
    kernel = kernels.low_pass(101, cutoff_rad=1.0)
    gain = torch.fft.rfft2(kernel, s=(512, 512)).abs()[0]  # along one axis, 512 steps a turn
    frequency = torch.arange(len(gain)) * 2 * torch.pi / 512
    assert kernel.sum().item() == pytest.approx(1, abs=1e-12)
    assert gain[frequency < 0.9].min() > 0.9
    assert gain[frequency > 1.1].max() < 0.1


def test_blur_equals_direct_sum():
    image = make_image(40, 53)
    for size, sigma in ((7, 0.9), (21, 4.0)):
        blur = Blur("aniso", size, sigma_x=sigma, sigma_y=sigma / 2, theta_rad=1.0)
        padded = torch.nn.functional.pad(image[None].double(), (size // 2,) * 4, mode="reflect")
        patches = padded[0].unfold(1, size, 1).unfold(2, size, 1)
        plain = (patches * blur.kernel()).sum(dim=(-2, -1)).float()
        torch.testing.assert_close(Recipe((blur,)).apply(image), plain, rtol=0, atol=2e-6)


def test_recipe_json_round_trip():
    back = Recipe.from_json(ALL_OPERATORS.to_json())
    assert back == ALL_OPERATORS and hash(back) == hash(ALL_OPERATORS) and back.key == ALL_OPERATORS.key
    assert back.noise_seed == 5
    assert torch.equal(back.apply(make_image()), ALL_OPERATORS.apply(make_image()))


def test_drawn_recipes_json_round_trip():
    for name in ("paper", "tiny", "severe"):
        generator = rng(1)
        for _ in range(50):
            recipe = load_space(name).draw(generator)
            assert Recipe.from_json(recipe.to_json()) == recipe


def test_recipe_is_bitwise_across_processes():
    program = (
        "import sys, torch, hashlib; from face2scene.degradation import Recipe;"
        "torch.set_num_threads(1); r = Recipe.from_json(sys.argv[1]);"
        "x = torch.rand(3, 96, 80, generator=torch.Generator().manual_seed(0));"
        "[r.with_noise_seed(n).apply(torch.rand(3, 50, 70)) for n in range(3)];"
        "print(hashlib.sha256(r.apply(x).numpy().tobytes()).hexdigest())"
    )
    other = subprocess.run(
        [sys.executable, "-c", program, ALL_OPERATORS.to_json()],
        capture_output=True, text=True, check=True, cwd=REPOSITORY,
    ).stdout.strip()  # fmt: skip
    assert hashlib.sha256(ALL_OPERATORS.apply(make_image()).numpy().tobytes()).hexdigest() == other


def test_noise_seed_changes_only_noise():
    other = ALL_OPERATORS.with_noise_seed(6)
    assert other == ALL_OPERATORS and hash(other) == hash(ALL_OPERATORS) and other.key == ALL_OPERATORS.key
    first, second = ALL_OPERATORS.apply(make_image()), other.apply(make_image())
    assert not torch.equal(first, second)
    assert (first - second).mean().abs() < 0.005
    quiet = Recipe((Blur("iso", 9, 2.0), Jpeg(20)))
    assert torch.equal(quiet.apply(make_image()), quiet.with_noise_seed(9).apply(make_image()))


def test_package_doctest():
    result = doctest.testmod(degradation)
    assert result.attempted == 8 and result.failed == 0


def test_noise_seed_derivation_is_fixed():
    assert _generator(noise_seed=5, position=2).initial_seed() == 8510927081641311153


def test_recipe_key_follows_parameters():
    assert Recipe((Jpeg(50),)) != Recipe((Jpeg(51),))
    assert Recipe((Jpeg(50),)).key != Recipe((Jpeg(51),)).key


def test_gaussian_noise_std_and_correlation():
    grey = torch.full((3, 200, 200), 0.5)
    colour = Recipe((GaussianNoise(10),)).apply(grey) - grey
    assert colour.std().item() == pytest.approx(10 / 255, rel=0.02)
    assert abs(colour.mean().item()) < 0.001
    assert torch.corrcoef(colour.flatten(1))[0, 1].abs() < 0.02
    same = Recipe((GaussianNoise(10, grey=True),)).apply(grey) - grey
    assert torch.equal(same[0], same[1]) and same.std().item() == pytest.approx(10 / 255, rel=0.02)


def test_poisson_variance_follows_intensity():
    # All 256 levels occur, so white counts 256 photons: the variance is scale^2 * intensity / 256.
    ramp = (torch.arange(256) / 255).expand(3, 400, 256).clone()
    noise = Recipe((PoissonNoise(0.8),)).apply(ramp) - ramp
    for level in (64, 128, 192):
        assert noise[..., level].var().item() == pytest.approx(0.64 * level / 255 / 256, rel=0.12)
        assert abs(noise[..., level].mean().item()) < 0.004
    grey = Recipe((PoissonNoise(0.8, grey=True),)).apply(ramp) - ramp
    torch.testing.assert_close(grey[0, :, 64:192], grey[1, :, 64:192], rtol=0, atol=1e-6)


def test_jpeg_error_grows_as_quality_drops():
    image = to_tensor(astronaut())
    errors = [(Recipe((Jpeg(q),)).apply(image) - image).square().mean().item() for q in (95, 50, 5)]
    assert errors == sorted(errors) and errors[0] > 0


@pytest.mark.parametrize("size", [(33, 47), (64, 65), (127, 90)])
@pytest.mark.parametrize("name", ["tiny", "mild", "none"])
def test_odd_sizes_are_preserved(name, size):
    generator = rng(2)
    for _ in range(12):
        degraded = load_space(name).draw(generator).apply(make_image(*size))
        assert degraded.shape == (3, *size)
        assert degraded.isfinite().all() and degraded.min() >= 0 and degraded.max() <= 1


def test_paper_space_can_return_low_res():
    generator = rng(3)
    for _ in range(20):
        recipe = load_space("paper").draw(generator)
        if recipe.operators:
            assert recipe.apply(make_image(256, 201)).shape == (3, 256, 201)
            assert recipe.apply(make_image(256, 201), keep_size=False).shape == (3, 64, 50)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.rand(1, 8, 8), r"\(3, H, W\), got \(1, 8, 8\)"),
        (torch.rand(2, 3, 8, 8), r"\(3, H, W\)"),
        (torch.rand(3, 8, 8).double(), "float32"),
        (torch.full((3, 8, 8), float("nan")), "nan"),
        (torch.full((3, 8, 8), 255.0), r"\[0, 1\], got 255"),
        (np.zeros((8, 8, 3)), "got ndarray"),
    ],
)
def test_invalid_image_is_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        Recipe().apply(bad)


def test_image_smaller_than_kernel_is_refused():
    with pytest.raises(ValueError, match=r"Blur.size is 21, but the image is 8 x 8\s.*at most 15"):
        Recipe((Blur("iso", 21, 2.0),)).apply(make_image(8, 8))


def test_smaller_result_needs_keep_size_false():
    with pytest.raises(ValueError, match="keep_size=False"):
        Recipe((Resize(0.5),)).apply(make_image())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Jpeg(101), "Jpeg.quality is 101: it must be a whole number from 1 to 100"),
        (lambda: Jpeg(50.5), "Jpeg.quality is 50.5"),
        (lambda: Jpeg(50, "turbo"), "Jpeg.codec is 'turbo': it must be one of libjpeg, differentiable, diffjpeg"),
        (lambda: GaussianNoise(-1), "GaussianNoise.sigma is -1: it must be a number from 0 to 255"),
        (lambda: GaussianNoise(float("nan")), "GaussianNoise.sigma is nan"),
        (lambda: PoissonNoise("much"), "PoissonNoise.scale is 'much'"),
        (lambda: Blur("iso", 8, 1.0), "Blur.size is 8: it must be odd"),
        (lambda: Blur("round", 7, 1.0), "Blur.family is 'round': it must be one of iso"),
        (lambda: Blur("iso", 7, 1.0, sigma_y=2.0), "Blur.sigma_y is 2.0: it must be left out"),
        (lambda: Blur("aniso", 7, 1.0), "Blur.sigma_y is None"),
        (lambda: Sinc(4.0, 7), "Sinc.cutoff_rad is 4.0"),
        (lambda: Resize(0), "Resize.factor is 0"),
        (lambda: Resize(0.5, "lanczos"), "Resize.mode is 'lanczos'"),
        (lambda: Recipe((), noise_seed=-1), "Recipe.noise_seed is -1"),
        (lambda: Space(jpeg_quality=(60, 101)), "Space.jpeg_quality is .* from 1 to 100"),
        (lambda: Space(blur_sigma=(2, 1)), "Space.blur_sigma is .* in order"),
        (lambda: Space(sinc_prob=1.5), "Space.sinc_prob is 1.5"),
        (lambda: Space(kernel_probs={"square": 1.0}), "Space.kernel_probs is .*square"),
        (lambda: Space(kernel_sizes=(8, 21)), "Space.kernel_sizes is .* odd"),
    ],
)
def test_out_of_range_values_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ALL_OPERATORS.to_json()[:40], "cut"),
        (ALL_OPERATORS.to_json().replace('"schema": 1', '"schema": 9'), "schema version 9"),
        (ALL_OPERATORS.to_json().replace('"Jpeg"', '"Gif"'), "Unknown operator 'Gif'"),
        (ALL_OPERATORS.to_json().replace('"quality"', '"qualty"'), r"unknown \['qualty'\], missing \['quality'"),
        ("[]", "mapping"),
    ],
)
def test_invalid_recipe_json_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        Recipe.from_json(text)


def test_empty_space_must_be_explicit():
    off = {name: 0 for name in ("blur_prob", "noise_prob", "jpeg_prob", "blur_prob2", "noise_prob2")}
    keep = (0, 0, 1)
    with pytest.raises(ValueError, match="no_degradation_prob=1"):
        Space(scale=1, jpeg_prob2=0, final_sinc_prob=0, resize_probs=keep, resize_probs2=keep, **off)


def test_draws_follow_the_generator():
    first, second = rng(4), rng(4)
    drawn = [load_space("paper").draw(first) for _ in range(5)]
    assert drawn == [load_space("paper").draw(second) for _ in range(5)]
    assert len({recipe.key for recipe in drawn}) == 5


def test_paper_space_covers_its_ranges():
    generator, s = rng(5), load_space("paper")
    sigmas, qualities, sizes, families, sincs = [], [], set(), set(), 0
    for _ in range(600):
        operators = s.draw(generator).operators
        if not operators:
            continue
        first = operators[0]
        if isinstance(first, Blur):
            sigmas.append(first.sigma_x)
            families.add(first.family)
        sincs += isinstance(first, Sinc)
        sizes.add(first.size)
        jpegs = [o.quality for o in operators if isinstance(o, Jpeg)]
        assert len(jpegs) == 2 and 60 <= jpegs[0] <= 95 and 60 <= jpegs[1] <= 100
        qualities.append(jpegs[0])
        assert sum(isinstance(o, GaussianNoise | PoissonNoise) for o in operators) == 2
        for o in operators:
            assert not isinstance(o, GaussianNoise) or 1 <= o.sigma <= 15
            assert not isinstance(o, PoissonNoise) or 0.05 <= o.scale <= 2
            assert not isinstance(o, Resize) or 0.6 / 4 <= o.factor <= 1.5
        assert isinstance(operators[-1], RestoreSize)
    assert 0.2 <= min(sigmas) < 0.22 and 1.48 < max(sigmas) <= 1.5
    assert (min(qualities), max(qualities)) == (60, 95)
    assert sizes == set(range(7, 22, 2)) and families == set(kernels.FAMILIES)
    assert 0.06 < sincs / 600 < 0.14


def test_tiny_space_is_never_empty():
    generator, s = rng(6), load_space("tiny")
    kinds = [tuple(type(o).__name__ for o in s.draw(generator).operators) for _ in range(300)]
    assert {("Blur",), ("GaussianNoise",), ("PoissonNoise",), ("Jpeg",)} <= set(kinds)
    assert () not in kinds and len(set(kinds)) > 12


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_is_a_documented_space(path):
    with hydra.initialize_config_dir(str(path.parent), version_base="1.3"):
        config = hydra.compose(path.stem)
    assert isinstance(hydra.utils.instantiate(config, _convert_="all"), Space | Mixture | Bank)
    assert path.read_text().startswith("# ")


def test_shipped_configs_exist():
    assert {path.stem for path in CONFIGS} >= {"paper", "mild", "severe", "none", "tiny"}


def test_presets_differ_from_each_other():
    image = to_tensor(astronaut())
    degraded = {name: recipe.apply(image) for name, recipe in PRESETS.items()}
    assert set(degraded) == {"d1", "d2", "d3", "d4"}
    names = sorted(degraded)
    for i, name in enumerate(names):
        assert degraded[name].shape == image.shape and degraded[name].isfinite().all()
        for other in names[i + 1 :]:
            assert (degraded[name] - degraded[other]).abs().mean() > 0.01
    error = {name: (degraded[name] - image).square().mean().item() for name in names}
    assert min(error, key=error.get) == "d3" and error["d3"] < 1e-3  # "almost-clean identity"
    assert Recipe.from_json(PRESETS["d4"].to_json()) == PRESETS["d4"]


def test_deeply_nested_text_is_no_recipe():
    with pytest.raises(ValueError, match="not whole JSON"):
        Recipe.from_json("[" * 5000)
