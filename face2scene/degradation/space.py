"""Where recipes are drawn from: Real-ESRGAN's two-stage pipeline, every range and probability an argument."""

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Annotated

import numpy as np

from face2scene.common.reproducibility import seed_from
from face2scene.degradation.functional import jpeg, kernels
from face2scene.degradation.functional.resize import MODES
from face2scene.degradation.operators import SpatiallyVaryingBlur, basic, camera, validation
from face2scene.degradation.operators.basic import Operator
from face2scene.degradation.operators.validation import Checked, Number, OneOf, Pair
from face2scene.degradation.recipe import Recipe

Range = tuple[float, float]
Prob = Annotated[float, validation.PROBABILITY]

DIRECTIONS = ("up", "down", "keep")
KERNEL_PROBS = {  # Real-ESRGAN's and S3Diff's
    "iso": 0.45,
    "aniso": 0.25,
    "generalized_iso": 0.12,
    "generalized_aniso": 0.03,
    "plateau_iso": 0.12,
    "plateau_aniso": 0.03,
}
# Low-pass cut-offs of Real-ESRGAN's code: a small kernel cannot hold a low frequency.
SMALL_SINC_BELOW = 13  # side in pixels
SMALL_SINC_RAD = (math.pi / 3, math.pi)
LARGE_SINC_RAD = (math.pi / 5, math.pi)


