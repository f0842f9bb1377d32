"""Another degradation for a set's validation images: `python scripts/redegrade.py degradation=... output=FOLDER`."""

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from face2scene.cli.command_line import script
from face2scene.data.redegrade import redegrade


@script("redegrade", required=["output"])
def main(cfg: DictConfig) -> None:
    """Degrade the set anew and print the number of pairs."""
    settings = {"degradation": OmegaConf.to_container(cfg.degradation, resolve=True)}
    space = instantiate(cfg.degradation, _convert_="all")
    count = redegrade(cfg.data.root, cfg.output, space, settings=settings, seed=cfg.seed)
    print(f"{cfg.output}: {count} pairs of {cfg.data.root} under another degradation.")


if __name__ == "__main__":
    main()
