"""Same and different people as a faces backend sees them: `python scripts/calibrate_faces.py faces=open`."""

import logging
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from face2scene.faces.calibrate import pairs, photos, table


@hydra.main(version_base="1.3", config_path="../configs", config_name="calibrate_faces")
def main(cfg: DictConfig) -> None:
    """Print one row of the table, and the photos that could not be used."""
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    try:
        detector = instantiate(cfg.faces)
        people = {name: photos(places) for name, places in cfg.people.items()}
        found = pairs(people, photos(cfg.others), detector)
    except (FileNotFoundError, ValueError) as error:  # what a person can cause: the sentence, not the stack
        sys.exit(str(error))
    print(
        table(
            {HydraConfig.get().runtime.choices.faces: (detector.backend.identity_model, detector.same_threshold, found)}
        )
    )
    for sentence in found.skipped:
        print(f"not used: {sentence}")


if __name__ == "__main__":
    main()
