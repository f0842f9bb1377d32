"""Serve the web page: `face2scene app [key=value ...]`, or `python scripts/app.py ...`; see configs/app.yaml."""

import logging

from omegaconf import DictConfig

from face2scene.cli.app import AppController, DegradationReadout, build, launch
from face2scene.cli.command_line import script
from face2scene.cli.pipeline_config import pipeline_of
from face2scene.cli.visitors import Limits


@script("app")
def main(cfg: DictConfig) -> None:
    """Load the models once and serve until Ctrl-C or SIGTERM."""
    logging.getLogger("face2scene").setLevel(logging.INFO)
    pipeline = pipeline_of(cfg)
    readout = DegradationReadout(**cfg.readout) if cfg.readout else None
    guidance = pipeline.restorer.guidance if cfg.guidance is None else cfg.guidance
    blocks = build(AppController(pipeline, readout, seed=cfg.seed, max_pixels=cfg.max_pixels), guidance=guidance)
    options = {name: cfg[name] for name in ("host", "port", "waiting", "largest_mb")}
    launch(blocks, **options, visitor=Limits(**cfg.visitor))


if __name__ == "__main__":
    main()
