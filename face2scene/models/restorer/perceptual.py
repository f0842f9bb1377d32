"""The perceptual loss of the restorer's training."""

import warnings

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from face2scene.assets import catalogue
from face2scene.common.choices import one_of

_TRUNKS = {"vgg": "vgg16.safetensors", "alex": "alexnet.safetensors"}


class Perceptual(nn.Module):
    """LPIPS v0.1 on images in [-1, 1], mean over the batch, with frozen trunk and heads.

    Args:
        network: `vgg`, as S3Diff is trained with, or the lighter `alex`.

    Raises:
        MissingWeights: the trunk has not been fetched.
    """

    def __init__(self, network: str = "vgg"):
        super().__init__()
        import lpips

        one_of("restorer.perceptual", network, _TRUNKS)
        with warnings.catch_warnings():  # of torchvision, about an argument that lpips gives it
            warnings.simplefilter("ignore", UserWarning)
            self.network = lpips.LPIPS(net=network, pnet_rand=True, verbose=False).eval().requires_grad_(False)
        file = catalogue.folder("lpips") / _TRUNKS[network]
        trunk = load_file(file)  # features.N.weight, features.N.bias of the convolutions, in order
        convolutions = [m for m in self.network.net.modules() if isinstance(m, nn.Conv2d)]
        indices = sorted({int(name.split(".")[1]) for name in trunk})
        with torch.no_grad():
            for convolution, index in zip(convolutions, indices, strict=True):
                convolution.weight.copy_(trunk[f"features.{index}.weight"])
                assert convolution.bias is not None
                convolution.bias.copy_(trunk[f"features.{index}.bias"])

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return self.each(output, target).mean()

    def each(self, output: Tensor, target: Tensor) -> Tensor:
        """LPIPS of every image of the batch, (B,)."""
        return self.network(output, target).flatten()
