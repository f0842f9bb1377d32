"""Where a number or an image comes from: commit, library versions, processor or card, and what was given."""

import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from face2scene import __version__
from face2scene.common.ledger import content, digest
from face2scene.common.reproducibility import commit

_PACKAGES = "torch torchvision pyiqa numpy pillow diffusers transformers peft".split()  # noqa: SIM905


def provenance(
    *,
    weights: Mapping[str, str | Path] | None = None,
    config: Any = None,
    data: str | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """The record that goes with a result.

    Args:
        weights: files or folders by name; each is hashed once per process and state of the file.
        config: all settings; a digest of 16 hex digits is kept, or a given one.
        data: version of the data set, see `data.records.version_of`.
    """
    record = {"commit": _commit(), "versions": versions(), "machine": machine(device)}
    if weights is not None:
        record["weights"] = {
            name: {"file": Path(path).name, "sha256": content(path)}
            for name, path in weights.items()
            if Path(path).exists()
        }
    if config is not None:
        record["config"] = config if isinstance(config, str) else digest(config)
    return record | ({} if data is None else {"data": data})


@cache
def versions() -> dict[str, str]:
    """Versions of the packages that the numbers depend on, as far as they are installed."""
    found = {"face2scene": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def machine(device: torch.device | str) -> dict[str, Any]:
    """Device, threads, and processor or card, on which seconds and last digits depend."""
    device = torch.device(device)
    found = {"device": str(device), "threads": torch.get_num_threads(), "processor": _processor()}
    if device.type == "cuda":
        found["card"] = torch.cuda.get_device_name(device)
    return found


_commit = cache(commit)  # of the code that this process has loaded


@cache
def _processor() -> str:
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(errors="replace").splitlines() if facts.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
