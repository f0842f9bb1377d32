"""The repository's configurations, composed, and what their targets do not accept."""

import inspect
from collections.abc import Iterator
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

import face2scene.cli.command_line  # noqa: F401  # registers the resolver of configs/paths
from face2scene.common.reproducibility import REPOSITORY

CONFIGS = REPOSITORY / "configs"
TINY = ("data=tiny", "degradation=tiny", "fadex=tiny", "mapnet=tiny", "restorer=tiny", "train=tiny")


def paths_below(folder: Path) -> list[str]:
    """Options that keep data and runs in a test's folder, and read the shipped weights."""
    return [f"paths.data={folder}/data", f"paths.runs={folder}/runs", f"paths.shipped={REPOSITORY}/checkpoints"]


def compose_config(root: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(root, list(overrides))


def iter_targets(node: object, path: str = "") -> Iterator[tuple[str, dict]]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for key, value in node.items():
            yield from iter_targets(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from iter_targets(value, f"{path}[{number}]")


def unknown_arguments(config: DictConfig) -> list[str]:
    """A sentence for every `_target_` that is given an argument it does not have."""
    plain = OmegaConf.to_container(config, resolve=True)
    complaints = []
    for path, node in iter_targets(plain):
        accepted = inspect.signature(get_object(node["_target_"])).parameters
        given = {key for key in node if not key.startswith("_")}
        if given - accepted.keys() and not any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
            complaints.append(f"{path}: {node['_target_']} has no {sorted(given - accepted.keys())}")
    return complaints
