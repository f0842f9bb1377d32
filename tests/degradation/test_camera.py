import hashlib
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from degradation_batches import draw_recipes, make_image
from omegaconf import OmegaConf
from PIL import Image, features
from skimage.data import astronaut
from torch.nn import functional as F

from face2scene.common.reproducibility import REPOSITORY
from face2scene.degradation import (
    PRESETS,
    Blur,
    GaussianNoise,
    Jpeg,
    MotionBlur,
    Recipe,
    Resize,
    SensorNoise,
    Space,
    SpatiallyVaryingBlur,
    Webp,
)
from face2scene.degradation.functional import kernels
from face2scene.degradation.operators.camera import to_linear, to_srgb
from face2scene.degradation.operators.spatial_blur import TOLERANCE, WIDTHS
from face2scene.image_io.arrays import to_tensor

CONFIGS = REPOSITORY / "configs" / "degradation"
MOTION = MotionBlur(9.3, 0.8, bend_px=2.1, tremor_px=0.7, tremor_turns=1.7)
SPATIAL_BLUR = SpatiallyVaryingBlur("aniso", 15, 2.6, 0.1, power=2.4, centre_x=0.4, sigma_y=0.9, theta_rad=0.6)


# Hand shake


@pytest.mark.parametrize("motion", [MOTION, MotionBlur(0.3, 1.0), MotionBlur(40, -2.0, bend_px=-12)])
def test_motion_kernel_is_normalized_and_centred(motion):
    kernel = motion.kernel()
    axis = torch.arange(len(kernel), dtype=torch.float64) - len(kernel) // 2
    assert kernel.min() >= 0 and kernel.sum().item() == pytest.approx(1, abs=1e-12)
    assert abs((kernel * axis).sum().item()) < 1e-9 and abs((kernel * axis[:, None]).sum().item()) < 1e-9


def test_motion_kernel_of_four_pixels():
    row = torch.tensor([0.125, 0.25, 0.25, 0.25, 0.125], dtype=torch.float64)
    kernel = MotionBlur(4).kernel()
    torch.testing.assert_close(kernel[2], row, rtol=0, atol=1e-4)
    assert kernel.sum().item() == pytest.approx(kernel[2].sum().item(), abs=1e-12)
    torch.testing.assert_close(MotionBlur(4, math.pi / 2).kernel(), kernel.T, rtol=0, atol=1e-9)


@pytest.mark.numerics
def test_motion_blur_averages_in_linear_light():
    image = to_tensor(astronaut())[:, 100:180, 180:270]
    height, width = image.shape[-2:]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    total, path = torch.zeros_like(image), MOTION.path(500).float()
    for right, down in path:
        place = torch.stack([(columns - right) / (width - 1), (rows - down) / (height - 1)], dim=-1) * 2 - 1
        total += F.grid_sample(to_linear(image)[None], place[None], padding_mode="reflection", align_corners=True)[0]
    torch.testing.assert_close(Recipe((MOTION,)).apply(image), to_srgb(total / len(path)), rtol=0, atol=1e-3)


def test_motion_blur_of_point_is_its_kernel():
    motion = MotionBlur(10, 0.3, bend_px=3)
    kernel = motion.kernel()
    point = torch.zeros(3, 41, 41)
    point[:, 20, 20] = 1
    middle = slice(20 - len(kernel) // 2, 21 + len(kernel) // 2)
    trail = to_linear(Recipe((motion,)).apply(point))[0, middle, middle]
    torch.testing.assert_close(trail.double(), kernel, rtol=0, atol=2e-6)
    assert (kernel - kernel.flip(0, 1)).abs().max() > 0.02  # not the same turned round: the direction counts


# The sensor


@pytest.mark.parametrize("iso", [800, 1600, 3200])
def test_sensor_noise_variance_in_linear_light(iso):
    noise = SensorNoise.at_iso(iso, red_gain=2.0, blue_gain=1.5)
    for light in (0.15, 0.3, 0.6):
        flat = to_srgb(torch.full((3, 250, 250), light))
        change = to_linear(Recipe((noise,), noise_seed=4).apply(flat)) - light
        for channel, gain in enumerate((2.0, 1.0, 1.5)):
            variance = gain * noise.shot * light + (gain * noise.read) ** 2
            assert change[channel].var().item() == pytest.approx(variance, rel=0.03)
            assert abs(change[channel].mean().item()) < 4 * math.sqrt(variance) / 250
        assert torch.corrcoef(change.flatten(1)).fill_diagonal_(0).abs().max() < 0.02


def test_iso_presets():
    assert [round(SensorNoise.at_iso(iso).shot, 6) for iso in (800, 1600, 3200)] == [0.0016, 0.0032, 0.0064]
    assert SensorNoise.at_iso(3200).read == pytest.approx(0.00768)
    with pytest.raises(ValueError, match=r"ISO value is 10: it must be a number from 25 to 102400"):
        SensorNoise.at_iso(10)


def test_srgb_curve_round_trip():
    assert to_linear(torch.tensor(0.5)).item() == pytest.approx(0.21404114, abs=1e-6)
    assert to_linear(torch.tensor(0.04)).item() == pytest.approx(0.04 / 12.92, abs=1e-7)
    levels = torch.arange(256) / 255
    torch.testing.assert_close(to_srgb(to_linear(levels)), levels, rtol=0, atol=2e-6)


# WebP


def test_webp_equals_pillow():
    image = astronaut()[:120, :170]
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="WEBP", quality=35)
    expected = to_tensor(np.asarray(Image.open(file).convert("RGB")))
    assert torch.equal(Recipe((Webp(35),)).apply(to_tensor(image)), expected)
    errors = [(Recipe((Webp(q),)).apply(to_tensor(image)) - to_tensor(image)).square().mean() for q in (95, 40, 3)]
    assert 0 < errors[0] < errors[1] < errors[2]


