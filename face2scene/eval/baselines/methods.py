"""Methods without references that run in this process: bicubic, FFDNet, Real-ESRGAN, S3Diff as released.

Each maps an image (3, H, W) in [0, 1] and a scale to an image (3, scale H, scale W) in [0, 1].
"""

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar

import torch
from torch import Tensor
from tqdm.auto import tqdm

from face2scene.assets import catalogue
from face2scene.common.memory import explained, named_device
from face2scene.common.reproducibility import seed_from
from face2scene.common.types import Box
from face2scene.eval.baselines.networks import FFDNet, load_ffdnet, load_real_esrgan_general, noise_level
from face2scene.image_io.arrays import align_colour, read_tensor, resize, write_png
from face2scene.models.restorer.shared_norms import SharedNorms
from face2scene.models.restorer.tiling import TilePlan, network_in_tiles
from face2scene.models.s3diff.model import S3Diff
from face2scene.ref_fr.no_reference import load_real_esrgan

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bicubic:
    """Antialiased bicubic enlargement, the baseline; at scale 1 the input itself."""

    def __call__(self, image: Tensor, scale: int) -> Tensor:
        return resize(image, (scale * image.shape[-2], scale * image.shape[-1]))


class RealESRGANx4:
    """Real-ESRGAN (packaged weights) on whole scenes, in tiles.

    At scale 1 the image is reduced to a quarter first, which its author advises for degraded images of full size.

    Args:
        folder: of the ncnn files; None is the asset of the version.
        version: `x4plus`, or `general-x4v3` (a tenth of the weights, for denoising strength 1).
        tile: side of a tile in pixels of the network's input; its author's own default is no tiles.
        overlap: of tiles, in pixels of the network's input.
        device: None is CUDA where there is one.
    """

    _LOADERS: ClassVar = {"x4plus": load_real_esrgan, "general-x4v3": load_real_esrgan_general}

    def __init__(
        self,
        folder: str | None = None,
        *,
        version: str = "x4plus",
        tile: int = 192,
        overlap: int = 16,
        device: str | torch.device | None = None,
    ):
        if version not in self._LOADERS:
            raise ValueError(f"baseline.method.version is {version!r}: choose {' or '.join(self._LOADERS)}.")
        self.folder, self.version, self.tile, self.overlap = folder, version, tile, overlap
        self.device = named_device(device, "baseline.method.device")

    @cached_property
    def network(self) -> torch.nn.Module:
        return self._LOADERS[self.version](self.folder).to(self.device)

    @torch.inference_mode()
    def __call__(self, image: Tensor, scale: int) -> Tensor:
        if scale not in (1, 4):
            raise ValueError(f"Real-ESRGAN enlarges by 4 or, after a reduction, by 1, not by {scale}.")
        height, width = image.shape[-2:]
        if scale == 1:
            image = resize(image, (max(4, -(-height // 4)), max(4, -(-width // 4))))

        def enlarge(part: Tensor, _: list[Box]) -> Tensor:
            return self.network(part).float().clamp(0, 1)

        plan = TilePlan(image.shape[-2], image.shape[-1], self.tile, self.overlap, unit=1, statistics="tile")
        with explained("lower baseline.method.tile"):
            large = network_in_tiles("tiles", SharedNorms(self.network), enlarge, image[None], plan, self.device, None)
            large = large[0].cpu()
        target = (scale * height, scale * width)
        return large if tuple(large.shape[-2:]) == target else resize(large, target)


class FFDNetColour:
    """FFDNet for colour (packaged weights), whole scenes at once; enlarged by bicubic resizing where scale is 4.

    Args:
        folder: of the released file; None is the asset `ffdnet_color`.
        sigma: the noise's deviation that it is told, in eight-bit steps, 0 to 75; None estimates it from each image
            (`noise_level`).
        device: None is CUDA where there is one.
    """

    def __init__(
        self, folder: str | None = None, *, sigma: float | None = None, device: str | torch.device | None = None
    ):
        if sigma is not None and not 0 <= sigma <= 75:
            raise ValueError(f"FFDNet was trained for noise of 0 to 75 of 255; baseline.method.sigma is {sigma}.")
        self.folder, self.sigma = folder, sigma
        self.device = named_device(device, "baseline.method.device")

    @cached_property
    def network(self) -> FFDNet:
        return load_ffdnet(self.folder).to(self.device)

    @torch.inference_mode()
    def __call__(self, image: Tensor, scale: int) -> Tensor:
        level = min(noise_level(image), 75 / 255) if self.sigma is None else self.sigma / 255
        sigma = torch.tensor([level], device=self.device)
        with explained("use baseline.method.device=cpu"):
            clean = self.network(image[None].to(self.device), sigma)[0].float().clamp(0, 1).cpu()
        return resize(clean, (scale * image.shape[-2], scale * image.shape[-1]))


class S3DiffAsReleased:
    """S3Diff as its released program runs it, by `restorer=s3diff`'s code.

    The whole image at once, scored before it is enlarged, fp32, a draw from the VAE's posterior, colours by wavelets
    of eight-bit images whose fractions are cut off. Not as released: the draw's seed follows from the image and not
    from its place in the folder, and the VAE is not tiled (the program tiles it above 1088 pixels).

    Args:
        path: safetensors file; None is the asset `s3diff`.
        base: arguments of `load_base` for another base than the one that the file names.
        seed: of the draw, together with the image's values; the program's own is 123.
        device: None is CUDA where there is one.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        base: Mapping[str, Any] | None = None,
        seed: int = 123,
        device: str | torch.device | None = None,
    ):
        self.path, self.base, self.seed = path, dict(base or {}), seed
        self.device = named_device(device, "baseline.method.device")

    @cached_property
    def network(self) -> S3Diff:
        path = Path(self.path) if self.path else catalogue.folder("s3diff") / "s3diff.safetensors"
        return S3Diff.from_file(path, **{"dtype": "fp32"} | self.base).merged().to(self.device)

    @torch.inference_mode()
    def __call__(self, image: Tensor, scale: int) -> Tensor:
        small = image[None].to(self.device)
        seeds = torch.tensor([seed_from(self.seed, hashlib.sha256(image.numpy().tobytes()).hexdigest())])
        output = self.network.restore(small, scale=scale, posterior="sample", seeds=seeds)
        large = torch.nn.functional.interpolate(small, scale_factor=scale, mode="bilinear", align_corners=False)
        output, large = (x.mul(255).floor().div(255) for x in (output, large))
        return align_colour(output, large, "wavelet").mul(255).floor().div(255)[0].cpu()


def predict_folder(
    method: Callable[[Tensor, int], Tensor], inputs: Mapping[str, Path], output: str | Path, *, scale: int = 1
) -> tuple[dict[str, str], float]:
    """Write `output`/images/NAME.png for every input that has none yet.

    Returns:
        Name -> reason of the images that failed, and the seconds of the method itself.
    """
    images, failed, seconds = Path(output) / "images", {}, 0.0
    for name, path in tqdm(inputs.items(), desc="predicting", unit="image", disable=len(inputs) < 2):
        target = images / f"{name}.png"
        if target.is_file():
            continue
        try:
            image = read_tensor(path)
            start = perf_counter()
            made = method(image, scale)
            seconds += perf_counter() - start
            write_png(target, made)
        except Exception as error:  # of any kind: the other images are still restored
            failed[name] = f"{type(error).__name__}: {error}"
            log.warning("%s was not restored. %s", name, error)
    return failed, seconds
