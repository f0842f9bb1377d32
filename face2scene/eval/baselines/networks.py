"""Small released networks of in-process methods: Real-ESRGAN general, and FFDNet, which is told the noise level."""

import pickle
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from face2scene.assets import catalogue
from face2scene.ref_fr.no_reference import with_ncnn_weights


class SRVGGNetCompact(nn.Module):
    """Real-ESRGAN's compact x4 generator, with the parameter names of its released files (Wang et al. 2021)."""

    def __init__(self, channels: int = 64, convolutions: int = 32):
        super().__init__()
        inner = [part for _ in range(convolutions) for part in (_conv(channels, channels), nn.PReLU(channels))]
        self.body = nn.Sequential(_conv(3, channels), nn.PReLU(channels), *inner, _conv(channels, 48))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, h, w) to (B, 3, 4h, 4w), both about [0, 1]: a residual on the nearest pixels."""
        return F.pixel_shuffle(self.body(x), 4) + F.interpolate(x, scale_factor=4, mode="nearest")


def load_real_esrgan_general(folder: str | Path | None = None) -> SRVGGNetCompact:
    """Real-ESRGAN general x4v3 from packaged ncnn files (asset `real_esrgan_general`).

    Raises:
        MissingWeights, ValueError: not fetched; another network.
    """
    place = Path(folder) if folder is not None else catalogue.folder("real_esrgan_general")
    return with_ncnn_weights(SRVGGNetCompact(), place, "realesrgan-x4fast")


class FFDNet(nn.Module):
    """FFDNet for colour (Zhang et al., TIP 2018): 12 convolutions at half the size, told the noise's deviation.

    With the parameter names of its released files.
    """

    def __init__(self, channels: int = 96, layers: int = 12):
        super().__init__()
        widths = [13, *[channels] * (layers - 1), 12]  # 3 colours of 2 x 2 pixels, and a plane of the noise level
        parts = [part for a, b in pairwise(widths) for part in (_conv(a, b), nn.ReLU())]
        self.model = nn.Sequential(*parts[:-1])

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Denoise (B, 3, H, W), about [0, 1].

        Args:
            sigma: deviation of the noise on the same scale, (B,) or (B, 1, H, W), a map; a map's level is the mean of
                2 x 2 pixels.
        """
        height, width = x.shape[-2:]
        odd = (0, width % 2, 0, height % 2)
        small = F.pixel_unshuffle(F.pad(x, odd, mode="replicate"), 2)
        if sigma.ndim == 1:
            level = sigma.to(small)[:, None, None, None].expand(-1, 1, *small.shape[-2:])
        else:
            level = F.avg_pool2d(F.pad(sigma.to(small), odd, mode="replicate"), 2)
        return F.pixel_shuffle(self.model(torch.cat([small, level], 1)), 2)[..., :height, :width]


def load_ffdnet(folder: str | Path | None = None) -> FFDNet:
    """FFDNet for colour with its released weights (asset `ffdnet_color`).

    Raises:
        MissingWeights, ValueError: not fetched; no file of FFDNet's tensors.
    """
    path = (Path(folder) if folder is not None else catalogue.folder("ffdnet_color")) / "ffdnet_color.pth"
    network = FFDNet()
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except (pickle.UnpicklingError, RuntimeError, EOFError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} does not hold the tensors of FFDNet for colour: fetch ffdnet_color again.") from error
    return network.eval().requires_grad_(False)


def noise_level(image: Tensor) -> float:
    """Deviation of white noise in an image (3, H, W), from the finest diagonal Haar coefficients (Donoho 1994).

    Their median magnitude over 0.6745, the mean of the three colours. It reads white noise; JPEG and blur after the
    noise make it too low, and texture makes it too high.
    """
    height, width = (side // 2 * 2 for side in image.shape[-2:])
    a, b, c, d = F.pixel_unshuffle(image[:, None, :height, :width], 2).unbind(1)
    detail = (a - b - c + d).abs() / 2
    return float(detail.flatten(1).median(dim=1).values.mean() / 0.6745)


def _conv(before: int, after: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, padding=1)
