"""Identity similarity by a faces backend: `python scripts/calibrate_faces.py faces=open`."""

import logging

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from face2scene.cli.command_line import script
from face2scene.faces.calibrate import pairs, photos, table


@script("calibrate_faces", level=logging.ERROR)
def main(cfg: DictConfig) -> None:
    """Print one row of the table, and the photos that could not be used."""
    detector = instantiate(cfg.faces)
    people = {name: photos(places) for name, places in cfg.people.items()}
    found = pairs(people, photos(cfg.others), detector)
    backend = HydraConfig.get().runtime.choices.faces
    print(table(backend, detector.backend.identity_model, detector.same_threshold, found))
    for sentence in found.skipped:
        print(f"not used: {sentence}")


if __name__ == "__main__":
    main()
