"""Another damage for a set's validation pictures: `python scripts/damage_again.py degradation=... output=FOLDER`."""

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from face2scene.cli.command_line import script
from face2scene.data.redegrade import damage_again


@script("damage_again", required=["output"])
def main(cfg: DictConfig) -> None:
    """Draw, apply, say how many."""
    settings = {"degradation": OmegaConf.to_container(cfg.degradation, resolve=True)}
    space = instantiate(cfg.degradation, _convert_="all")
    count = damage_again(cfg.data.root, cfg.output, space, settings=settings, seed=cfg.seed)
    print(f"{cfg.output}: {count} pairs of {cfg.data.root} under another damage.")


if __name__ == "__main__":
    main()
