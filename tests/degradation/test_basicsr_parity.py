"""The degradations against basicsr 1.4.2, against statistics, and against answers known by hand."""

import math

import hydra.utils
import numpy as np
import pytest
import torch
from basicsr_compat import degradations as basicsr
from basicsr_compat import filter2D
from omegaconf import OmegaConf
from scipy import stats
from skimage.data import astronaut

from face2scene.common.reproducibility import REPOSITORY
from face2scene.degradation import Blur, GaussianNoise, Jpeg, PoissonNoise, Recipe, Resize, RestoreSize, Sinc, Space
from face2scene.degradation.functional import kernels
from face2scene.image_io.arrays import to_tensor

CONFIGS = REPOSITORY / "configs" / "degradation"
BASICSR_KERNELS = {
    "iso": basicsr.bivariate_Gaussian,
    "aniso": basicsr.bivariate_Gaussian,
    "generalized_iso": basicsr.bivariate_generalized_Gaussian,
    "generalized_aniso": basicsr.bivariate_generalized_Gaussian,
    "plateau_iso": basicsr.bivariate_plateau,
    "plateau_aniso": basicsr.bivariate_plateau,
}


def random_blur(family: str, size: int, rng: np.random.Generator) -> Blur:
    values = {"sigma_x": rng.uniform(0.2, 4)}
    if not kernels.is_round(family):
        values |= {"sigma_y": rng.uniform(0.2, 4), "theta_rad": rng.uniform(-math.pi, math.pi)}
    if kernels.has_shape(family):
        values["beta"] = rng.uniform(0.5, 4)
    return Blur(family, size, **values)


def basicsr_kernel(blur: Blur) -> np.ndarray:
    shape = [blur.beta] if kernels.has_shape(blur.family) else []
    isotropic = kernels.is_round(blur.family)
    values = (blur.sigma_x, blur.sigma_y or blur.sigma_x, blur.theta_rad or 0.0)
    return BASICSR_KERNELS[blur.family](blur.size, *values, *shape, isotropic=isotropic)


# Kernels


@pytest.mark.numerics
@pytest.mark.parametrize("family", kernels.FAMILIES)
def test_kernels_match_basicsr(family):
    rng = np.random.default_rng(0)
    for size in range(7, 22, 2):
        for _ in range(12):
            blur = random_blur(family, size, rng)
            np.testing.assert_allclose(blur.kernel().numpy(), basicsr_kernel(blur), rtol=0, atol=1e-6)


def test_mirrored_kernel_does_not_match():
    # Beyond the tolerance: the mirrored direction is far away, so agreement above is not for want of elongation.
    blur = Blur("aniso", 21, 4.0, 0.5, theta_rad=0.6)
    mirrored = basicsr.bivariate_Gaussian(21, 4.0, 0.5, -0.6, isotropic=False)
    assert np.abs(blur.kernel().numpy() - mirrored).max() > 0.02


@pytest.mark.numerics
def test_sinc_kernels_match_basicsr():
    for size in range(7, 22, 2):
        for cutoff in np.linspace(math.pi / 5, math.pi, 9):
            witness = basicsr.circular_lowpass_kernel(cutoff, size)
            np.testing.assert_allclose(Sinc(cutoff, size).kernel().numpy(), witness, rtol=0, atol=1e-6)


@pytest.mark.numerics
@pytest.mark.parametrize("family", [*kernels.FAMILIES, "sinc"])
def test_blur_matches_filter2d(family):
    photo = to_tensor(astronaut())[:, 60:190, 150:311]
    rng = np.random.default_rng(1)
    for size in (7, 13, 21):
        blur = Sinc(rng.uniform(1, 3), size) if family == "sinc" else random_blur(family, size, rng)
        kernel = torch.from_numpy(
            basicsr.circular_lowpass_kernel(blur.cutoff_rad, size) if family == "sinc" else basicsr_kernel(blur)
        )
        witness = filter2D(photo[None], kernel[None].float())[0].clamp(0, 1)
        torch.testing.assert_close(Recipe((blur,)).apply(photo), witness, rtol=0, atol=3e-6)


