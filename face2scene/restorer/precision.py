"""Half precision that overflows: the stage is run again in float32."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)


def finite(stage: str, network: nn.Module, run: Callable[[], Tensor]) -> Tensor:
    """What `run` gives; with `network` in float32 where half precision gave values that are not finite.

    Args:
        stage: what the log and the error call it.

    Raises:
        FloatingPointError: not finite in float32 either.
    """
    output = run()
    if torch.isfinite(output).all():
        return output
    half = any(p.dtype in (torch.bfloat16, torch.float16) for p in network.parameters())
    if half or torch.is_autocast_enabled(output.device.type):
        log.warning("The %s gave values that are not finite; it is run again in float32.", stage)
        with _in_float32(network), torch.autocast(output.device.type, enabled=False):
            output = run()
    if not torch.isfinite(output).all():
        raise FloatingPointError(
            f"The {stage} gives values that are not finite, in float32 too: the picture or the weights "
            "(restorer_weights) are damaged."
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
