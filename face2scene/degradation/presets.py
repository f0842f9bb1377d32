"""The four fixed degradations of the paper's FaDeX experiment (supplement, section 2.4).

The supplement gives words, not numbers. Each line below quotes the words it renders; the values are our
reading of them, within or near Real-ESRGAN's ranges. The order inside a stage is the pipeline's: blur,
resize, noise, JPEG. Resize factors are relative to the image's own size, so a stage that "keeps the
resolution" has no Resize. Where the stages change it, the closing RestoreSize is ours, so that the experiment compares
images of one size; `apply(..., keep_size=False)` leaves it out.

They are fixed: tests/degradation/presets.json holds them a second time, and a test compares.
"""

import math

from face2scene.degradation.operators.basic import Blur, GaussianNoise, Jpeg, PoissonNoise, Resize, RestoreSize, Sinc
from face2scene.degradation.recipe import Recipe

PRESETS: dict[str, Recipe] = {
    "d1": Recipe(  # "strong downscale + strong blur + high JPEG"
        (
            Blur("iso", 21, sigma_x=3.0),  # "isotropic Gaussian blur", "strong blur"
            Resize(0.3, "area"),  # "a strong downscale"
            GaussianNoise(8.0, grey=True),  # "gray Gaussian noise"
            PoissonNoise(0.5),  # "Poisson noise"
            Jpeg(90),  # "high-quality JPEG compression"
            # "Stage two keeps the resolution"
            Blur("iso", 11, sigma_x=1.0),  # "a milder isotropic blur"
            Jpeg(96),  # "very high JPEG quality"
            Sinc(math.pi / 2, 13),  # "followed by a final sinc filter"
            RestoreSize(),
        )
    ),
    "d2": Recipe(  # "strong upscale + low JPEG, then downscale + anisotropic blur"
        (
            Blur("aniso", 15, sigma_x=2.4, sigma_y=0.8, theta_rad=math.pi / 6),  # "anisotropic Gaussian blur"
            Resize(1.5, "bicubic"),  # "strongly upscales the image"
            PoissonNoise(2.5),  # "colored Poisson noise", "strong Poisson noise"
            Jpeg(30),  # "low JPEG quality"
            Blur("aniso", 11, sigma_x=1.5, sigma_y=0.5, theta_rad=-math.pi / 4),  # "applies anisotropic blur"
            Resize(0.6, "bilinear"),  # "Stage two downsamples the image"
            PoissonNoise(1.5),  # "adds additional Poisson noise"
            Jpeg(45),  # "low-mid JPEG quality, without a final sinc filter"
            RestoreSize(),
        )
    ),
    "d3": Recipe(  # "almost-clean identity with sinc filtering"; "Both stages keep the original resolution"
        (
            Sinc(0.9 * math.pi, 7),  # stage one: "a sinc filter"; "very mild sharpening/sinc effects"
            PoissonNoise(0.05),  # "no Gaussian noise and minimal Poisson noise"
            Jpeg(100),  # "maximum JPEG quality"
            GaussianNoise(1.0),  # "Stage two adds only a very small Gaussian noise"
            Jpeg(100),  # "maximum JPEG quality"
            Sinc(0.9 * math.pi, 7),  # "another sinc filter"
        )
    ),
    "d4": Recipe(  # "moderate downscale + light noise + very low JPEG, then upscale + plateau blur"
        (
            # "plateau-anisotropic blur"
            Blur("plateau_aniso", 13, sigma_x=2.0, sigma_y=1.0, theta_rad=math.pi / 3, beta=1.5),
            Resize(0.6, "bilinear"),  # "moderately downsamples the image"
            GaussianNoise(4.0),  # "light colored Gaussian noise"
            PoissonNoise(0.3),  # "mild Poisson noise"
            Jpeg(15),  # "very low JPEG quality"
            # "applies plateau-anisotropic blur again"
            Blur("plateau_aniso", 11, sigma_x=1.2, sigma_y=0.6, theta_rad=math.pi / 3, beta=1.5),
            Resize(1.1, "bicubic"),  # "then upscales the image"; "a slight scale inconsistency"
            Jpeg(18),  # "very low JPEG quality"
            Sinc(math.pi / 2, 11),  # "and a final sinc filter"
            RestoreSize(),
        )
    ),
}
