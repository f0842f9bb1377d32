"""Restore every face of an InScene set once: `face2scene precompute-ref-fr data=... ref_fr=...`.

It can be stopped at any moment; the same command goes on from there. Faces are shared among processes by content, so
that an image that occurs twice is restored once.
"""

import sys
from collections import Counter
from time import perf_counter

from accelerate import Accelerator
from accelerate.utils import gather_object
from hydra.utils import instantiate
from omegaconf import DictConfig
from tqdm.auto import tqdm

from face2scene.cli import preflight
from face2scene.cli.command_line import script
from face2scene.common.files import ready_to_write, remove_partials
from face2scene.common.ledger import digest
from face2scene.common.locks import locked
from face2scene.common.memory import best_device
from face2scene.data.precompute import faces_of, fill
from face2scene.ref_fr.cache import Cached


@script("precompute_ref_fr")
def main(cfg: DictConfig) -> None:
    """Restore this process's share of the faces, check the files; exit code 1 when one is corrupt or missing."""
    start, state = perf_counter(), Accelerator(cpu=best_device().type == "cpu")
    restorer = instantiate(cfg.ref_fr, _convert_="all")
    cache = restorer if isinstance(restorer, Cached) else Cached(restorer, cfg.cache)
    cache.missing = "compute"
    ready_to_write(cache.root, "cache")
    cache.ready()
    faces = faces_of(
        preflight.training_set(cfg),
        instantiate(cfg.degradation, _convert_="all"),
        size=cache.size,
        recipes=cfg.recipes,
        splits=tuple(cfg.splits),
        rank=state.process_index,
        processes=state.num_processes,
    )
    here = f".{digest([str(cfg.data.root), list(cfg.splits)])}.lock"
    with locked(cache.folder, "choose another cache", name=here, hold=state.is_main_process):
        bar = tqdm(total=len(faces), unit="face", disable=not state.is_main_process, desc="Stage I")
        if state.is_main_process:
            remove_partials(cache.folder, "", seconds=3600)
        summary = fill(cache, faces, batch=cfg.batch, progress=bar.update)
        parts = gather_object([summary])
    problems = [line for part in parts for line in part.problems]
    if state.is_main_process:
        bar.close()
        new, seen, reasons = sum(p.new for p in parts), sum(p.seen for p in parts), Counter()
        for part in parts:
            reasons.update(part.reasons)
        refused = reasons.total()
        print(f"{seen} faces: {new} restored now, {refused} refused, {seen - new} were there or of the same content.")
        print(f"They are in {cache.folder} ({perf_counter() - start:.1f} s).")
        for reason, count in sorted(reasons.items()):
            print(f"  refused {count}: {reason}", file=sys.stderr)
        for line in problems:
            print(f"  {line}", file=sys.stderr)
    if problems:
        sys.exit(1)


if __name__ == "__main__":
    main()
