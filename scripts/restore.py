"""Restore a photo or a folder: `python scripts/restore.py input=PHOTO_OR_FOLDER references=FOLDER output=FOLDER`."""

import logging
import sys
from pathlib import Path

import hydra
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from face2scene.eval.predict import restore_variants
from face2scene.eval.sweep import variant_folder
from face2scene.folders import WHY_LOG, find_jobs, restore_folder
from face2scene.pipeline import Face2ScenePipeline


@hydra.main(version_base="1.3", config_path="../configs", config_name="restore")
def main(cfg: DictConfig) -> None:
    """Load once, restore all, say what became of each; exit code 1 when a picture failed."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for option in ("input", "output"):
        if OmegaConf.is_missing(cfg, option):
            sys.exit(f"Say what to restore and where to put it: {option}=... is missing.")
    for option in ("input", "references", "truth"):
        if cfg[option] is not None and not Path(cfg[option]).exists():
            sys.exit(f"There is nothing at {option}={cfg[option]}.")
    options = OmegaConf.to_container(cfg.pipeline, resolve=True)
    several = None
    if isinstance(options["most_tokens"], list):
        several = ("tokens", options.pop("most_tokens"))
    elif isinstance(cfg.guidance, ListConfig):
        several = ("guidance", list(cfg.guidance))
    try:
        jobs = find_jobs(cfg.input, references=cfg.references, truth=cfg.truth)[: cfg.limit]
        print(f"{len(jobs)} picture(s); loading the models.", flush=True)
        pipeline = Face2ScenePipeline.from_files(
            cfg.restorer_weights,
            cfg.fadex_weights,
            base=cfg.base,
            ref_fr=instantiate(cfg.ref_fr) or None,
            detector=instantiate(cfg.faces) or None,
            device=cfg.device or ("cuda" if torch.cuda.is_available() else "cpu"),
            **options,
        )
        if several is not None:
            if (cfg.tokens_from, cfg.scale, cfg.format) != ("own", 1, "png"):
                sys.exit(f"With several values of {several[0]}: tokens_from=own, scale=1 and format=png, no others.")
            outcome = restore_variants(pipeline, jobs, cfg.output, *several, seed=cfg.seed)
            folders = ", ".join(variant_folder(several[0], value) for value in several[1])
        else:
            outcome = restore_folder(
                pipeline,
                jobs,
                cfg.output,
                tokens_from=cfg.tokens_from,
                seed=cfg.seed,
                guidance=cfg.guidance,
                scale=cfg.scale,
                file_format=cfg.format,
            )
            folders = "images"
    except (FileNotFoundError, ValueError, ModuleNotFoundError) as error:
        sys.exit(str(error))
    print(f"{outcome.restored} restored, {outcome.skipped} were finished before, {len(outcome.failed)} failed.")
    print(f"Pictures are in {Path(cfg.output) / folders}, the reasons in {Path(cfg.output) / WHY_LOG}.")
    for name, sentence in outcome.failed.items():
        print(f"  {name}: {sentence}", file=sys.stderr)
    if outcome.failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