def test_missing_libwebp_message(monkeypatch):
    monkeypatch.setattr(features, "check", lambda name: False)
    with pytest.raises(RuntimeError, match=r"WebP is not available.*--force-reinstall pillow"):
        Recipe((Webp(80),)).apply(make_image())


# The field


def kernel_at(field: SpatiallyVaryingBlur, x: float, y: float, aspect: float = 1.0) -> torch.Tensor:
    """The kernel at one position, (size, size) float64; x, y are shares of width and height, aspect is their ratio."""
    farthest = max(field.centre_x, 1 - field.centre_x) * aspect, max(field.centre_y, 1 - field.centre_y)
    distance = math.hypot((x - field.centre_x) * aspect, y - field.centre_y) / math.hypot(*farthest)
    return field.scaled_kernel(field.centre + (1 - field.centre) * distance**field.power)


@pytest.mark.numerics
@pytest.mark.parametrize("family", kernels.FAMILIES)
def test_constant_field_equals_blur(family):
    values = {"sigma_x": 2.3}
    if not kernels.is_round(family):
        values |= {"sigma_y": 1.1, "theta_rad": 0.4}
    if kernels.has_shape(family):
        values["beta"] = 1.3
    image = make_image(90, 71)
    field = Recipe((SpatiallyVaryingBlur(family, 21, centre=1.0, **values),)).apply(image)
    torch.testing.assert_close(field, Recipe((Blur(family, 21, **values),)).apply(image), rtol=0, atol=1e-6)


@pytest.mark.numerics
def test_field_matches_per_pixel_kernels():
    image = make_image(60, 90)
    blurred = Recipe((SPATIAL_BLUR,)).apply(image)
    padded = F.pad(image[None], (7,) * 4, mode="reflect")[0].double()
    worst = 0.0
    for row in range(0, 60, 3):
        for column in range(0, 90, 5):
            kernel = kernel_at(SPATIAL_BLUR, (column + 0.5) / 90, (row + 0.5) / 60, aspect=1.5)
            assert kernel.sum().item() == pytest.approx(1, abs=1e-12)
            plain = (padded[:, row : row + 15, column : column + 15] * kernel).sum(dim=(1, 2))
            worst = max(worst, (plain - blurred[:, row, column]).abs().max().item())
    assert worst < TOLERANCE


def test_field_blurs_corners_most():
    field = Recipe((SpatiallyVaryingBlur("iso", 21, 3.0, 0.2),))
    flat = torch.full((3, 50, 70), 0.37)
    torch.testing.assert_close(field.apply(flat), flat, rtol=0, atol=1e-6)
    blurred = field.apply(make_image(256, 256))
    rows = (torch.arange(256) - 127.5).square()
    distance = ((rows[:, None] + rows) / (2 * 127.5**2)).sqrt()
    left = [blurred[:, (distance >= r) & (distance < r + 0.2)].std().item() for r in (0, 0.2, 0.4, 0.6, 0.8)]
    assert left == sorted(left, reverse=True) and left[0] > 3 * left[-1]


