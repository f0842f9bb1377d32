"""Training states: what is in them, how they are written whole, and which one a run goes on from.

`state/<step>/` holds model.safetensors, model_1.safetensors (trained weights and buffers of each model),
training.safetensors (optimizers, loss scaler, progress, averages: tensors, and the rest as JSON in its header) and
SHA256SUMS of them, which `sha256sum -c` reads too. None of these can run code. No state of a random generator is kept,
since the randomness of a step follows from its number alone.
"""

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from accelerate.utils import extract_model_from_parallel as unwrapped
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from face2scene.common.files import sha256_of, size_text, sync
from face2scene.common.model_files import trained_tensors
from face2scene.data.records import SUMS, read_sums, write_sums
from face2scene.train.fsdp import full_tensor, shard_like
from face2scene.train.run import Run

log = logging.getLogger(__name__)
_OTHERS = "training.safetensors"


@dataclass
class TrainingState:
    """What a run goes on from, written by the main process and read by all.

    Args:
        models, optimizers: after preparation; frozen weights, such as a base of a billion, are left out.
        others: further objects with state_dict and load_state_dict.
    """

    accelerator: Accelerator
    run: Run
    models: Sequence[nn.Module]
    optimizers: Sequence[Any]
    others: Sequence[Any]

    def save(self, step: int, keep: int) -> None:
        """Write `state/<step>`, whole and on the disk or not at all; of all states up to it, keep the newest `keep`."""
        tensors: dict[str, Tensor] = {}
        weights = [_weights(model) for model in self.models]  # of all processes: sharded ones are gathered
        tree = _split({name: part.state_dict() for name, part in self._parts().items()}, "", tensors)
        if self.accelerator.is_main_process:
            folder = self.run.folder / "state"
            partial = folder / f".{step}.partial"
            for old in folder.glob(".*.partial"):
                shutil.rmtree(old)
            partial.mkdir(parents=True)
            try:
                for number, values in enumerate(weights):
                    save_file(values, partial / _model_file(number))
                save_file(tensors, partial / _OTHERS, metadata={"tree": json.dumps(tree)})
                write_sums(partial, [(path.name, sha256_of(path)) for path in sorted(partial.iterdir())])
                for path in (*partial.iterdir(), partial):
                    sync(path)
                shutil.rmtree(folder / str(step), ignore_errors=True)
                partial.rename(folder / str(step))
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)  # a full disk gets its room back
                raise
            sync(folder)
            for old in [path for path in states(self.run) if int(path.name) <= step][:-keep]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def resume(self) -> None:
        """Load the newest state that is whole and can be read, if there is any state.

        Raises:
            ValueError: none is, or its weights do not fit the models.
        """
        main, why = self.accelerator.is_main_process, ""
        for folder in broadcast_object_list([states(self.run)[::-1]])[0]:
            why = broadcast_object_list([_damage(folder) if main else ""])[0] or self._load(folder)
            if not why:
                log.info("Going on from %s.", folder)
                return
            if main:
                log.warning("%s is passed over: %s.", folder, why)
        if why:
            raise ValueError(
                f"None of the training states in {self.run.folder / 'state'} is whole. Remove that folder, so that the "
                "same command starts from the beginning, or choose another name=..."
            )

    def check_room(self, keep: int) -> None:
        """Refuse a run whose states will not fit the disk, before its first step.

        Args:
            keep: states that stay; one more is there while it is written.

        Raises:
            ValueError: the folder of the run has less room than they need beside those already there.
        """
        weights = [t for model in self.models for t in trained_tensors(unwrapped(model)).values()]
        moments = [p for one in self.optimizers for group in one.param_groups for p in group["params"]] * 2  # Adam's
        averages = tree_leaves([one.state_dict() for one in self.others])
        size = sum(t.numel() * t.element_size() for t in [*weights, *moments, *averages] if isinstance(t, Tensor))
        there = sum(file.stat().st_size for state in states(self.run) for file in state.iterdir())
        need, free = (keep + 1) * size - there, shutil.disk_usage(self.run.folder).free
        if need > free:
            raise ValueError(
                f"{self.run.folder} has {size_text(free)} free and {keep + 1} training states need "
                f"{size_text(need)}: set paths.runs, or lower schedule.keep_states."
            )

    def check_finite(self, step: int) -> None:
        """Refuse to go on with weights that are not finite, before they are exported or saved.

        Raises:
            FloatingPointError: trained weights, or buffers beside them, are not finite on some process.
        """
        named = {name: t for model in self.models for name, t in trained_tensors(unwrapped(model)).items()}
        finite = torch.stack([torch.isfinite(full_tensor(t.detach())).all() for t in named.values()])
        if not self.accelerator.gather(finite.all()[None]).all():
            bad = [name for name, fine in zip(named, finite.tolist(), strict=True) if not fine]
            raise FloatingPointError(
                f"Weights are not finite after step {step} ({', '.join(bad[:5]) or 'on another process'}): they are "
                "neither saved nor exported, and the same command goes on from the last state. Lower the learning rate "
                "(with allow_config_change=true) or train in float32."
            )

    def _parts(self) -> dict[str, Any]:
        parts = {f"optimizer_{number}": part for number, part in enumerate(self.optimizers)}
        parts |= {f"other_{number}": part for number, part in enumerate(self.others)}
        return parts if self.accelerator.scaler is None else parts | {"scaler": self.accelerator.scaler}

    def _load(self, folder: Path) -> str:
        """Load a whole state; returns why it cannot be, and what it has loaded by then must be loaded anew."""
        files = [folder / _model_file(number) for number in range(len(self.models))]
        stored, parts = _read_others(folder, len(self.optimizers), len(self.others)), self._parts()
        missing = [path.name for path in files if not path.is_file()] + sorted(parts.keys() - stored.keys())
        if missing:
            raise ValueError(f"{folder} has no {missing[0]}. It belongs to other settings: choose another name=...")
        for path, model in zip(files, self.models, strict=True):
            _load_weights(unwrapped(model), path)
        for name, part in parts.items():
            try:
                part.load_state_dict(_fitted(part, stored[name]) if name.startswith("optimizer") else stored[name])
            except torch.OutOfMemoryError:
                raise
            except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
                return f"its {name} is none that can be loaded here ({type(error).__name__}: {error})"
        return ""


