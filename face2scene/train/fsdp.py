"""Fully sharded training (FSDP): each process keeps a part of every weight and gathers a block when it needs it.

`accelerate launch --config_file configs/accelerate/fsdp.yaml` asks for it. accelerate 1.15 itself shards on
accelerators alone (its state knows FSDP for MULTI_GPU and its like, not for MULTI_CPU), so the launch file's wish is
taken here and carried out by torch's `fully_shard`, which is the same code on GPUs with NCCL and on CPUs with gloo.
States on disk hold whole tensors, as any other state: any number of processes goes on from them, sharded or not.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

_NEVER_CALLED = (nn.ModuleList, nn.ModuleDict, AutoencoderKL)  # their parts are called, they are not


def fsdp_min_params() -> int | None:
    """What the launch file asks for: shard modules from this many weights on; None shards nothing.

    To be called before `Accelerator()`, from which the wish is then hidden.
    """
    if os.environ.pop("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return None
    return int(os.environ.get("FSDP_MIN_NUM_PARAMS") or 0) or 1_000_000


def shard(
    accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, *, least: int
) -> tuple[nn.Module, Any]:
    """`accelerator.prepare` for a model whose weights are to be spread over the processes.

    Args:
        model: changed in place: its parameters become DTensors, those of `optimizer` with them.
        optimizer: before its first step.
        least: modules of this many weights are gathered and freed as one; the model's rest is another.

    Raises:
        ValueError: one process alone.
    """
    if accelerator.num_processes < 2:
        raise ValueError(
            "Sharding needs two processes or more and there is one: give --num_processes, or take "
            "configs/accelerate/one_gpu.yaml."
        )
    model = accelerator.prepare_model(model, evaluation_mode=True)  # moved and under autocast, but no DDP around it
    names = {id(p): name for name, p in model.named_parameters()}
    for tensor in (*model.parameters(), *model.buffers()):
        torch.distributed.broadcast(tensor.data, 0)  # as DDP does: all start from the first one's
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for module in _units(model, least):
        fully_shard(module, mesh=mesh)
    now = dict(model.named_parameters())
    for group in optimizer.param_groups:
        group["params"] = [now[names[id(p)]] for p in group["params"]]
    optimizer.register_state_dict_post_hook(lambda _, state: _mapped(state, full_tensor))
    optimizer.register_load_state_dict_pre_hook(_shard_state)
    return model, accelerator.prepare(optimizer)


def full_tensor(tensor: Any) -> Any:
    """The gathered tensor of a DTensor, on every process; all of them must ask. Anything else as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """What `like` would be if it held `tensor`: this process's part where `like` is sharded. Nothing is sent."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


@contextmanager
def summon_full_params(*models: nn.Module) -> Iterator[None]:
    """Inside, every sharded weight of `models` is whole on every process, to be read and not to be trained.

    Gradients and optimisers belong outside, and so does `state_dict`, which takes the weights apart again. Without
    sharding nothing happens.
    """
    units = [m for model in models for m in model.modules() if isinstance(m, FSDPModule)]
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.set_reshard_after_forward(True, recurse=False)
            unit.reshard()


def _units(model: nn.Module, least: int) -> list[nn.Module]:
    # From the leaves up, and a module's weights count once; the model itself is always one.
    units: list[nn.Module] = []

    def visit(module: nn.Module) -> int:
        own = sum(p.numel() for p in module.parameters(recurse=False))
        total = own + sum(visit(child) for child in module.children())
        if module is model or (total >= least and not isinstance(module, _NEVER_CALLED)):
            units.append(module)
            return 0
        return total

    visit(model)
    return units


def _mapped(value: Any, change: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _mapped(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_mapped(item, change) for item in value)
    return change(value)


def _shard_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    parameters: Iterable[Tensor] = (p for group in optimizer.param_groups for p in group["params"])
    sharded = {}
    for number, parameter in enumerate(parameters):
        values = state["state"].get(number, {})
        sharded[number] = {
            key: shard_like(value, parameter)
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.dim()
            else value
            for key, value in values.items()
        }
    return state | {"state": sharded}
