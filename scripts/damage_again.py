"""Another damage for a set's validation pictures: `python scripts/damage_again.py degradation=... output=FOLDER`."""

import sys

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from face2scene.data.again import damage_again
from face2scene.data.build import BuildError


@hydra.main(version_base="1.3", config_path="../configs", config_name="damage_again")
def main(cfg: DictConfig) -> None:
    """Draw, apply, say how many."""
    if OmegaConf.is_missing(cfg, "output"):
        sys.exit("Say where to put the set: output=... is missing.")
    settings = {"degradation": OmegaConf.to_container(cfg.degradation, resolve=True)}
    try:
        space = instantiate(cfg.degradation, _convert_="all")
        count = damage_again(cfg.data.root, cfg.output, space, settings=settings, seed=cfg.seed)
    except (FileNotFoundError, BuildError, ValueError) as error:
        sys.exit(str(error))
    print(f"{cfg.output}: {count} pairs of {cfg.data.root} under another damage.")


if __name__ == "__main__":
    main()
