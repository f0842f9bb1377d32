"""Our own code run without numbers: fake tensors have a shape, a dtype and a device, and neither values nor memory.

Everything is executed but the arithmetic, so memory and operations of a full-size training are known in seconds,
without a GPU and without weights. What a run reads from a tensor (a boolean, seeds, a norm) is answered with a
constant.
"""

import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry

from face2scene.eval.cost.cards import EFFICIENCY, LAUNCH, STREAMING, Card

aten = torch.ops.aten
PARTS = ("weights", "gradients", "optimiser", "kept for backward", "batch", "workspace")
_BLOCK = 512  # bytes, to which CUDA's allocator rounds up


@contextmanager
def fake_tensors() -> Iterator[None]:
    """Inside, every new tensor is fake, on the CPU or on a `cuda` device that need not exist.

    A forward pass on `cuda` raises RuntimeError where tensors of two devices meet. A backward pass works on the CPU
    only (torch's engine asks for the driver); norms are cast there under autocast as on CUDA, so that memory is CUDA's.
    """
    with ExitStack() as stack:
        # autocast on CUDA is else disabled, and refused in bfloat16, where there is no device
        stack.enter_context(mock.patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False))
        stack.enter_context(mock.patch("torch.cuda.is_bf16_supported", lambda *_: True))
        stack.enter_context(like_cuda())
        # draws until its values suit
        stack.enter_context(mock.patch("torch.nn.init._no_grad_trunc_normal_", lambda tensor, *_, **__: tensor))
        # weak references of the fake mode's memory do not hinder a module's move
        stack.enter_context(mock.patch("torch.utils.weakref.getweakrefs", lambda _: []))
        for mode in (FakeTensorMode(allow_non_fake_inputs=True), _Answers(), _Unread()):
            stack.enter_context(mode)
        yield


def _norm(own: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    # under autocast CUDA computes it in float32, and the CPU does not
    if torch.is_autocast_enabled("cpu"):
        args, kwargs = tree_map(lambda a: a.float() if isinstance(a, Tensor) else a, (args, kwargs))
    return own(*args, **kwargs)


def _attention(own: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, *args: Any, **kw: Any) -> Tensor:
    # CUDA's memory-efficient kernel takes values of another width, the CPU's fused one does not
    parts = value.split(query.shape[-1], dim=-1)
    return (
        torch.cat([own(query, key, part, *args, **kw) for part in parts], dim=-1)
        if len(parts) > 1
        else own(query, key, value, *args, **kw)
    )


_LIKE_CUDA = {"group_norm": _norm, "layer_norm": _norm, "scaled_dot_product_attention": _attention}


_READS = (aten._local_scalar_dense.default, aten.item.default, aten.is_nonzero.default)
_WHOLE = (*_READS, torch.ops.prim.device.default)  # not decomposed


@contextmanager
def like_cuda() -> Iterator[None]:
    """Inside, the CPU keeps what CUDA would: norms in float32 under autocast, no attention maps."""
    with ExitStack() as stack:
        for name, change in _LIKE_CUDA.items():
            stack.enter_context(mock.patch(f"torch.nn.functional.{name}", partial(change, getattr(F, name))))
        yield


class _Answers(TorchDispatchMode):
    """True, 1, and one element found, for what is read from fake tensors."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _READS and isinstance(args[0], FakeTensor):
            return True if args[0].dtype == torch.bool else 1.0 if args[0].is_floating_point() else 1
        if func is aten.nonzero.default and isinstance(args[0], FakeTensor):
            return torch.zeros(1, args[0].dim(), dtype=torch.long, device=args[0].device)
        return func(*args, **kwargs or {})


class _Unread(TorchFunctionMode):
    """No initial values, copies without storages, and arrays of zeros for fake tensors."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        if func is Tensor.__deepcopy__ and isinstance(args[0], FakeTensor):
            copy = args[0].detach().clone()
            copy = nn.Parameter(copy, args[0].requires_grad) if isinstance(args[0], nn.Parameter) else copy
            return args[1].setdefault(id(args[0]), copy)
        if func is Tensor.numpy and isinstance(args[0], FakeTensor):
            return np.zeros(tuple(args[0].shape), str(args[0].dtype).removeprefix("torch."))
        return func(*args, **kwargs)


def real() -> Any:
    """A context in `fake_tensors` whose tensors have values, for reading data."""
    return _disable_current_modes()


def faked(values: Any, device: str = "cpu") -> Any:
    """Fake tensors of the shapes and dtypes of those in `values`."""
    return tree_map(
        lambda v: torch.empty(v.shape, dtype=v.dtype, device=device) if isinstance(v, Tensor) else v, values
    )


@dataclass
class Work:
    """What a stage computes and moves, and its time on a card."""

    flops: float = 0.0
    bytes: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.flops + other.flops, self.bytes + other.bytes, self.seconds + other.seconds)

    def __mul__(self, times: float) -> "Work":
        return Work(self.flops * times, self.bytes * times, self.seconds * times)