@dataclass(frozen=True, kw_only=True)
class Space(Checked):
    """A distribution over recipes. Ranges are closed and uniform, probabilities in [0, 1]; defaults are S3Diff's.

    The order is fixed: blur, resize, noise, JPEG; then blur, resize, noise; then either back to 1/scale of the size,
    low-pass, JPEG, or JPEG, back to 1/scale, low-pass, with probability one half each; then up to the full size. A
    trailing 2 marks the second stage. The pipeline is Real-ESRGAN's (Wang et al. 2021, figure 2). Ours are the
    probabilities that switch a step off (`blur_prob`, `noise_prob`, `jpeg_prob`, 1 in the original) and four
    operators, switched off there: motion blur after the first blur, the spatially varying blur in place of the first
    blur, sensor noise in place of the first noise and WebP in place of the last JPEG.

    A draw in which every step is switched off is repeated, so that `no_degradation_prob` alone is the share of
    unchanged images. A probability of 0 draws no random number.

    Attributes:
        scale: the small image has 1/scale of the sides; 1 keeps the size.
        no_degradation_prob: share of recipes that change nothing.
        antialias: which filters resize, see `Resize`; S3Diff's alias.
        by_factor: the first resize samples by its factor, see `Resize`, as in Real-ESRGAN's and S3Diff's code; ignored
            with `antialias`.
        kernel_sizes: smallest and largest kernel side in pixels, both odd.
        kernel_probs, kernel_probs2: share of each family of `kernels.FAMILIES`; a family left out has none.
        blur_sigma: width in pixels of the image at that stage. beta_generalized, beta_plateau: exponents.
        split_beta: half of the exponents lie below 1 and half above, each half uniform, as in Real-ESRGAN's code
            (a range that begins at 1 gives 1 in half of its draws); else they are uniform over the range.
        sinc_prob: share of blurs that are a low-pass.
        spatial_prob: share of first blurs, low-pass apart, that are a `SpatiallyVaryingBlur` centred in the image;
            then `blur_sigma` is the width in the corners, and the kernel's side is `spatial_kernel_size`.
            spatial_centre, spatial_power: its parameters.
        motion_prob: share with a `MotionBlur`. motion_length: pixels. motion_bend: share of the length, to either
            side. motion_tremor: pixels. motion_turns: swings in the exposure.
        resize_probs: of up, down, keep. resize_range: factor of the sides, relative to 1/scale in stage 2, contains 1.
            resize_modes: of `MODES`, equally likely. shrink_evenly: a shrinking factor is uniform in 1/factor.
        gaussian_prob: Gaussian noise, else Poisson. gaussian_sigma: grey levels of 255. grey_prob: without colour.
        sensor_prob: share of the first noise that is a `SensorNoise`, at one of `sensor_iso`, with the white
            balance gains of `sensor_red_gain` and `sensor_blue_gain`.
        jpeg_quality: whole numbers 1 to 100. jpeg_codec: of `Jpeg`; "diffjpeg" draws fractional qualities, and with the
            other defaults a recipe is what Real-ESRGAN's training computes.
        webp_prob2: share of the last compression that is a `Webp` of `webp_quality2`.

    Raises:
        ValueError: a range that is reversed or not physical, a probability outside [0, 1].
    """

    scale: Annotated[int, Number(1, 16, whole=True)] = 4
    no_degradation_prob: Prob = 0.01
    antialias: bool = False
    by_factor: bool = True
    kernel_sizes: Annotated[tuple[int, int], Pair(validation.SIDE)] = (7, 21)

    blur_prob: Prob = 1.0
    kernel_probs: Mapping[str, float] = field(default_factory=KERNEL_PROBS.copy)
    sinc_prob: Prob = 0.1
    blur_sigma: Annotated[Range, Pair(validation.SIGMA_PX)] = (0.2, 1.5)
    beta_generalized: Annotated[Range, Pair(validation.BETA)] = (0.5, 2.0)
    beta_plateau: Annotated[Range, Pair(validation.BETA)] = (1.0, 1.5)
    split_beta: bool = True
    spatial_prob: Prob = 0.0
    spatial_kernel_size: Annotated[int, validation.ODD_SIDE] = 21
    spatial_centre: Annotated[Range, Pair(validation.SHARE)] = (0.2, 0.6)
    spatial_power: Annotated[Range, Pair(validation.POWER)] = (2.0, 2.0)
    motion_prob: Prob = 0.0
    motion_length: Annotated[Range, Pair(validation.LENGTH_PX)] = (2.0, 16.0)
    motion_bend: Annotated[Range, Pair(Number(0, 0.5))] = (0.0, 0.2)
    motion_tremor: Annotated[Range, Pair(validation.TREMOR_PX)] = (0.0, 1.0)
    motion_turns: Annotated[Range, Pair(validation.TURNS)] = (0.5, 2.0)
    resize_probs: tuple[float, float, float] = (0.2, 0.7, 0.1)
    resize_range: Annotated[Range, Pair(Number(1 / 16, 8))] = (0.3, 1.5)
    resize_modes: tuple[str, ...] = MODES
    shrink_evenly: bool = False
    noise_prob: Prob = 1.0
    gaussian_prob: Prob = 0.5
    gaussian_sigma: Annotated[Range, Pair(validation.GREY_LEVELS)] = (1.0, 15.0)
    poisson_scale: Annotated[Range, Pair(validation.SHOT_SCALE)] = (0.05, 2.0)
    grey_prob: Prob = 0.4
    sensor_prob: Prob = 0.0
    sensor_iso: tuple[float, ...] = (800, 1600, 3200)
    sensor_red_gain: Annotated[Range, Pair(validation.GAIN)] = (1.9, 2.4)
    sensor_blue_gain: Annotated[Range, Pair(validation.GAIN)] = (1.5, 1.9)
    jpeg_prob: Prob = 1.0
    jpeg_quality: Annotated[tuple[int, int], Pair(validation.QUALITY)] = (60, 95)
    jpeg_codec: Annotated[str, OneOf(jpeg.CODECS)] = "libjpeg"

    blur_prob2: Prob = 0.5
    kernel_probs2: Mapping[str, float] = field(default_factory=KERNEL_PROBS.copy)
    sinc_prob2: Prob = 0.1
    blur_sigma2: Annotated[Range, Pair(validation.SIGMA_PX)] = (0.2, 1.0)
    beta_generalized2: Annotated[Range, Pair(validation.BETA)] = (0.5, 2.0)
    beta_plateau2: Annotated[Range, Pair(validation.BETA)] = (1.0, 1.5)
    resize_probs2: tuple[float, float, float] = (0.3, 0.4, 0.3)
    resize_range2: Annotated[Range, Pair(Number(1 / 16, 8))] = (0.6, 1.2)
    noise_prob2: Prob = 1.0
    gaussian_prob2: Prob = 0.5
    gaussian_sigma2: Annotated[Range, Pair(validation.GREY_LEVELS)] = (1.0, 12.0)
    poisson_scale2: Annotated[Range, Pair(validation.SHOT_SCALE)] = (0.05, 1.0)
    grey_prob2: Prob = 0.4
    jpeg_prob2: Prob = 1.0
    jpeg_quality2: Annotated[tuple[int, int], Pair(validation.QUALITY)] = (60, 100)
    webp_prob2: Prob = 0.0
    webp_quality2: Annotated[tuple[int, int], Pair(validation.QUALITY)] = (50, 95)
    final_sinc_prob: Prob = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        for stage in ("", "2"):
            families = _shares(f"kernel_probs{stage}", dict(getattr(self, f"kernel_probs{stage}")), kernels.FAMILIES)
            given = dict(zip(DIRECTIONS, getattr(self, f"resize_probs{stage}"), strict=True))
            directions = _shares(f"resize_probs{stage}", given, DIRECTIONS)
            object.__setattr__(self, f"kernel_probs{stage}", families)
            object.__setattr__(self, f"resize_probs{stage}", tuple(directions.values()))
        for name in ("resize_modes", "sensor_iso"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # configs give lists
        if any(size % 2 == 0 for size in self.kernel_sizes):
            raise ValueError(f"Space.kernel_sizes is {self.kernel_sizes}: kernels have odd sides.")
        if not self.resize_modes or set(self.resize_modes) - set(MODES):
            validation.refuse(self, "resize_modes", f"one or more of {', '.join(MODES)}")
        if not self.sensor_iso or any(validation.ISO.parse(iso) is None for iso in self.sensor_iso):
            validation.refuse(self, "sensor_iso", "one or more numbers from 25 to 102400")
        for name in ("resize_range", "resize_range2"):
            low, high = getattr(self, name)
            if not low <= 1 <= high:
                raise ValueError(f"Space.{name} is {(low, high)}: 1 must lie in it, down is below and up above.")
        if self.no_degradation_prob < 1 and not self._can_degrade():
            raise ValueError("Every step of this Space is switched off: set no_degradation_prob=1 if that is meant.")

    def draw(self, rng: np.random.Generator) -> Recipe:
        """One recipe, with a noise seed of its own."""
        noise_seed = int(rng.integers(2**63))
        operators: list[Operator] = []
        if rng.random() >= self.no_degradation_prob:
            while not operators:
                operators = self._draw_operators(rng)
        return Recipe(tuple(operators), noise_seed=noise_seed)

    def _draw_operators(self, rng: np.random.Generator) -> list[Operator]:
        small = 1 / self.scale

        first = self._factor(rng, self.resize_probs, self.resize_range)
        operators = self._blur(rng, self.blur_prob, "")
        operators += self._motion(rng)
        operators += self._resize(rng, 1.0, first, by_factor=self.by_factor and not self.antialias)
        operators += self._noise(rng, "")
        operators += self._jpeg(rng, self.jpeg_prob, self.jpeg_quality)

        second = self._factor(rng, self.resize_probs2, self.resize_range2) * small
        operators += self._blur(rng, self.blur_prob2, "2")
        operators += self._resize(rng, first, second)
        operators += self._noise(rng, "2")

        file = self._jpeg(rng, self.jpeg_prob2, self.jpeg_quality2)
        if file and self.webp_prob2 and rng.random() < self.webp_prob2:
            file = [camera.Webp(int(rng.integers(*self.webp_quality2, endpoint=True)))]
        closing = self._resize(rng, second, small)
        if rng.random() < self.final_sinc_prob:
            closing.append(basic.Sinc(rng.uniform(*SMALL_SINC_RAD), self._kernel_size(rng)))
        operators += closing + file if rng.random() < 0.5 else file + closing

        if self.scale > 1:  # else the closing resize has restored the size
            operators.append(basic.RestoreSize(antialias=self.antialias))
        return operators

    def _blur(self, rng: np.random.Generator, prob: float, stage: str) -> list[Operator]:
        if rng.random() >= prob:
            return []
        size = self._kernel_size(rng)
        if rng.random() < getattr(self, f"sinc_prob{stage}"):
            return [basic.Sinc(rng.uniform(*(SMALL_SINC_RAD if size < SMALL_SINC_BELOW else LARGE_SINC_RAD)), size)]
        family = _choose(rng, getattr(self, f"kernel_probs{stage}"))
        sigmas = getattr(self, f"blur_sigma{stage}")
        values = {"sigma_x": rng.uniform(*sigmas)}
        if not kernels.is_round(family):
            values |= {"sigma_y": rng.uniform(*sigmas), "theta_rad": rng.uniform(-math.pi, math.pi)}
        if kernels.has_shape(family):
            kind = "beta_plateau" if family.startswith("plateau") else "beta_generalized"
            values["beta"] = self._beta(rng, getattr(self, f"{kind}{stage}"))
        if not stage and self.spatial_prob and rng.random() < self.spatial_prob:
            values |= {"centre": rng.uniform(*self.spatial_centre), "power": rng.uniform(*self.spatial_power)}
            return [SpatiallyVaryingBlur(family, self.spatial_kernel_size, **values)]
        return [basic.Blur(family, size, **values)]

    def _beta(self, rng: np.random.Generator, limits: Range) -> float:
        low, high = limits
        if self.split_beta and low <= 1 <= high:
            low, high = (low, 1.0) if rng.random() < 0.5 else (1.0, high)
        return rng.uniform(low, high)

    def _motion(self, rng: np.random.Generator) -> list[Operator]:
        if not self.motion_prob or rng.random() >= self.motion_prob:
            return []
        length = rng.uniform(*self.motion_length)
        bend = length * rng.uniform(*self.motion_bend) * rng.choice((-1, 1))
        tremor, turns = rng.uniform(*self.motion_tremor), rng.uniform(*self.motion_turns)
        return [camera.MotionBlur(length, rng.uniform(-math.pi, math.pi), bend, tremor, turns)]

    def _noise(self, rng: np.random.Generator, stage: str) -> list[Operator]:
        if rng.random() >= getattr(self, f"noise_prob{stage}"):
            return []
        if not stage and self.sensor_prob and rng.random() < self.sensor_prob:
            gains = {colour: rng.uniform(*getattr(self, f"sensor_{colour}")) for colour in ("red_gain", "blue_gain")}
            return [camera.SensorNoise.at_iso(self.sensor_iso[rng.integers(len(self.sensor_iso))], **gains)]
        gaussian = rng.random() < getattr(self, f"gaussian_prob{stage}")
        grey = bool(rng.random() < getattr(self, f"grey_prob{stage}"))
        if gaussian:
            return [basic.GaussianNoise(rng.uniform(*getattr(self, f"gaussian_sigma{stage}")), grey)]
        return [basic.PoissonNoise(rng.uniform(*getattr(self, f"poisson_scale{stage}")), grey)]

    def _factor(self, rng: np.random.Generator, shares: tuple[float, ...], limits: Range) -> float:
        direction = _choose(rng, dict(zip(DIRECTIONS, shares, strict=True)))
        if direction == "up":
            return rng.uniform(1, limits[1])
        if direction == "down":
            return 1 / rng.uniform(1, 1 / limits[0]) if self.shrink_evenly else rng.uniform(limits[0], 1)
        return 1.0

    def _resize(
        self, rng: np.random.Generator, current: float, factor: float, *, by_factor: bool = False
    ) -> list[Operator]:
        mode = self.resize_modes[rng.integers(len(self.resize_modes))]
        return [] if factor == current else [basic.Resize(factor, mode, self.antialias, by_factor or None)]

    def _jpeg(self, rng: np.random.Generator, prob: float, quality: tuple[int, int]) -> list[Operator]:
        if rng.random() >= prob:
            return []
        if self.jpeg_codec == "diffjpeg":
            return [basic.Jpeg(rng.uniform(*quality), self.jpeg_codec)]
        return [basic.Jpeg(int(rng.integers(*quality, endpoint=True)), self.jpeg_codec)]

    def _kernel_size(self, rng: np.random.Generator) -> int:
        smallest, largest = self.kernel_sizes
        return int(smallest + 2 * rng.integers((largest - smallest) // 2, endpoint=True))

    def _can_degrade(self) -> bool:
        steps = (self.blur_prob, self.motion_prob, self.noise_prob, self.jpeg_prob)
        steps2 = (self.blur_prob2, self.noise_prob2, self.jpeg_prob2, self.final_sinc_prob)
        return self.scale > 1 or min(self.resize_probs[2], self.resize_probs2[2]) < 1 or any((*steps, *steps2))


def _choose(rng: np.random.Generator, shares: Mapping[str, float]) -> str:
    # The distribution of rng.choice(..., p=...), fifteen times as fast.
    cumulative = list(accumulate(shares.values()))
    return list(shares)[bisect_right(cumulative, rng.random() * cumulative[-1], hi=len(cumulative) - 1)]


def _shares(name: str, shares: dict[str, float], names: tuple[str, ...]) -> dict[str, float]:
    unknown = sorted(set(shares) - set(names))
    total = sum(shares.values())
    if unknown or any(not 0 <= share <= 1 for share in shares.values()) or abs(total - 1) > 1e-6:
        raise ValueError(f"Space.{name} is {shares}: it must give {', '.join(names)} shares that sum to 1.")
    return {key: float(share) / total for key, share in shares.items()}


@dataclass(frozen=True)
class Mixture:
    """Draws from several spaces. `shares` of the draws are at least 0, sum to 1 and have the names of `spaces`."""

    spaces: Mapping[str, Space]
    shares: Mapping[str, float]

    def __post_init__(self) -> None:
        validation.check_shares("degradation.shares", self.shares, "degradation.spaces", self.spaces)

    def draw(self, rng: np.random.Generator) -> Recipe:
        """A new recipe of one of the spaces."""
        return self.spaces[_choose(rng, self.shares)].draw(rng)


@dataclass(frozen=True)
class Bank:
    """`size` operators of a space, which images share, so that Stage I can restore them beforehand; noise differs."""

    space: Space | Mixture
    size: int

    def __post_init__(self) -> None:
        if self.size < 2:
            raise ValueError(f"degradation.size is {self.size}: a bank has two operators or more.")

    @cached_property
    def _operators(self) -> list[Recipe]:
        return [self.space.draw(np.random.default_rng(seed_from("operator", number))) for number in range(self.size)]

    def draw(self, rng: np.random.Generator) -> Recipe:
        """One of the operators, with a noise seed of its own."""
        return self._operators[int(rng.integers(self.size))].with_noise_seed(int(rng.integers(2**63)))