@pytest.mark.parametrize("operator", [Blur("aniso", 21, 3.0, 1.0, theta_rad=0.4), Sinc(1.2, 21)])
def test_blur_preserves_total_intensity(operator):
    point = torch.full((3, 63, 63), 0.4)
    point[:, 31, 31] = 0.9
    blurred = Recipe((operator,)).apply(point)
    assert blurred.double().sum().item() == pytest.approx(point.double().sum().item(), rel=1e-6)


@pytest.mark.parametrize("cutoff", [math.pi / 3, math.pi / 2, 2.2])
def test_sinc_filter_cutoff_on_grating(cutoff):
    place = torch.arange(257) - 128

    def contrast(frequency: float) -> float:
        grating = (0.5 + 0.4 * torch.cos(frequency * place)).expand(3, 257, 257).contiguous()
        passed = Recipe((Sinc(cutoff, 101),)).apply(grating)[0, 128] - 0.5
        return (passed * torch.cos(frequency * place))[60:197].mean().item() / 0.2

    assert contrast(0.85 * cutoff) == pytest.approx(1, abs=0.06)
    assert contrast(min(1.15 * cutoff, math.pi)) == pytest.approx(0, abs=0.06)
    assert 0.3 < contrast(cutoff) < 0.7


# Noise


def noise_of_both(kind: str, strength: float, grey: bool, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Ours and basicsr's noise (3, H, W) on one image."""
    operator = {"gaussian": GaussianNoise, "poisson": PoissonNoise}[kind](strength, grey)
    add = {"gaussian": basicsr.add_gaussian_noise_pt, "poisson": basicsr.add_poisson_noise_pt}[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        witness = add(image[None], strength, gray_noise=torch.full((1,), float(grey)))[0]
    return Recipe((operator,), noise_seed=12).apply(image) - image, witness - image


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize(
    ("kind", "strength"), [("gaussian", 4.0), ("gaussian", 15.0), ("poisson", 0.3), ("poisson", 0.6)]
)
def test_noise_moments_match_basicsr(kind, strength, grey):
    # Columns of one brightness from dark to bright, far enough from black and white not to be cut. The channels differ,
    # so that the grey Poisson noise, which counts the luminance, is seen to do so.
    levels = torch.linspace(90, 170, 81).round() / 255
    image = torch.stack([levels, levels.flip(0), levels.roll(20)])[:, None].expand(3, 1500, 81).contiguous()
    ours, witness = noise_of_both(kind, strength, grey, image)
    for channel in range(3):
        # A hundred and twenty thousand samples: two standard errors of the quotient of two variances are 1.2 %.
        assert ours[channel].var().item() == pytest.approx(witness[channel].var().item(), rel=0.02)
        assert abs(ours[channel].mean().item()) < 4 * ours[channel].std().item() / math.sqrt(ours[channel].numel())
    # Against brightness, in nine groups of columns.
    for group in range(9):
        columns = slice(9 * group, 9 * group + 9)
        quotient = ours[..., columns].var().item() / witness[..., columns].var().item()
        assert quotient == pytest.approx(1, abs=0.06)
    correlation, expected = torch.corrcoef(ours.flatten(1)), torch.corrcoef(witness.flatten(1))
    torch.testing.assert_close(correlation, expected, rtol=0, atol=0.02)
    assert (correlation > 0.99).all() if grey else (correlation.fill_diagonal_(0).abs() < 0.02).all()


@pytest.mark.parametrize("kind", ["gaussian", "poisson"])
def test_noise_distribution_matches_basicsr(kind):
    image = to_tensor(astronaut())[:, :128, :128].clamp(80 / 255, 175 / 255)  # 0.3 is half a level
    ours, witness = noise_of_both(kind, {"gaussian": 8.0, "poisson": 0.7}[kind], False, image)
    # Photon counts are whole numbers: what differs in the last float32 digit is one value, and must count as one.
    ours, witness = (noise.flatten().double().numpy().round(5) for noise in (ours, witness))
    assert stats.ks_2samp(ours, witness).pvalue > 0.001


def test_poisson_few_levels_match_basicsr():
    # Five levels: white counts eight photons, so the variance is scale^2 level / 8.
    image = (torch.tensor([0.2, 0.3, 0.4, 0.5, 0.6]) * 255).round().div(255).repeat(80)
    image = image.expand(3, 400, 400).contiguous()
    ours, witness = noise_of_both("poisson", 0.3, False, image)
    assert ours.var().item() == pytest.approx(0.09 * 0.4 / 8, rel=0.02)
    assert ours.var().item() == pytest.approx(witness.var().item(), rel=0.02)


# What a space draws

DRAWS = 3000


@pytest.fixture(scope="module")
def paper_draws() -> tuple[Space, list[tuple]]:
    space = hydra.utils.instantiate(OmegaConf.load(CONFIGS / "paper.yaml"))
    rng = np.random.default_rng(2024)
    drawn = [space.draw(rng).operators for _ in range(DRAWS)]
    return space, [operators for operators in drawn if operators]


def split_stages(operators: tuple) -> tuple[list, list]:
    """The two stages: the first one ends with its JPEG."""
    end = next(n for n, operator in enumerate(operators) if isinstance(operator, Jpeg)) + 1
    return list(operators[:end]), list(operators[end:])


def first_blur(stage: list) -> Blur | Sinc | None:
    return stage[0] if isinstance(stage[0], Blur | Sinc) else None


def uniform_p_value(values: list[float], low: float, high: float) -> float:
    assert low <= min(values) and max(values) <= high
    return stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue


def binomial_p_value(hits: int, of: int, expected: float) -> float:
    return stats.binomtest(hits, of, expected).pvalue


def test_drawn_values_are_uniform(paper_draws):
    space, drawn = paper_draws
    stages = [split_stages(operators) for operators in drawn]
    first = [o for one, _ in stages for o in one]
    second = [o for _, two in stages for o in two]
    blurs = [first_blur(one) for one, _ in stages]
    blurs2 = [first_blur(two) for _, two in stages]
    pick = lambda operators, kind, field: [getattr(o, field) for o in operators if isinstance(o, kind)]  # noqa: E731
    p_values = {
        "sigma": uniform_p_value(pick(blurs, Blur, "sigma_x"), *space.blur_sigma),
        "sigma2": uniform_p_value(pick(blurs2, Blur, "sigma_x"), *space.blur_sigma2),
        "theta": uniform_p_value([v for v in pick(blurs, Blur, "theta_rad") if v is not None], -math.pi, math.pi),
        "gaussian": uniform_p_value(pick(first, GaussianNoise, "sigma"), *space.gaussian_sigma),
        "gaussian2": uniform_p_value(pick(second, GaussianNoise, "sigma"), *space.gaussian_sigma2),
        "poisson": uniform_p_value(pick(first, PoissonNoise, "scale"), *space.poisson_scale),
        "poisson2": uniform_p_value(pick(second, PoissonNoise, "scale"), *space.poisson_scale2),
        "up": uniform_p_value([f for f in pick(first, Resize, "factor") if f > 1], 1, space.resize_range[1]),
        "down": uniform_p_value([f for f in pick(first, Resize, "factor") if f < 1], space.resize_range[0], 1),
        "cut-off": uniform_p_value(
            [b.cutoff_rad for b in blurs if isinstance(b, Sinc) and b.size < 13], math.pi / 3, math.pi
        ),
        "cut-off, large": uniform_p_value(
            [b.cutoff_rad for b in blurs if isinstance(b, Sinc) and b.size >= 13], math.pi / 5, math.pi
        ),
    }
    for name, operators, (low, high) in (("jpeg", first, space.jpeg_quality), ("jpeg2", second, space.jpeg_quality2)):
        counts = np.bincount(pick(operators, Jpeg, "quality"), minlength=high + 1)
        assert counts[:low].sum() == 0 and len(counts) == high + 1
        p_values[name] = stats.chisquare(counts[low:]).pvalue
    sizes = [blur.size for blur in blurs]
    p_values["size"] = stats.chisquare([sizes.count(size) for size in range(7, 22, 2)]).pvalue
    modes = pick([o for o in first if isinstance(o, Resize)], Resize, "mode")
    p_values["mode"] = stats.chisquare([modes.count(mode) for mode in ("area", "bilinear", "bicubic")]).pvalue
    # Fixed seeds: one of some fifteen tests below a thousandth would be a one-in-seventy accident, kept out for ever.
    assert min(p_values.values()) > 1e-3, p_values


def test_drawn_operator_probabilities(paper_draws):
    space, drawn = paper_draws
    count, stages = len(drawn), [split_stages(operators) for operators in drawn]
    blurs = [first_blur(one) for one, _ in stages]
    families = [blur.family for blur in blurs if isinstance(blur, Blur)]
    factors = [next((o.factor for o in one if isinstance(o, Resize)), 1.0) for one, _ in stages]
    noises = [next(o for o in one if isinstance(o, GaussianNoise | PoissonNoise)) for one, _ in stages]
    closings = [two[[isinstance(o, GaussianNoise | PoissonNoise) for o in two].index(True) :] for _, two in stages]
    kinds = [[type(o) for o in closing] for closing in closings]
    with_sinc = [kind for kind in kinds if Sinc in kind]  # without one and at the right size, the order has no trace
    p_values = {
        "nothing": binomial_p_value(DRAWS - count, DRAWS, space.no_degradation_prob),
        "sinc": binomial_p_value(sum(isinstance(blur, Sinc) for blur in blurs), count, space.sinc_prob),
        "blur2": binomial_p_value(sum(first_blur(two) is not None for _, two in stages), count, space.blur_prob2),
        "up": binomial_p_value(sum(f > 1 for f in factors), count, space.resize_probs[0]),
        "down": binomial_p_value(sum(f < 1 for f in factors), count, space.resize_probs[1]),
        "gaussian": binomial_p_value(sum(isinstance(n, GaussianNoise) for n in noises), count, space.gaussian_prob),
        "grey": binomial_p_value(sum(n.grey for n in noises), count, space.grey_prob),
        "order": binomial_p_value(sum(kind.index(Jpeg) < kind.index(Sinc) for kind in with_sinc), len(with_sinc), 0.5),
        "final sinc": binomial_p_value(len(with_sinc), count, space.final_sinc_prob),
        "families": stats.chisquare(
            [families.count(family) for family in space.kernel_probs],
            [len(families) * probability for probability in space.kernel_probs.values()],
        ).pvalue,
    }
    assert min(p_values.values()) > 1e-3, p_values


def test_beta_is_drawn_as_in_basicsr():
    space = Space(scale=1, sinc_prob=0, kernel_probs={"generalized_iso": 1.0}, beta_generalized=(0.5, 4.0))
    rng = np.random.default_rng(5)
    ours = [space.draw(rng).operators for _ in range(1500)]
    betas = np.array([operators[0].beta for operators in ours if operators])
    # basicsr's random_bivariate_generalized_Gaussian: half below 1, half above, each half uniform.
    assert binomial_p_value(int((betas < 1).sum()), len(betas), 0.5) > 1e-3
    assert (
        uniform_p_value(list(betas[betas < 1]), 0.5, 1) > 1e-3 and uniform_p_value(list(betas[betas > 1]), 1, 4) > 1e-3
    )


def test_paper_recipes_end_at_full_size(paper_draws):
    assert all(isinstance(operators[-1], RestoreSize) for operators in paper_draws[1])


def test_first_resize_uses_scale_factor():
    def first_and_others(name: str) -> tuple[set, set]:
        space = hydra.utils.instantiate(OmegaConf.load(CONFIGS / f"{name}.yaml"))
        first, others = set(), set()
        for seed in range(60):
            resizes = [o for o in space.draw(np.random.default_rng(seed)).operators if isinstance(o, Resize)]
            at_first = [o for o in resizes if o.by_factor]
            first |= {o.by_factor for o in at_first}
            others |= {o.by_factor for o in resizes if o not in at_first}
            assert len(at_first) <= 1 and (not at_first or at_first[0] is resizes[0])
        return first, others

    assert first_and_others("paper") == first_and_others("realesrgan") == ({True}, {None})
    assert first_and_others("tiny") == first_and_others("faceme_train") == (set(), {None})


def test_old_recipe_keeps_its_key():
    recipe = Recipe((Resize(0.5, "bicubic", False),))
    assert recipe.to_dict()["operators"] == [{"kind": "Resize", "factor": 0.5, "mode": "bicubic", "antialias": False}]
    assert Recipe.from_json(recipe.to_json()) == recipe
    moved = Recipe((Resize(0.5, "bicubic", False, by_factor=True),))
    assert Recipe.from_json(moved.to_json()) == moved and moved.key != recipe.key
