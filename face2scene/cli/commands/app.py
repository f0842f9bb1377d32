"""Serve the web page: `face2scene app [key=value ...]`, or `python scripts/app.py ...`; see configs/app.yaml."""

import logging

from omegaconf import DictConfig, OmegaConf

from face2scene.cli.app import AppController, build, launch
from face2scene.cli.command_line import script
from face2scene.cli.pipeline_config import best_ref_fr, development_of, named_keys, pipeline_of
from face2scene.cli.visitors import Limits
from face2scene.common.shipped import CONFIGS
from face2scene.models.fadex import Readout

log = logging.getLogger(__name__)
# Keys of restore.yaml that the page sets itself or has no use for.
RESTORE_ONLY = frozenset(
    ("input", "output", "references", "gt", "limit", "tokens_from", "burst_seconds", "scale", "format", "overwrite")
)


@script("app")
def main(cfg: DictConfig) -> None:
    """Load the models once and serve until Ctrl-C or SIGTERM."""
    logging.getLogger("face2scene").setLevel(logging.INFO)
    logging.getLogger("face2scene.models").setLevel(logging.WARNING)  # what it says of a training's parameters
    if not 0 < cfg.port < 65536:
        raise ValueError(f"port={cfg.port} does not exist: choose one from 1024 to 65535.")
    if unused := sorted(named_keys() & RESTORE_ONLY):
        raise ValueError(f"The page does not use {', '.join(unused)}: leave it out, or use face2scene restore.")
    if not cfg.ref_fr and "ref_fr" not in named_keys() and (best := best_ref_fr()) != "none":
        OmegaConf.update(cfg, "ref_fr", OmegaConf.load(CONFIGS / f"ref_fr/{best}.yaml"), merge=False)
        log.info("Stage I is ref_fr=%s, the best whose weights are here; ref_fr=none leaves it out.", best)
    pipeline = pipeline_of(cfg)
    pipeline.ready()
    readout = None
    try:
        readout = Readout(**cfg.readout) if cfg.readout else None
    except (OSError, ValueError) as error:
        if "readout" in named_keys():
            raise
        log.warning("The page has no table of degradation strengths: %s", error)
    guidance = pipeline.restorer.guidance if cfg.guidance is None else cfg.guidance
    reading = {"max_pixels": cfg.max_pixels, "development": development_of(cfg)}
    blocks = build(AppController(pipeline, readout, seed=cfg.seed, **reading), guidance=guidance)
    options = {name: cfg[name] for name in ("host", "port", "waiting", "largest_mb")}
    launch(blocks, **options, visitor=Limits(**cfg.visitor))


if __name__ == "__main__":
    main()
