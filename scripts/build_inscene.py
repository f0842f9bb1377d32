"""Build an InScene dataset: `accelerate launch scripts/build_inscene.py data=quickstart`.

Stop it at any moment and start it again with the same command; a finished set is left as it is.
"""

from time import perf_counter

import hydra
from accelerate import Accelerator
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from face2scene.data.build import build
from face2scene.data.real import Photos

# What the pictures do not depend on; two builds that differ only here are the same build.
_FREE = ("root", "overwrite", "name", "jsonl")


@hydra.main(version_base="1.3", config_path="../configs", config_name="build_inscene")
def main(cfg: DictConfig) -> None:
    """Sources from the configuration, one build, one printed summary."""
    start = perf_counter()
    state = Accelerator()
    data = cfg.data
    detector = instantiate(cfg.faces)
    common = {"size": data.size, "reference_size": data.reference_size}
    sources = []
    for source in data.sources.values():
        given = {} if "detector" in source else {"detector": detector}  # a source may say null
        sources.append(instantiate(source, **common, **given, _convert_="all"))
    folders = OmegaConf.to_container(OmegaConf.create({"photos": data.photos}))["photos"] or []
    for number, folder in enumerate([folders] if isinstance(folders, str) else folders):
        sources.append(
            Photos(
                folder,
                detector,
                name=f"photos{number}",
                split=data.photos_split,
                licence="the owner's",
                **common,
            )
        )
    settings = {
        "data": {k: v for k, v in OmegaConf.to_container(data, resolve=True).items() if k not in _FREE},
        "faces": OmegaConf.to_container(cfg.faces, resolve=True),
        "degradation": OmegaConf.to_container(cfg.degradation, resolve=True),
    }
    summary = build(
        data.root,
        sources,
        settings=settings,
        space=instantiate(cfg.degradation),
        size=data.size,
        seed=data.seed,
        max_references=data.max_references,
        reference_threshold=data.reference_threshold,
        jsonl=data.jsonl,
        overwrite=data.overwrite,
        rank=state.process_index,
        processes=state.num_processes,
        wait=state.wait_for_everyone,
    )
    if state.is_main_process:
        print(summary)
        print(f"built in {perf_counter() - start:.1f} s" if summary.built else "was built before; nothing to do")


if __name__ == "__main__":
    main()
