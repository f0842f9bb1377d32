"""Baselines and our method on the same images; configs/run_baseline.yaml lists the ways to call it."""

import shutil
import signal
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from face2scene.assets import catalogue
from face2scene.cli.command_line import CONFIGS, script
from face2scene.cli.pipeline_config import device_of, pipeline_of
from face2scene.common.files import remove_partials
from face2scene.common.locks import locked
from face2scene.eval.baselines.adapter import Adapter
from face2scene.eval.baselines.record import compat_warnings
from face2scene.eval.baselines.run import (
    BaselineResult,
    base_dtype_of,
    by_method,
    commands,
    import_folder,
    run_command,
    run_in_process,
    weights_of,
)
from face2scene.eval.baselines.staging import StagingError, gts_of, lay_out, scale_of
from face2scene.eval.metrics.registry import choose
from face2scene.eval.scoring.score import score_folder
from face2scene.eval.tables.render import markdown, row_from_scores, slug
from face2scene.inference.batch import restore_folder
from face2scene.inference.pipeline import Face2ScenePipeline
from face2scene.inference.tasks import RestorationTask, find_tasks, first

FOLDER = CONFIGS / "baseline"


@script("run_baseline")
def main(cfg: DictConfig) -> None:
    """Run one method and score it; exit code 1 when images are missing."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: finished images are kept
    if cfg.get("baseline") is None and cfg.import_only is None:
        print(listing())
        return
    key = HydraConfig.get().runtime.choices.get("baseline") or "imported"
    if not run(cfg, key):
        sys.exit(1)


def listing() -> str:
    """Every method of the comparison, how it is run, and what is missing for it on this machine."""
    lines = []
    for path in sorted(FOLDER.glob("*.yaml")):
        adapter = Adapter.from_dict(OmegaConf.to_container(OmegaConf.load(path)))
        how = {"command": f"external, {adapter.sizes}", "method": "in-process", "pipeline": "in-process (restore.py)"}
        absent = adapter.missing()
        state = f"{len(absent)} things are missing" if absent else adapter.tried
        lines.append(f"{path.stem:20} {adapter.title:20} {how[adapter.kind]:24} {state}")
    return "\n".join([*lines, "", "What one of them lacks: face2scene run-baseline --baseline NAME --dry-run"])


def run(cfg: DictConfig, key: str) -> bool:
    """Carry out a composed configuration whose baseline is the file `key`; returns whether the row is complete."""
    adapter, options = None, {}
    if cfg.get("baseline") is not None:
        options = OmegaConf.to_container(cfg.baseline, resolve=True)
        adapter = Adapter.from_dict(options | {"method": instantiate(cfg.baseline.get("method")) or None})
    testset = cfg.get("testset")
    absent = testset is not None and not Path(cfg.input).is_dir()
    if absent or OmegaConf.is_missing(cfg, "input"):
        tasks, scale = [], cfg.scale or 1
        say = "Say what to restore: input=FOLDER, an InScene folder or one of images."
        if absent:
            say = f"{testset.title} is not in {cfg.input}: get it from {testset.source} (licence: {testset.licence})."
        if not cfg.dry_run:
            raise FileNotFoundError(say)
        print(f"  missing  {say}")
    else:
        tasks = first(find_tasks(cfg.input, references=cfg.references, gt=None), cfg.limit)
        gts = gts_of(tasks, cfg.gt)
        scale = scale_of(tasks, gts, cfg.scale)
    output = Path(cfg.paths.runs) / (cfg.name or f"{slug(testset.title) if testset else 'baseline'}/{key}")

    if cfg.dry_run:
        show(adapter, tasks, scale, cfg.seed, output)
        return True
    with locked(output, "choose another name=..."):
        remove_partials(output, "images", seconds=3600)
        return _run(cfg, adapter, options, tasks, gts, output, scale)


def _run(
    cfg: DictConfig,
    adapter: Adapter | None,
    options: Mapping[str, Any],
    tasks: list[RestorationTask],
    gts: Mapping[str, Path],
    output: Path,
    scale: int,
) -> bool:
    if cfg.import_only is not None:
        outcome = import_folder(cfg.import_only, tasks, output, adapter=adapter, scale=scale, said=cfg.said)
    elif adapter.kind == "command":
        places = {"gpu": str(cfg.gpu), "timeout": cfg.timeout, "scratch": cfg.scratch}
        outcome = run_command(adapter, tasks, output, scale=scale, seed=cfg.seed, **places)
    elif adapter.kind == "method":
        given = {key: value for key, value in options["method"].items() if key != "device"}
        facts = {"weights": weights_of(adapter), "scale": scale, "method_options": given}
        facts |= {"device": getattr(adapter.method, "device", "cpu")}
        facts |= {"base_dtype": lambda: base_dtype_of(getattr(adapter.method, "network", None))}
        outcome = run_in_process(adapter, tasks, output, lambda: by_method(adapter, tasks, output, scale), **facts)
    else:
        pipeline, facts = load_pipeline(cfg, adapter)
        facts |= {"scale": scale, "seed": cfg.seed, "base_dtype": lambda: base_dtype_of(pipeline.restorer)}
        predict = partial(by_pipeline, pipeline, tasks, output, scale, seed=cfg.seed, guidance=facts["guidance"])
        outcome = run_in_process(adapter, tasks, output, predict, **facts)
    report(outcome, output)
    chosen = choose(cfg.metrics) if list(cfg.metrics) else []
    metrics = [metric.key for metric in chosen if gts or metric.compares == "alone"]
    if metrics and any((output / "images").glob("*.png")):
        scores = score_folder(output, gts or None, metrics, output, device=device_of(cfg))
        columns = list(scores["protocol"])
        title = adapter.title if adapter else output.name
        print(markdown([row_from_scores(title, output / "scores.json", columns)], columns))
        for name, reason in scores["not_measured"].items():
            print(f"{name}: not measured, {reason}")
        return outcome.complete and scores["complete"]
    return outcome.complete


def show(adapter: Adapter | None, tasks: list[RestorationTask], scale: int, seed: int, output: Path) -> None:
    """Print what would be run and what is missing for it."""
    if adapter is None:
        print(f"{len(tasks)} images would be looked for and scored in {output}.")
        return
    mode = "same size" if scale == 1 else "x4"
    print(f"{adapter.title} ({adapter.licence}); {len(tasks)} images, {mode}, into {output}")
    print(f"  tried: {adapter.tried}")
    for line in adapter.missing():
        print(f"  missing  {line}")
    for doubt in compat_warnings(adapter):
        print(f"  warning  {doubt}")
    for note in adapter.notes:
        print(f"  note     {note}")
    if adapter.kind != "command":
        print("It runs in this process; nothing else is started.")
        return
    if adapter.python == "python":
        print(f"  note     It would run in {shutil.which('python')}; baseline.python=ENV/bin/python says otherwise.")
    if not adapter.seedable:
        print(f"  note     seed={seed} does not fix its result.")
    rows = []
    try:
        rows = lay_out(adapter, tasks, scale)
    except StagingError as error:
        print(f"  missing  input: {error}")
    for line in commands(adapter, rows, scale=scale, seed=seed):
        print(f"$ {line}")


def load_pipeline(cfg: DictConfig, adapter: Adapter) -> tuple[Face2ScenePipeline, dict[str, Any]]:
    """The pipeline of the configuration, and the settings that decide its images."""
    own = adapter.pipeline
    with_pair = own.get("ref_fr") != "none"
    cfg = OmegaConf.merge(cfg, {} if with_pair else {"ref_fr": None})
    cfg.restorer_weights = str(weights_file(own.get("restorer_weights", cfg.restorer_weights)))
    files = {"restorer_weights": Path(cfg.restorer_weights), "fadex_weights": Path(cfg.fadex_weights)}
    pipeline = pipeline_of(cfg)
    if cfg.base is not None and Path(cfg.base).exists():
        files["base"] = Path(cfg.base)
    facts = {
        "weights": files,
        "device": pipeline.device,
        "base": cfg.base,
        **({"dtype": cfg.dtype} if cfg.dtype else {}),
        "guidance": own.get("guidance", cfg.guidance),
        "options": OmegaConf.to_container(cfg.pipeline, resolve=True),
        "ref_fr": OmegaConf.to_container(cfg.ref_fr, resolve=True) if cfg.ref_fr else None,
        "ref_fr_fingerprint": getattr(pipeline.ref_fr, "fingerprint", None),
        "faces": OmegaConf.to_container(cfg.faces, resolve=True) if cfg.faces else None,
    }
    return pipeline, facts


def by_pipeline(
    pipeline: Face2ScenePipeline,
    tasks: list[RestorationTask],
    output: Path,
    scale: int,
    *,
    seed: int,
    guidance: float | None,
) -> tuple[int, int, dict[str, str], float]:
    """Images by the pipeline, as scripts/restore.py makes them; see `run_in_process`."""
    start = perf_counter()
    # overwrite: images of other settings are gone by now or are restored again
    outcome = restore_folder(pipeline, tasks, output, seed=seed, guidance=guidance, scale=scale, overwrite=True)
    names = {task.file: task.name for task in tasks}
    failed = {names[file]: reason for file, reason in outcome.failed.items()}
    return outcome.restored, outcome.skipped, failed, perf_counter() - start


def weights_file(value: str) -> Path:
    """A path, or a name of the weights catalogue and a path in it.

    Raises:
        MissingWeights: the asset has not been fetched; the message holds the command.
    """
    asset, _, relative_dir = str(value).partition("/")
    if not Path(value).exists() and asset in catalogue.catalogue():
        return catalogue.folder(asset) / relative_dir
    return Path(value)


def report(outcome: BaselineResult, output: Path) -> None:
    """Print the result."""
    print(outcome)
    for name, reason in list(outcome.missing.items())[:10]:
        print(f"  {name}: {reason}", file=sys.stderr)
    log = "; output of the program: log.txt" if (output / "log.txt").is_file() else ""
    print(f"Images: {output / 'images'}; how they were made: baseline.json{log}")


if __name__ == "__main__":
    main()
