"""Counts where the host needs a value of a tensor: on a GPU it waits there for everything that was queued before."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal"}
_INDEXED = {"aten::index", "aten::index_put", "aten::index_put_"}  # by a mask they need its number of places


class HostReads(TorchDispatchMode):
    """Names of the operations that made the host read, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        name = function._schema.name
        indices = args[1] if name in _INDEXED else ()
        masks = any(isinstance(index, torch.Tensor) and index.dtype is torch.bool for index in indices)
        if name in _READS or masks:
            self.found.append(name)
        return function(*args, **(kwargs or {}))


def without_optimizers(phases: Any) -> None:
    """Leave the optimizers out, whose step counts lie on the host anyway."""
    for phase in phases:
        phase.optimizer.step = lambda: None