class Costs(TorchDispatchMode):
    """Counts live memory, operations and bytes of everything that runs inside; on fake tensors and on real ones.

    Memory is that of tensors' storages: what kernels take internally is not seen. A kernel's time is the larger of its
    operations and of its reads and writes, each at the card's rate times an efficiency.

    Args:
        card: for the time; None counts none.
        efficiency: share of the card's arithmetic rate.
    """

    def __init__(self, card: Card | None = None, efficiency: float = EFFICIENCY):
        super().__init__()
        self.card, self.efficiency = card, efficiency
        self.part = "weights"  # of new tensors; empty: decided by the pass they are made in
        self.live: Counter[str] = Counter()
        self.peak: dict[str, int] = {}  # bytes by part, at the moment of most bytes
        self.work: dict[str, Work] = defaultdict(Work)
        self._stages = ["other"]
        self._held: dict[int, tuple[Any, str, int]] = {}  # id of a storage: weak reference, part, bytes

    def restart(self) -> None:
        """Forget the peak and the work so far; what lives is still counted."""
        self.peak, self.part = dict(self.live), ""
        self.work.clear()

    def assign(self, tensor: Tensor, part: str) -> None:
        """Count a tensor's storage to another part from now on."""
        key = id(tensor.untyped_storage())
        if key in self._held:
            reference, before, size = self._held[key]
            self._held[key] = reference, part, size
            self.live[before] -= size
            self.live[part] += size

    def stages(self, modules: Mapping[str, nn.Module]) -> None:
        """Count the forward passes of modules as stages of their names."""
        for name, module in modules.items():
            module.register_forward_pre_hook(lambda *_, name=name: self._stages.append(name))
            module.register_forward_hook(lambda *_: self._stages.pop() and None)

    def optimiser(self, optimizer: torch.optim.Optimizer) -> None:
        """Count its state, and the gradients of its weights."""
        optimizer.register_step_pre_hook(lambda *_: self._stepping(True))
        optimizer.register_step_post_hook(lambda *_: self._stepping(False))
        for group in optimizer.param_groups:
            group["foreach"] = True  # as on CUDA
            for weight in group["params"]:
                weight.register_post_accumulate_grad_hook(lambda p: self.assign(p.grad, "gradients"))

    def _stepping(self, starts: bool) -> None:
        self.part = "optimiser" if starts else ""
        if starts:
            self._stages.append("optimiser")
        else:
            self._stages.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.is_inference_mode_enabled() and func not in _WHOLE:  # operations arrive there before their parts
            with self:
                parts = func.decompose(*args, **(kwargs or {}))
            if parts is not NotImplemented:
                return parts
        out = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        for tensor in made:
            self._hold(tensor)
        if (
            self.part != "weights"
            and made
            and not (func.is_view or func in (aten.empty.memory_format, aten.detach.default))
        ):
            self._count(func, args, kwargs or {}, out, made)
        return out

    def _hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._held:
            return
        backward = torch._C._current_graph_task_id() != -1
        part = self.part or ("workspace" if backward or not torch.is_grad_enabled() else "kept for backward")
        size = -(-storage.nbytes() // _BLOCK) * _BLOCK
        self._held[key] = weakref.ref(storage, lambda _, key=key: self._release(key)), part, size
        self.live[part] += size
        if self.live.total() > sum(self.peak.values()):
            self.peak = dict(self.live)

    def _release(self, key: int) -> None:
        _, part, size = self._held.pop(key)
        self.live[part] -= size

    def _count(self, func: Any, args: Any, kwargs: Any, out: Any, made: list[Tensor]) -> None:
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        moved = sum(min(t.numel() * t.element_size(), t.untyped_storage().nbytes()) for t in (*read, *made))
        formula = flop_registry.get(func._overloadpacket)
        flops = formula(*args, **kwargs, out_val=out) if formula else 0
        seconds = 0.0
        if self.card:
            dtype = next((t.dtype for t in (*read, *made) if t.is_floating_point()), torch.float32)
            tf32 = torch.backends.cuda.matmul.allow_tf32 or "convolution" in func.__name__
            rate = self.card.rate(dtype.itemsize, tf32=tf32)
            seconds = max(LAUNCH, flops / rate / self.efficiency, moved / (self.card.bandwidth * 1e9 * STREAMING))
        backward = torch._C._current_graph_task_id() != -1
        stage = "backward" if backward else self._stages[-1]
        self.work[stage] = self.work[stage] + Work(flops, moved, seconds)
