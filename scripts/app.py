"""Serve the web page: `face2scene app [key=value ...]`, or `python scripts/app.py ...`; see configs/app.yaml."""

import logging
import sys

import hydra
import torch
from omegaconf import DictConfig
from restore import pipeline_of

from face2scene.app import Instrument, Page, build, launch
from face2scene.memory import keep_freed_memory


@hydra.main(version_base="1.3", config_path="../configs", config_name="app")
def main(cfg: DictConfig) -> None:
    """Load the models once and serve until Ctrl-C."""
    keep_freed_memory()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("face2scene").setLevel(logging.INFO)
    device = torch.device(cfg.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        pipeline = pipeline_of(cfg, device)
        instrument = Instrument(**cfg.readout) if cfg.readout else None
        guidance = pipeline.restorer.guidance if cfg.guidance is None else cfg.guidance
        blocks = build(Page(pipeline, instrument, seed=cfg.seed), guidance=guidance)
        launch(blocks, **{name: cfg[name] for name in ("host", "port", "waiting", "largest_mb")})
    except (OSError, ValueError, ModuleNotFoundError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
