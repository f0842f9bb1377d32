"""Winograd's convolution on a CPU: a quarter of the multiplications of a 3 x 3 one, for the VGG16 of the metrics.

A 4 x 4 patch of the output is computed from 6 x 6 of the input with 36 multiplications in place of 144 (Lavin and Gray,
"Fast Algorithms for Convolutional Neural Networks", 2016, F(4 x 4, 3 x 3)). Values differ from the direct
convolution's by about 1e-5 of their size, in float32.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_INPUT = ((4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0))
_INPUT += ((0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0), (0, 4, 0, -5, 0, 1))
_KERNEL = ((1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6))
_KERNEL += ((1 / 24, 1 / 12, 1 / 6), (1 / 24, -1 / 12, 1 / 6), (0, 0, 1))
_OUTPUT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))
_PATCHES = 128  # transformed at a time, so that they stay in a core's cache
_MIN_CHANNELS = 64  # input channels from which this is faster than the direct convolution


class WinogradReLU(nn.Module):
    """A 3 x 3 convolution (stride 1, one pixel of zeros around) and the ReLU after it, for inference on a CPU."""

    def __init__(self, convolution: nn.Conv2d):
        super().__init__()
        transform = torch.tensor(_KERNEL, dtype=torch.float64)
        kernels = torch.einsum("ai,bj,ocij->abco", transform, transform, convolution.weight.detach().double())
        self.register_buffer("kernels", kernels.flatten(0, 1).float().contiguous())  # (36, in, out)
        self.register_buffer("bias", convolution.bias.detach().clone())
        for name, matrix in (("into", _INPUT), ("out_of", _OUTPUT)):
            square = torch.tensor(matrix, dtype=torch.float64)
            self.register_buffer(name, torch.kron(square, square).float())

    def forward(self, images: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H, W), in memory as channels last."""
        batch, channels, height, width = images.shape
        wide, high, outputs = -(-width // 4), -(-height // 4), self.kernels.shape[2]
        channels_last = images.permute(0, 2, 3, 1).contiguous()
        padded = F.pad(channels_last, (0, 0, 1, 4 * wide + 1 - width, 1, 4 * high + 1 - height)).contiguous()
        result = padded.new_empty(batch, 4 * high, 4 * wide, outputs)
        rows_at_once = max(1, min(high, _PATCHES // wide))  # rows of patches
        per_image, per_row, per_column, _ = padded.stride()
        strides = (per_row, per_column, 4 * per_row, 4 * per_column, 1)
        work: dict[int, list[Tensor]] = {}
        for image in range(batch):
            for top in range(0, high, rows_at_once):
                rows = min(rows_at_once, high - top)
                count = rows * wide
                if rows not in work:
                    shapes = ((6, 6, rows, wide, channels), (36, count * channels), (36, count, outputs))
                    work[rows] = [padded.new_empty(shape) for shape in (*shapes, (16, count * outputs))]
                patches, spread, products, gathered = work[rows]
                start = image * per_image + 4 * top * per_row
                patches.copy_(padded.as_strided((6, 6, rows, wide, channels), strides, start))
                torch.mm(self.into, patches.view(36, -1), out=spread)
                torch.bmm(spread.view(36, count, channels), self.kernels, out=products)
                torch.mm(self.out_of, products.view(36, -1), out=gathered)
                made = gathered.view(4, 4, rows, wide, outputs)
                made.add_(self.bias).clamp_min_(0)
                target = result[image, 4 * top : 4 * (top + rows)].view(rows, 4, wide, 4, outputs)
                target.copy_(made.permute(2, 0, 3, 1, 4))
        return result[:, :height, :width].permute(0, 3, 1, 2)


def use_winograd(layers: nn.Sequential) -> nn.Sequential:
    """The same layers with every suitable convolution and the ReLU after it replaced."""
    replaced: list[nn.Module] = []
    for layer in layers:
        if isinstance(layer, nn.ReLU) and replaced and _suits(replaced[-1]):
            replaced[-1] = WinogradReLU(replaced[-1])
        else:
            replaced.append(layer)
    return nn.Sequential(*replaced)


def _suits(layer: nn.Module) -> bool:
    return (
        isinstance(layer, nn.Conv2d)
        and layer.in_channels >= _MIN_CHANNELS
        and (layer.kernel_size, layer.stride, layer.padding, layer.dilation) == ((3, 3), (1, 1), (1, 1), (1, 1))
        and layer.groups == 1
        and layer.bias is not None
    )
