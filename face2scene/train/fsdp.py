"""Fully sharded training (FSDP): each process keeps a part of every weight and gathers a block when it needs it.

`accelerate launch --config_file configs/accelerate/fsdp.yaml` enables it. accelerate 1.15 shards on accelerators alone
(its state has FSDP for MULTI_GPU and the like, not for MULTI_CPU), so the settings of the launch file are read here and
torch's `fully_shard` does the work: the same code on GPUs with NCCL and on CPUs with gloo. States on disk hold full
tensors, so any number of processes can resume from them, sharded or not.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import recursively_apply
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

_NO_FORWARD = (nn.ModuleList, nn.ModuleDict, AutoencoderKL)  # only their children's forward is called


def fsdp_min_params() -> int | None:
    """FSDP_MIN_NUM_PARAMS of the launch file, the smallest module to shard; None without FSDP.

    Call it before `Accelerator()`: it removes the setting from the environment.
    """
    if os.environ.pop("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return None
    return int(os.environ.get("FSDP_MIN_NUM_PARAMS") or 0) or 1_000_000


def shard(
    accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, *, min_params: int
) -> tuple[nn.Module, Any]:
    """`accelerator.prepare` for a model whose weights are sharded over the processes.

    Args:
        model: changed in place: its parameters, and the optimizer's, become DTensors.
        optimizer: before its first step.
        min_params: modules of at least so many weights are gathered and freed as one; the rest of the model is another.

    Raises:
        ValueError: there is only one process.
    """
    if accelerator.num_processes < 2:
        raise ValueError(
            "Sharding needs two processes or more and there is one: give --num_processes, or take "
            "configs/accelerate/one_gpu.yaml."
        )
    model = accelerator.prepare_model(model, evaluation_mode=True)  # moved, with autocast, without DDP
    names = {id(p): name for name, p in model.named_parameters()}
    for tensor in (*model.parameters(), *model.buffers()):
        torch.distributed.broadcast(tensor.data, 0)  # as DDP does: rank 0's values
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for module in _units(model, min_params):
        fully_shard(module, mesh=mesh)
    now = dict(model.named_parameters())
    for group in optimizer.param_groups:
        group["params"] = [now[names[id(p)]] for p in group["params"]]
    optimizer.register_state_dict_post_hook(
        lambda _, state: recursively_apply(full_tensor, state, test_type=lambda value: isinstance(value, DTensor))
    )
    optimizer.register_load_state_dict_pre_hook(_shard_state)
    return model, accelerator.prepare(optimizer)


def full_tensor(tensor: Any) -> Any:
    """The gathered tensor of a DTensor, a collective operation; anything else is returned as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """`tensor` sharded as `like` is, without communication; as it is if `like` is not, or if it is itself."""
    if not isinstance(like, DTensor) or isinstance(tensor, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


@contextmanager
def summon_full_params(*models: nn.Module) -> Iterator[None]:
    """Inside, every sharded weight of `models` is complete on every process, for reading only.

    No gradients, optimizer steps or `state_dict`, which shards the weights again. Does nothing without sharding.
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


def _units(model: nn.Module, min_params: int) -> list[nn.Module]:
    # From the leaves up; weights are counted once, and the model itself is always a unit.
    units: list[nn.Module] = []

    def visit(module: nn.Module) -> int:
        own = sum(p.numel() for p in module.parameters(recurse=False))
        total = own + sum(visit(child) for child in module.children())
        if module is model or (total >= min_params and not isinstance(module, _NO_FORWARD)):
            units.append(module)
            return 0
        return total

    visit(model)
    return units


def _shard_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    sharded = {}
    for number, parameter in enumerate(parameters):
        sharded[number] = {
            key: shard_like(value, parameter) if getattr(value, "shape", None) == parameter.shape else value
            for key, value in state["state"].get(number, {}).items()
        }
    return state | {"state": sharded}
