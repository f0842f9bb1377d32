"""Build an InScene dataset: `face2scene build-inscene data=quickstart`.

It can be stopped at any moment; the same command goes on from there, and leaves a finished set as it is. The exit code
is 0, 1 when the set could not be built, or data.quarantine_exit when some input could not be read.
"""

import sys
from collections.abc import Callable
from functools import cache
from time import perf_counter
from typing import Any

from accelerate import Accelerator
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from face2scene.cli.command_line import script
from face2scene.common.memory import best_device
from face2scene.data.building.build import ImageSource, build
from face2scene.data.building.filters import thresholds
from face2scene.data.building.finalize import FinalizePlan, Selection
from face2scene.data.building.identity_clusters import Grouping
from face2scene.data.sources.photo_folder import Photos
from face2scene.eval.metrics.registry import METRICS, Pyiqa
from face2scene.faces.detect import Detector

# Settings that do not decide the images: builds that differ only here are the same.
_FREE = ("root", "overwrite", "name", "jsonl", "quarantine_exit")


@script("build_inscene")
def main(cfg: DictConfig) -> None:
    """Sources from the configuration, one build, one printed summary."""
    start = perf_counter()
    state = Accelerator(cpu=best_device().type == "cpu")  # without cpu=True, CPU processes would not join
    data = cfg.data
    if "mix" in data:
        raise ValueError(
            f"data={data.name} is a mix of sets for trainings: build its parts, such as inscene_synthetic."
        )
    detector = instantiate(cfg.faces)
    sources = _sources(data, detector, _metrics(state.device), str(state.device))
    settings = {
        "data": {k: v for k, v in OmegaConf.to_container(data, resolve=True).items() if k not in _FREE},
        "faces": OmegaConf.to_container(cfg.faces, resolve=True),
        "degradation": OmegaConf.to_container(cfg.degradation, resolve=True),
    }
    summary = build(
        data.root,
        sources,
        settings=settings,
        space=instantiate(data.get("space") or cfg.degradation, _convert_="all"),
        seed=data.seed,
        plan=_plan(data, sources, detector),
        jsonl=data.jsonl,
        overwrite=data.overwrite,
        rank=state.process_index,
        processes=state.num_processes,
        wait=state.wait_for_everyone,
    )
    if state.is_main_process:
        print(summary)
        print(f"built in {perf_counter() - start:.1f} s" if summary.built else "was built before; nothing to do")
    if summary.quarantined and summary.built:
        sys.exit(data.get("quarantine_exit", 0))


def _sources(data: DictConfig, detector: Detector, metric: Callable[[str], Any], device: str) -> list[ImageSource]:
    common = {"size": data.size, "reference_size": data.reference_size, "detector": detector}
    sources = []
    for source in filter(None, (data.get("sources") or {}).values()):
        given = common | ({"metric": metric, "device": device} if "stages" in source else {})
        given = {key: value for key, value in given.items() if key not in source}  # a source may say null
        # Objects go to the class itself: as arguments of instantiate, dataclasses would become mappings.
        sources.append(instantiate(source, _partial_=True, _convert_="all")(**given))
    folders = OmegaConf.to_container(OmegaConf.create({"photos": data.get("photos")}))["photos"] or []
    for number, folder in enumerate([folders] if isinstance(folders, str) else folders):
        sources.append(Photos(folder, name=f"photos{number}", split=data.photos_split, licence="the owner's", **common))
    return sources


def _plan(data: DictConfig, sources: list[ImageSource], detector: Detector) -> FinalizePlan:
    stages = [stage for source in sources for stage in getattr(source, "stages", ())]
    plain = OmegaConf.to_container(data, resolve=True)
    selection, grouping = plain.get("selection"), plain.get("grouping")
    if grouping:
        threshold = grouping.pop("threshold", None)
        grouping = Grouping(detector.same_threshold if threshold is None else threshold, **grouping)
    return FinalizePlan(
        max_references=data.max_references,
        reference_threshold=data.reference_threshold,
        selection=Selection(**selection) if selection else None,
        grouping=grouping or None,
        min_photos=data.get("min_photos", 1),
        val_share=data.get("val_share", 0.1),
        report=data.get("report", False),
        thresholds=thresholds(stages),
        stages=tuple(dict.fromkeys(stage.name for stage in stages)),
    )


def _metrics(device: Any) -> Callable[[str], Any]:
    @cache
    def metric(name: str) -> Any:
        if name.startswith("pyiqa:"):
            return Pyiqa(name.removeprefix("pyiqa:")).build(device)
        if name not in METRICS:
            raise ValueError(f"no such metric; choose from {', '.join(METRICS)}, or pyiqa's as pyiqa:NAME")
        return METRICS[name].build(device)

    return metric


if __name__ == "__main__":
    main()
