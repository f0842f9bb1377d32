"""Faster and safer inference: fused upsampling, and a second run in float32 where half precision overflows."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.nn import functional as F

log = logging.getLogger(__name__)
# (2, 2, 3): which taps of a 3-tap kernel fall on each of the 2 source pixels, for output phase 0 and 1.
_FOLD = torch.tensor([[[1.0, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])


def fuse_upsample_conv(network: nn.Module) -> int:
    """Compute nearest upsampling and the 3 x 3 convolution behind it at once; weights and their names stay.

    2.25 times fewer products: over a quarter of the decoder's work, and part of the UNet's. For inference; speed was
    not measured for training.

    Returns:
        The number of changed modules.
    """
    fitting = [m for m in network.modules() if type(m) is Upsample2D and _fits(m)]
    for module in fitting:
        module.__class__ = _FusedUpsample
    return len(fitting)


def upsampled_convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """conv2d(nearest upsampling of x by 2, weight, bias, padding=1): (B, C, h, w) to (B, D, 2 h, 2 w).

    For each of the four output phases, the taps that read the same source pixel add up to a 2 x 2 kernel (16 products
    in place of 36). Equal up to rounding.
    """
    fold = _FOLD.to(weight.device)
    small = torch.einsum("apk,bql,oikl->aboipq", fold, fold, weight.float()).to(weight.dtype)
    output = F.conv2d(x, small.flatten(0, 2), None if bias is None else bias.repeat(4), padding=1)
    height, width = x.shape[-2:]
    a_b = output.unflatten(1, (2, 2, -1))  # (B, 2, 2, D, h + 1, w + 1)
    result = x.new_empty(len(x), len(weight), 2 * height, 2 * width, dtype=output.dtype)
    for a in range(2):
        for b in range(2):
            result[:, :, a::2, b::2] = a_b[:, a, b, :, a : a + height, b : b + width]
    return result


def _fits(module: Upsample2D) -> bool:
    conv = getattr(module, "conv", None)
    if not isinstance(conv, nn.Conv2d) or module.norm is not None or module.use_conv_transpose:
        return False
    return (conv.kernel_size, conv.stride, conv.padding) == ((3, 3), (1, 1), (1, 1))


class _FusedUpsample(Upsample2D):
    def forward(
        self, hidden_states: Tensor, output_size: Sequence[int] | None = None, *args: object, **kwargs: object
    ) -> Tensor:
        double = tuple(2 * side for side in hidden_states.shape[-2:])
        if output_size is not None and tuple(output_size) != double:
            return super().forward(hidden_states, output_size, *args, **kwargs)
        return upsampled_convolution(hidden_states, self.conv.weight, self.conv.bias)


def run_with_fp32_fallback(stage: str, network: nn.Module, run: Callable[[], Tensor]) -> Tensor:
    """The result of `run`, repeated with `network` in float32 where half precision gave values that are not finite.

    Args:
        stage: name for the log and the error.

    Raises:
        FloatingPointError: not finite in float32 either.
    """
    output = run()
    if torch.isfinite(output).all():
        return output
    half = any(p.dtype in (torch.bfloat16, torch.float16) for p in network.parameters())
    if half or torch.is_autocast_enabled(output.device.type):
        log.warning("The %s gave values that are not finite; it runs again in float32.", stage)
        with _in_float32(network), torch.autocast(output.device.type, enabled=False):
            output = run()
    if not torch.isfinite(output).all():
        raise FloatingPointError(
            f"The {stage} gives values that are not finite, in float32 too: the image or the weights "
            "(restorer_weights) are corrupt."
        )
    return output


@contextmanager
def _in_float32(network: nn.Module) -> Iterator[None]:
    own = [(parameter, parameter.data) for parameter in network.parameters()]
    for parameter, data in own:
        parameter.data = data.float()
    try:
        yield
    finally:
        for parameter, data in own:
            parameter.data = data