def states(run: Run) -> list[Path]:
    """State folders of a run, oldest first."""
    folder = run.folder / "state"
    found = [p for p in folder.iterdir() if p.name.isdigit()] if folder.is_dir() else []
    return sorted(found, key=lambda p: int(p.name))


def _model_file(number: int) -> str:
    return f"model{f'_{number}' if number else ''}.safetensors"


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Trained weights and all buffers, on the CPU, under the module's own names, for any number of processes."""
    inner = unwrapped(model)
    frozen = {name for name, p in inner.named_parameters() if not p.requires_grad}
    keep = tuple(getattr(inner, "state_beside_training", ()))
    state = inner.state_dict()
    return {name: _on_cpu(t) for name, t in state.items() if name not in frozen or name.startswith(keep)}


def _on_cpu(tensor: Tensor) -> Tensor:
    return full_tensor(tensor).detach().to("cpu", copy=True).contiguous()


def _load_weights(model: nn.Module, path: Path) -> None:
    own = model.state_dict(keep_vars=True)
    stored = load_file(path)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    lost, unknown = sorted(trained - stored.keys()), sorted(stored.keys() - own.keys())
    odd = sorted(name for name in own.keys() & stored.keys() if own[name].shape != stored[name].shape)
    if lost or unknown or odd:
        raise ValueError(
            f"{path} does not fit {type(model).__name__}: missing {lost[:5]}, unknown {unknown[:5]}, of another shape "
            f"{odd[:5]}. It belongs to other settings: choose another name=..., or remove the run's folder."
        )
    model.load_state_dict({name: shard_like(t, own[name]) for name, t in stored.items()}, strict=False)


def _damage(folder: Path) -> str:
    """Why a state is not whole, or is whole and cannot be read; empty if neither is so."""
    names = {path.name for path in folder.iterdir()}
    earlier = "optimizer.bin" in names  # it has no checksums
    if not earlier:
        if SUMS not in names:
            return f"it has no {SUMS}"
        sums = dict(read_sums(folder))
        if wrong := sorted((names - {SUMS}) ^ sums.keys()):
            return f"{wrong[0]} is missing, or {SUMS} does not list it"
        if wrong := [name for name, digest in sums.items() if sha256_of(folder / name) != digest]:
            return f"{wrong[0]} differs from its checksum"
    try:
        _read_others(folder, *(sum(n.startswith(s) for n in names) for s in ("optimizer", "custom_checkpoint"))).keys()
        for name in names:
            if name.startswith("model") and name.endswith(".safetensors"):
                with safe_open(folder / name, "pt"):
                    pass
    except Exception as error:  # a damaged file fails in any way
        how = "an earlier version wrote it, and" if earlier else "its checksums are right, but"
        return f"{how} it cannot be read as plain tensors ({type(error).__name__})"
    return ""


def _read_others(folder: Path, optimizers: int, others: int) -> dict[str, Any]:
    if (folder / "optimizer.bin").is_file():  # of an earlier version: pickles, of which only plain tensors are read
        bins = {f"optimizer_{n}": f"optimizer{f'_{n}' if n else ''}.bin" for n in range(optimizers)}
        bins |= {f"other_{n}": f"custom_checkpoint_{n}.pkl" for n in range(others)}
        bins |= {"scaler": "scaler.pt"} if (folder / "scaler.pt").is_file() else {}
        return {name: torch.load(folder / file, map_location="cpu", weights_only=True) for name, file in bins.items()}
    with safe_open(folder / _OTHERS, "pt") as file:
        return _joined(json.loads(file.metadata()["tree"]), file.get_tensor)


def _split(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """A state_dict as JSON; its tensors go to `tensors`. Mappings become pairs, because their keys may be numbers."""
    if isinstance(value, Tensor):
        tensors[name] = _on_cpu(value)
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"pairs": [[key, _split(one, f"{name}/{key}" if name else key, tensors)] for key, one in value.items()]}
    if isinstance(value, list | tuple):
        return [_split(one, f"{name}/{number}", tensors) for number, one in enumerate(value)]
    return value


def _joined(value: Any, tensor: Callable[[str], Tensor]) -> Any:
    if isinstance(value, list):
        return [_joined(one, tensor) for one in value]
    if not isinstance(value, dict):
        return value
    return tensor(value["tensor"]) if "tensor" in value else {k: _joined(one, tensor) for k, one in value["pairs"]}


def _fitted(optimizer: Any, state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state with the settings of its groups, which may have changed since it was stored, and the memory
    layout of its weights, which may decide the last digit of a step."""
    for own, group in zip(optimizer.param_groups, state["param_groups"], strict=False):  # others are refused in loading
        group.update({name: value for name, value in own.items() if name != "params"})
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    for number, values in state["state"].items():
        for key, value in values.items():
            like = weights[number]
            if isinstance(value, Tensor) and value.shape == like.shape and not like.is_contiguous():
                values[key] = torch.empty_like(like, dtype=value.dtype, device="cpu").copy_(value)
    return state