@pytest.mark.numerics
def test_field_has_no_internal_seams():
    # A fine grating, the same in every row: what is left of it in row y is the contrast C(y), which a field without
    # borders changes smoothly. A border is a step of C or of its slope, so its second difference shows it.
    height, width, side = 512, 33, 21
    field = SpatiallyVaryingBlur("iso", side, 3.0, 0.2)
    grating = (0.5 + 0.5 * torch.cos(torch.arange(width) * math.pi / 4)).expand(3, height, width).contiguous()
    padded = F.pad(grating[None], (side // 2,) * 4, mode="reflect")[0, 0].double()

    def contrast(place_of_row):  # in the middle column, each row with the kernel of the place it is given
        kernels_of_rows = [kernel_at(field, 0.5, place_of_row(row) / height, width / height) for row in range(height)]
        return torch.stack([(padded[row : row + side, 16:37] * k).sum() for row, k in enumerate(kernels_of_rows)])

    def roughness(curve):
        return curve.diff(n=2)

    wanted = roughness(contrast(lambda row: row + 0.5))
    extra = (roughness(Recipe((field,)).apply(grating)[0, :, 16].double()) - wanted).abs()
    cells = (roughness(contrast(lambda row: (row // 32 + 0.5) * 32)) - wanted).abs()
    assert extra.max() < 4e-6  # a thousandth of an 8-bit level; float32's own rounding is a quarter of it
    assert cells.max() > 1e4 * extra.max()  # sixteen cells without blending: the measure sees borders

    # Along the contours where the table of kernels has its joints there is no more than elsewhere.
    widths = torch.linspace(math.log(0.2 + 0.2 / 3), math.log(1 + 0.2 / 3), WIDTHS).exp() - 0.2 / 3
    here = 0.2 + 0.8 * ((torch.arange(height) + 0.5 - height / 2) / math.hypot(height / 2, width / 2)) ** 2
    joint = torch.bucketize(here, widths).diff() != 0
    joint = joint[1:] | joint[:-1]
    assert 50 < joint.sum() < 400
    ratio = (extra[joint].square().mean() / extra[~joint].square().mean()).item()
    assert 0.5 < ratio < 2


# All of them


@pytest.mark.numerics
def test_camera_recipe_json_round_trip():
    recipe = Recipe((SPATIAL_BLUR, MOTION, SensorNoise(0.003, 0.002, 2.0, 1.6), Webp(70)), noise_seed=3)
    back = Recipe.from_json(recipe.to_json())
    assert back == recipe and back.key == recipe.key
    image = make_image(70, 50)
    first = recipe.apply(image)
    assert first.shape == image.shape and first.min() >= 0 and first.max() <= 1
    assert torch.equal(first, back.apply(image)) and torch.equal(image, make_image(70, 50))


@pytest.mark.numerics
def test_zero_strength_is_identity():
    recipe = Recipe((MotionBlur(0), SensorNoise(0, 0), SpatiallyVaryingBlur("iso", 7, 0, 0.5)))
    torch.testing.assert_close(recipe.apply(make_image()), make_image(), rtol=0, atol=1e-6)
    assert torch.equal(Recipe(recipe.operators[:2]).apply(make_image()), make_image())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MotionBlur(-1), "MotionBlur.length_px is -1: it must be a number from 0 to 200"),
        (lambda: MotionBlur(5, 4.0), "MotionBlur.theta_rad is 4.0: it must be a number from -3.14159 to 3.14159"),
        (lambda: MotionBlur(5, tremor_turns=-1), "MotionBlur.tremor_turns is -1: it must be a number from 0 to 20"),
        (lambda: SensorNoise(float("nan"), 0), "SensorNoise.shot is nan: it must be a number from 0 to 1"),
        (lambda: SensorNoise(0.1, 0, red_gain=0), "SensorNoise.red_gain is 0: it must be a number from 0.2 to 5"),
        (lambda: Webp(0), "Webp.quality is 0: it must be a whole number from 1 to 100"),
        (lambda: SpatiallyVaryingBlur("iso", 20, 1.0, 0.5), "SpatiallyVaryingBlur.size is 20: it must be odd"),
        (
            lambda: SpatiallyVaryingBlur("iso", 21, 1.0, 1.5),
            "SpatiallyVaryingBlur.centre is 1.5: it must be a number from 0 to 1",
        ),
        (
            lambda: SpatiallyVaryingBlur("iso", 21, 1.0, 0.5, power=0),
            "SpatiallyVaryingBlur.power is 0: it must be a number from 1 to 8",
        ),
        (
            lambda: SpatiallyVaryingBlur("aniso", 21, 1.0, 0.5),
            "SpatiallyVaryingBlur.sigma_y is None: it must be a number",
        ),
        (lambda: Space(motion_length=(5, 300)), "Space.motion_length is .* from 0 to 200"),
        (lambda: Space(spatial_prob=2), "Space.spatial_prob is 2: it must be a number from 0 to 1"),
        (lambda: Space(spatial_kernel_size=8), "Space.spatial_kernel_size is 8: it must be odd"),
        (lambda: Space(sensor_iso=()), "Space.sensor_iso is .* from 25 to 102400"),
        (lambda: Space(resize_modes=("lanczos",)), "Space.resize_modes is .*lanczos.*area, bilinear, bicubic"),
        (
            lambda: Recipe((MOTION,)).apply(make_image(4, 4)),
            "MotionBlur has a kernel of side 11, but the image is 4 x 4",
        ),
        (
            lambda: Recipe((SPATIAL_BLUR,)).apply(make_image(7, 7)),
            "SpatiallyVaryingBlur has a kernel of side 15.* at most 13",
        ),
    ],
)
def test_out_of_range_values_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# The shipped spaces and presets


@pytest.mark.numerics
def test_tiny_space_draws_are_fixed():
    drawn_json = "".join(recipe.to_json() for recipe in draw_recipes("tiny", 50, seed=3))
    assert hashlib.sha256(drawn_json.encode()).hexdigest()[:16] == "abe8b0fa2e0bd952"


def test_presets_match_stored_recipes():
    stored = json.loads((Path(__file__).parent / "presets.json").read_text())
    assert {name: Recipe.from_dict(values) for name, values in stored.items()} == PRESETS
    assert all(PRESETS[name].noise_seed == values["noise_seed"] for name, values in stored.items())


def test_presets_match_supplement_text():
    photo = to_tensor(astronaut())
    first = {name: recipe.apply(photo) for name, recipe in PRESETS.items()}
    other = {name: recipe.with_noise_seed(1).apply(photo) for name, recipe in PRESETS.items()}
    detail = {name: first[name].diff(dim=-1).square().mean().item() for name in PRESETS}
    noise = {name: (first[name] - other[name]).std().item() / math.sqrt(2) for name in PRESETS}
    assert min(detail, key=detail.get) == "d1"  # "heavily smoothed"
    assert max(noise, key=noise.get) == "d2"  # "strong Poisson noise"
    assert min(noise, key=noise.get) == "d3" and noise["d3"] < 1.5 / 255  # "negligible noise"


def test_paper_same_size_differs_in_scale():
    paper, twin = (OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{n}.yaml")) for n in ("paper", "paper_same_size"))
    assert paper.pop("scale") == 4 and twin.pop("scale") == 1 and paper == twin


def test_spatially_varying_space_first_blur():
    names = ("paper", "spatially_varying")
    paper, varying = (OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{name}.yaml")) for name in names)
    changed = {key for key in varying if paper.get(key) != varying[key]}
    assert changed == {"sinc_prob", "blur_sigma"} | {key for key in varying if key.startswith("spatial_")}
    for recipe in draw_recipes("spatially_varying", 40, seed=3):
        if recipe.operators:
            field = recipe.operators[0]
            assert isinstance(field, SpatiallyVaryingBlur) and field.centre == pytest.approx(1 / 3, abs=1e-6)
            assert 0.6 <= field.sigma_x <= 4.5


def test_faceme_space_order_and_ranges():
    times = []
    for recipe in draw_recipes("faceme_train", 300, seed=3):
        blur, shrink, noise, file, grow = recipe.operators
        assert isinstance(blur, Blur) and blur.size == 41 and blur.family in ("iso", "aniso")
        assert 0.2 <= blur.sigma_x <= 10 and isinstance(noise, GaussianNoise) and 0 <= noise.sigma <= 15
        assert not noise.grey and isinstance(file, Jpeg) and 30 <= file.quality <= 100
        assert grow == Resize(1.0, "bilinear", antialias=False)
        assert (shrink.mode, shrink.antialias) == ("bilinear", False)
        times.append(1 / shrink.factor)
    assert 1 <= min(times) < 1.3 and 15.7 < max(times) <= 16 and np.mean(times) == pytest.approx(8.5, abs=0.8)


def test_phone_space_operators():
    recipes = draw_recipes("phone", 300, seed=3)
    kinds = [tuple(type(o).__name__ for o in recipe.operators) for recipe in recipes]
    assert set(kinds) == {
        ("Blur", *shake, "SensorNoise", file) for shake in ((), ("MotionBlur",)) for file in ("Jpeg", "Webp")
    }
    assert 0.3 < np.mean(["MotionBlur" in kind for kind in kinds]) < 0.5
    shots = {o.shot for recipe in recipes for o in recipe.operators if isinstance(o, SensorNoise)}
    assert shots == {SensorNoise.at_iso(iso).shot for iso in (800, 1600, 3200)}


def test_realesrgan_beta_distribution():
    operators = [operator for recipe in draw_recipes("realesrgan", 2000, seed=3) for operator in recipe.operators]
    plateau = np.array([o.beta for o in operators if isinstance(o, Blur) and o.family.startswith("plateau")])
    general = np.array([o.beta for o in operators if isinstance(o, Blur) and o.family.startswith("generalized")])
    assert len(plateau) > 300 and len(general) > 300
    assert 0.42 < (general < 1).mean() < 0.58 and general.min() >= 0.5 and 3.8 < general.max() <= 4
    assert 0.42 < (plateau == 1).mean() < 0.58 and plateau.min() >= 1 and 1.9 < plateau.max() <= 2
