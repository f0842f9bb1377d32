"""Restore a photo or a folder: `python scripts/restore.py input=PHOTO_OR_FOLDER references=FOLDER output=FOLDER`.

Several GPUs take their shares of a folder: `accelerate launch --config_file configs/accelerate/four_gpu.yaml
scripts/restore.py ...`. It can be stopped at any moment; the same command goes on from there.
"""

import logging
import sys
from datetime import timedelta
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, gather_object
from omegaconf import DictConfig, OmegaConf

from face2scene.cli.command_line import script
from face2scene.cli.pipeline_config import development_of, device_of, pipeline_of
from face2scene.common.memory import best_device
from face2scene.data.records import METADATA
from face2scene.inference.batch import restore_folder
from face2scene.inference.log import RESTORATION_LOG
from face2scene.inference.results import BatchResult
from face2scene.inference.tasks import find_tasks, first, passed_over


@script("restore", required=["input"], level=logging.INFO)
def main(cfg: DictConfig) -> None:
    """Restore all images and print a summary; exit code 1 when one failed."""
    logging.getLogger("face2scene.models").setLevel(logging.WARNING)  # what it says of a training's parameters
    inputs = list(cfg.input) if OmegaConf.is_list(cfg.input) else [cfg.input]
    for option, places in (("input", inputs), ("references", [cfg.references]), ("gt", [cfg.gt])):
        for place in places:
            if place is not None and not Path(place).exists():
                raise FileNotFoundError(f"There is nothing at {option}={place}.")
    cpu = best_device().type == "cpu" or str(cfg.device or "").startswith("cpu")
    # a process may wait hours for another one's share
    state = Accelerator(cpu=cpu, kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=30))])
    outcome = _restored(cfg, inputs, state)
    for other in gather_object([outcome])[1:]:
        outcome.add(other)
    if state.is_main_process:
        _report(outcome, Path(cfg.output))
    if outcome.failed or outcome.stopped:
        sys.exit(1)


def _restored(cfg: DictConfig, inputs: list[str], state: Accelerator) -> BatchResult:
    tasks = first(find_tasks(inputs, references=cfg.references, gt=cfg.gt, output=cfg.output), cfg.limit)
    if state.is_main_process:
        folders = (place for place in inputs if not (Path(place) / METADATA).is_file())
        others = "; ".join(filter(None, map(passed_over, folders)))
        print(f"{len(tasks)} image(s){f'; {others}' if others else ''}; loading the models.", flush=True)
    device = device_of(cfg, state.device)
    counts = cfg.pipeline.max_tokens
    if OmegaConf.is_list(counts):
        cfg.pipeline.max_tokens = None  # applied per value instead
    return restore_folder(
        pipeline_of(cfg, device),
        tasks,
        cfg.output,
        tokens_from=cfg.tokens_from,
        seed=cfg.seed,
        guidance=list(cfg.guidance) if OmegaConf.is_list(cfg.guidance) else cfg.guidance,
        token_counts=list(counts) if OmegaConf.is_list(counts) else (),
        scale=cfg.scale,
        file_format=cfg.format,
        burst_seconds=cfg.burst_seconds,
        max_pixels=cfg.max_pixels,
        development=development_of(cfg),
        overwrite=cfg.overwrite,
        rank=state.process_index,
        processes=state.num_processes,
        wait=state.wait_for_everyone,
    )


def _report(outcome: BatchResult, output: Path) -> None:
    print(f"{outcome.restored} restored, {outcome.skipped} were finished before, {len(outcome.failed)} failed.")
    if outcome.restored:
        print(f"{outcome.seconds:.1f} s, of them {outcome.seconds_models:.1f} s in the models.")
    if (output / RESTORATION_LOG).is_file():
        print(f"Images are in {output / 'images'}, a log of each in {output / RESTORATION_LOG}.")
    if outcome.warned:
        print(f"{outcome.warned} of {outcome.restored} have warnings in the log.")
    for reason, count in outcome.without_pair.items():
        print(f"{count} of {outcome.restored} without a restored face: {reason}.")
    sys.stdout.flush()
    alone = outcome.restored + outcome.skipped + len(outcome.failed) == 1  # it was said when it failed
    for name, sentence in () if alone else outcome.failed.items():
        print(f"  {name}: {sentence}", file=sys.stderr)
    if outcome.stopped:
        print(outcome.stopped, file=sys.stderr)


if __name__ == "__main__":
    main()
