"""Stage I and face detectors by the names of their configurations: `ref_fr="real_esrgan"`, `detector="open"`."""

from difflib import get_close_matches
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from face2scene.common.shipped import CONFIGS

GROUPS = {"ref_fr": "ref_fr", "detector": "faces"}  # argument of the pipeline -> folder of configs/


def with_parts(options: dict[str, Any]) -> dict[str, Any]:
    """Options of the pipeline whose `ref_fr` and `detector` are objects (or None) where they were names.

    Raises:
        ValueError: no such name; the message lists those that exist.
    """
    return options | {
        key: _part(key, value) for key, value in options.items() if key in GROUPS and isinstance(value, str)
    }


def _part(argument: str, name: str) -> Any:
    group = GROUPS[argument]
    known = sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))
    if name not in known:
        near = "".join(f" Did you mean {one!r}?" for one in get_close_matches(name, known, 1))
        raise ValueError(f"There is no {argument}={name!r}: choose {', '.join(known)}.{near}")
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        composed = compose(None, ["+paths=default", f"+{group}={name}"])
    if missing := OmegaConf.missing_keys(composed[group]):  # of paths/ only what the group uses is resolved
        raise ValueError(
            f"{argument}={name!r} has no {', '.join(sorted(missing))}: build the object with them instead."
        )
    try:
        return instantiate(composed[group], _convert_="all") or None
    except InstantiationException as error:  # the part's own error says more
        raise error.__cause__ or error from None
