"""Model files: safetensors whose header holds the kind, the constructor's arguments and the origin.

Third-party weights are in `assets.catalogue`.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from face2scene.common.files import atomic_write, sha256_of
from face2scene.common.ledger import content, digest
from face2scene.common.provenance import provenance
from face2scene.common.shipped import portable


def recorded(*left_out: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a module's `__init__` to keep its arguments, but for `left_out`, as `self.config` for `save_weights`.

    Sequences become lists, and an argument that is a recorded module becomes its `config`.
    """

    def decorated(init: Callable[..., None]) -> Callable[..., None]:
        parameters = signature(init)

        @wraps(init)
        def recording(self: Any, *args: Any, **options: Any) -> None:
            given = parameters.bind(self, *args, **options)
            given.apply_defaults()
            init(self, *args, **options)
            values = list(given.arguments.items())[1:]
            self.config = {name: _plain(value) for name, value in values if name not in left_out}

        return recording

    return decorated


def _plain(value: Any) -> Any:
    if isinstance(value, nn.Module):
        return value.config
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def trained_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters that require gradients, and persistent buffers of the submodules that own such a parameter."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad} | _buffers(module, trained=True)


def all_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers; unlike `state_dict`, it keeps FSDP's gathered weights whole."""
    return dict(module.named_parameters()) | _buffers(module, trained=False)


def _buffers(module: nn.Module, *, trained: bool) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for prefix, child in module.named_modules():
        if not trained or any(p.requires_grad for p in child.parameters(recurse=False)):
            for name, buffer in child.named_buffers(prefix, recurse=False):
                if name.rpartition(".")[2] not in child._non_persistent_buffers_set:
                    found[name] = buffer
    return found


def save_weights(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    *,
    kind: str,
    config: Mapping[str, Any],
    about: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write tensors with a header.

    Args:
        kind: such as `fadex`; `load_weights` refuses another kind.
        config: the constructor's arguments, plain values.
        about: origin (steps, data, command); commit, versions and machine are added.
        dtype: of floating-point tensors in the file; None keeps theirs.
    """
    described = {**provenance(), **(about or {})}
    header = {"kind": kind} | {k: json.dumps(portable(v)) for k, v in (("config", config), ("about", described))}
    plain = {
        name: t.detach().to("cpu", dtype if dtype and t.is_floating_point() else t.dtype).contiguous().clone()
        for name, t in tensors.items()
    }
    with atomic_write(path) as partial:
        save_file(plain, partial, metadata=header)


def values_of(path: str | Path) -> str:
    """SHA-256 of the file's content; of weights without `about`, which differs between exports of equal values."""
    if Path(path).suffix != ".safetensors":
        return content(path)
    try:
        with open(path, "rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            start = file.tell()
        header["__metadata__"].pop("about", None)
        return digest([header, sha256_of(path, start)])
    except (ArithmeticError, LookupError, MemoryError, TypeError, ValueError):  # without metadata, or damaged
        return content(path)


def load_weights(path: str | Path, *, kind: str) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """Read a file of `save_weights`; returns tensors, config, about.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a complete safetensors file, or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There are no {kind} weights at {path}.")
    path.open("rb").close()  # safetensors says of a file that may not be read that there is none
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError) as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}). Fetch or train it again.") from error
    if header.get("kind") != kind:
        raise ValueError(f"{path} holds {header.get('kind', 'weights of unknown kind')!r}, not {kind!r}.")
    return tensors, _part(path, header, "config"), _part(path, header, "about")


def _part(path: Path, header: Mapping[str, str], key: str) -> dict[str, Any]:
    try:
        value = json.loads(header.get(key, ""))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"{path} has no readable {key!r} in its header. Fetch or train it again.")
    return value


@contextmanager
def rebuilding(path: str | Path) -> Iterator[None]:
    """Name the weights file in an error of a module that is built from its header.

    Raises:
        ValueError: in place of whatever the constructor makes of settings it does not know.
    """
    try:
        yield
    except OSError:
        raise  # such as a base that is not here
    except Exception as error:
        if str(path) in str(error):
            raise
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{path}: nothing can be built from its header ({reason}). Fetch or train it again."
        ) from error


def kind_of(path: str | Path) -> str:
    """The kind of a file of `save_weights`; empty if it cannot be read."""
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("kind", "")
    except (OSError, SafetensorError):
        return ""


def fit(module: nn.Module, tensors: Mapping[str, Tensor], *, expected: set[str], source: str | Path) -> None:
    """Load `tensors` into `module`; their names must be exactly `expected`, and every shape must match.

    Raises:
        ValueError: names missing and unknown tensors, or the shapes that differ.
    """
    missing, unknown = sorted(expected - tensors.keys()), sorted(tensors.keys() - expected)
    if missing or unknown:
        raise ValueError(
            f"{source} does not fit {type(module).__name__}: missing {missing[:5]}, unknown {unknown[:5]}. "
            "It was written for other settings; the file's header says which."
        )
    own = dict(module.named_parameters()) | dict(module.named_buffers())
    tensors = {n: t.reshape(1) if t.dim() == 0 and own[n].shape == (1,) else t for n, t in tensors.items()}
    wrong = [
        f"{n} {tuple(tensors[n].shape)} for {tuple(own[n].shape)}" for n in tensors if own[n].shape != tensors[n].shape
    ]
    if wrong:
        raise ValueError(f"{source} does not fit {type(module).__name__}: {'; '.join(wrong[:5])}.")
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)
