"""PSNR and SSIM of 8-bit images, of the luma or of the three channels.

Arguments are (B, 3, H, W) in [0, 1]; values are rounded to 8 bit before they are compared. Results are (B,) in float64.
"""

import torch
from torch import Tensor

_WINDOW, _SIGMA = 11, 1.5  # pixels


def psnr_rgb(images: Tensor, gts: Tensor) -> Tensor:
    """PSNR in dB of the mean squared error over R, G and B; infinite for equal images."""
    return _psnr(images * 255, gts * 255)


def psnr_y(images: Tensor, gts: Tensor) -> Tensor:
    """PSNR in dB of the Y of BT.601 YCbCr; infinite for images of equal Y."""
    return _psnr(_luma(images), _luma(gts))


def ssim_rgb(images: Tensor, gts: Tensor) -> Tensor:
    """Mean SSIM (Wang et al. 2004) of R, G and B.

    Raises:
        ValueError: a side is shorter than the window of 11 pixels.
    """
    return _ssim(images * 255, gts * 255)


def ssim_y(images: Tensor, gts: Tensor) -> Tensor:
    """SSIM of the Y of BT.601 YCbCr; raises as `ssim_rgb`."""
    return _ssim(_luma(images), _luma(gts))


def _luma(images: Tensor) -> Tensor:
    weights = torch.tensor([65.481, 128.553, 24.966], device=images.device).view(3, 1, 1)
    return (images * weights).sum(1, keepdim=True) + 16


def _psnr(x: Tensor, y: Tensor) -> Tensor:
    return 10 * torch.log10(255**2 / (x.round().double() - y.round().double()).square().mean((1, 2, 3)))


def _ssim(x: Tensor, y: Tensor) -> Tensor:
    height, width = x.shape[-2:]
    if min(height, width) < _WINDOW:
        raise ValueError(f"SSIM needs {_WINDOW} x {_WINDOW} pixels, the image has {width} x {height}.")
    x, y = x.round().double(), y.round().double()
    window = torch.exp(-((torch.arange(_WINDOW, device=x.device, dtype=x.dtype) - 5) ** 2) / (2 * _SIGMA**2))
    window = (window / window.sum()).tolist()

    def blur(image: Tensor) -> Tensor:
        rows = sum(w * image[..., i : i + height - 10, :] for i, w in enumerate(window))
        return sum(w * rows[..., i : i + width - 10] for i, w in enumerate(window))

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    structure = ((2 * covariance + c2) / (var_x + var_y + c2)).clamp_min(0)  # as pyiqa and the official MATLAB code
    return ((2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1) * structure).mean((1, 2, 3))
