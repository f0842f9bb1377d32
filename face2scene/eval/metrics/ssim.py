"""SSIM (Wang et al. 2004), of the luma or of the three channels: pyiqa's values without its dense convolution.

(B, 3, H, W) in [0, 1], both sides; results (B,) in float64.
"""

import torch
from torch import Tensor

_WINDOW, _SIGMA = 11, 1.5  # pixels


def ssim_y(images: Tensor, gts: Tensor) -> Tensor:
    """SSIM of the Y of BT.601 YCbCr, rounded to 8 bit.

    Raises:
        ValueError: a side is under 11 pixels, the window's.
    """
    weights = torch.tensor([65.481, 128.553, 24.966], device=images.device).view(3, 1, 1)
    return _ssim(*((side * weights).sum(1, keepdim=True) + 16 for side in (images, gts)))


def ssim_rgb(images: Tensor, gts: Tensor) -> Tensor:
    """Mean SSIM of R, G and B; raises as `ssim_y`."""
    return _ssim(images * 255, gts * 255)


def _ssim(x: Tensor, y: Tensor) -> Tensor:
    height, width = x.shape[-2:]
    if min(height, width) < _WINDOW:
        raise ValueError(f"SSIM needs {_WINDOW} x {_WINDOW} pixels, the image has {width} x {height}.")
    x, y = x.round().double(), y.round().double()
    window = torch.exp(-((torch.arange(_WINDOW, device=x.device, dtype=x.dtype) - 5) ** 2) / (2 * _SIGMA**2))
    window = (window / window.sum()).tolist()

    def blurred(image: Tensor) -> Tensor:
        rows = sum(w * image[..., i : i + height - 10, :] for i, w in enumerate(window))
        return sum(w * rows[..., i : i + width - 10] for i, w in enumerate(window))

    mean_x, mean_y = blurred(x), blurred(y)
    var_x, var_y = blurred(x * x) - mean_x**2, blurred(y * y) - mean_y**2
    covariance = blurred(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    structure = ((2 * covariance + c2) / (var_x + var_y + c2)).clamp_min(0)  # pyiqa's, as in the official MATLAB code
    return ((2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1) * structure).mean((1, 2, 3))
