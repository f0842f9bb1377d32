"""FID with pyiqa's Inception network: features once per image, and no square root of a 2048 x 2048 matrix."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from face2scene.image_io.arrays import to_bytes

_SIDE = 299  # pixels, Inception's input


class Fid:
    """FID of clean-fid (Parmar et al. 2022) by pyiqa's `net`: channels resized in float, antialiased bicubic."""

    def __init__(self, net: nn.Module, device: torch.device):
        self.inception = net.model.to(memory_format=torch.channels_last)
        self.device = device

    @torch.inference_mode()
    def features(self, images: Tensor) -> Tensor:
        """Pooled features (B, 2048), float32 on the CPU, of 8-bit images (B, 3, H, W) in [0, 1]."""
        resized = torch.from_numpy(np.stack([_resized(to_bytes(image)) for image in images]))
        batch = (resized.permute(0, 3, 1, 2).to(self.device) - 128) / 128  # stays channels last
        return self.inception(batch, False, False)[0].flatten(1).float().cpu()

    @staticmethod
    def distance(ours: Tensor, theirs: Tensor) -> float:
        """The Frechet distance, at least 0, of two Gaussians fitted to features (N, D) and (M, D).

        The trace of the square root of the product of both covariances equals the sum of the singular values of
        (centred ours)(centred theirs)^T over sqrt((N - 1)(M - 1)), an N x M matrix.

        Raises:
            ValueError: one side has fewer than two images.
        """
        if min(len(ours), len(theirs)) < 2:
            raise ValueError(f"FID needs two images on each side, got {len(ours)} and {len(theirs)}.")
        sides = [features.double().numpy() for features in (ours, theirs)]
        means = [side.mean(0) for side in sides]
        roots = []
        for side, mean in zip(sides, means, strict=True):
            root = (side - mean) / np.sqrt(len(side) - 1)  # root^T root is the covariance
            roots.append(np.linalg.qr(root, mode="r") if len(root) > root.shape[1] else root)
        shared = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
        difference = means[0] - means[1]
        distance = float(difference @ difference + sum((root**2).sum() for root in roots) - 2 * shared)
        return max(0.0, distance)  # rounding leaves a little below 0 for equal sets


def _resized(image: np.ndarray) -> np.ndarray:
    channels = [Image.fromarray(image[..., c].astype(np.float32)) for c in range(3)]
    return np.stack([np.asarray(c.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)).clip(0, 255) for c in channels], -1)
