"""Training checkpoints: their content, atomic writing, and loading of the newest one."""

import logging
import shutil
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import extract_model_from_parallel
from safetensors.torch import load_file
from torch import nn

from face2scene.train.fsdp import full_tensor, shard_like
from face2scene.train.run import Run

log = logging.getLogger(__name__)


def keep_trained_only(models: list[nn.Module], weights: list[dict], folder: str) -> None:
    """Hook of `save_state`: drop frozen weights, such as a base of a billion, and keep buffers.

    Names are the module's own, without the wrapper's "module.", so that any number of processes can load the state.
    """
    for model, state in zip(models, weights, strict=True):
        inner = extract_model_from_parallel(model)
        frozen = {name for name, p in inner.named_parameters() if not p.requires_grad}
        keep = tuple(getattr(inner, "state_beside_training", ()))
        for name in list(state):
            tensor, plain = state.pop(name), name if inner is model else name.removeprefix("module.")
            if plain not in frozen or plain.startswith(keep):
                state[plain] = full_tensor(tensor)


def load_trained(models: list[nn.Module], folder: str) -> None:
    """Hook of `load_state`: load instead of accelerate, whose loading is strict or, with strict=False, unchecked.

    Raises:
        ValueError: trained weights are missing, or names are unknown.
    """
    while models:
        inner = extract_model_from_parallel(models.pop())
        path = Path(folder) / f"model{f'_{len(models)}' if models else ''}.safetensors"
        own = inner.state_dict(keep_vars=True)
        stored = {name: shard_like(t, own[name]) if name in own else t for name, t in load_file(path).items()}
        missing, unknown = inner.load_state_dict(stored, strict=False)
        trained = {name for name, p in inner.named_parameters() if p.requires_grad}
        lost = sorted(trained.intersection(missing))
        if lost or unknown:
            raise ValueError(
                f"{path} does not fit {type(inner).__name__}: missing {lost[:5]}, unknown {unknown[:5]}. It belongs to "
                "other settings: choose another name=..., or remove the run's folder."
            )


def save(accelerator: Accelerator, run: Run, step: int, keep: int) -> None:
    """Write `state/<step>` atomically, and delete all but the newest `keep` states."""
    folder = run.folder / "state"
    partial = folder / f".{step}.partial"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(folder / str(step), ignore_errors=True)
        partial.rename(folder / str(step))
        for old in states(run)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def states(run: Run) -> list[Path]:
    """State folders of a run, oldest first."""
    folder = run.folder / "state"
    found = [p for p in folder.iterdir() if p.name.isdigit()] if folder.is_dir() else []
    return sorted(found, key=lambda p: int(p.name))


def resume(accelerator: Accelerator, run: Run) -> None:
    """Load the newest state, if there is one."""
    found = states(run)
    if found:
        log.info("Going on from %s.", found[-1])
        accelerator.load_state(str(found[-1]))
