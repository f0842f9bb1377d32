"""face2scene rehearse: whether a run fits a machine, and how long it takes, without a GPU and without weights.

    face2scene rehearse experiment=paper [key=value ...] [--card a6000] [--gpus 4] [--json FILE]

The scripts' own code runs up to the training, on a few generated images of the set's size, then one step of each
training, Stage I and a restoration on tensors without values.
"""

import importlib.util
import re
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from transformers import ViTConfig, ViTModel

from face2scene.cli import preflight
from face2scene.cli.command_line import CONFIGS, path_values, refuse_values
from face2scene.cli.options import UsageError
from face2scene.common.files import ready_to_write, write_json
from face2scene.common.renamed_keys import refuse_renamed
from face2scene.data.records import METADATA, Records
from face2scene.eval.cost import rehearsal, rehearsal_report
from face2scene.eval.cost.cards import CARDS, EFFICIENCY, PROGRAMS, Card
from face2scene.eval.cost.rehearsal import Rehearsed
from face2scene.eval.cost.simulation import Costs, fake_tensors, faked, real
from face2scene.inference.pipeline import Face2ScenePipeline
from face2scene.models.fadex.encoder import FaDeX
from face2scene.models.restorer.base_model import load_base, precision
from face2scene.models.restorer.discriminator import VIT_B16
from face2scene.models.restorer.one_step import OneStepRestorer
from face2scene.models.s3diff.degradation_scores import ScoreNet
from face2scene.models.s3diff.model import S3Diff
from face2scene.ref_fr.stand_ins import Copy
from face2scene.train.schedule import share_batch

ROOTS = ("train_fadex", "train_restorer", "precompute_ref_fr", "restore")
_NO_REFERENCES = 29697 / 57449  # share of the paper's images without references


def main(options: Namespace) -> int:
    """Run the command with the options of `face2scene rehearse`; exit code 1 where the run does not fit."""
    if options.gpus < 1 or not 0 < options.efficiency <= 1:
        raise ValueError(
            f"--gpus is at least 1, --efficiency above 0 and at most 1; given: {options.gpus}, {options.efficiency}."
        )
    if odd := next((word for word in options.overrides if not re.match(r"~|.+=", word)), None):
        raise UsageError(f"{odd!r} is no option of face2scene rehearse: give KEY=VALUE, such as experiment=paper.")
    if options.json:
        ready_to_write(options.json.parent, "--json")
        if options.json.is_dir():
            raise IsADirectoryError(f"--json={options.json} is a folder: name a file.")
    card, only = CARDS[options.card], options.only
    found = rehearse(options.overrides, card, options.gpus, efficiency=options.efficiency, only=only)
    text, fits = rehearsal_report.report(found, card, options.gpus, options.efficiency)
    print(text)
    if options.json:
        write_json(options.json, rehearsal_report.record(found, card, options.gpus))
    return 0 if fits else 1


def rehearse(
    overrides: Sequence[str],
    card: Card,
    gpus: int,
    *,
    efficiency: float = EFFICIENCY,
    only: Sequence[str] = PROGRAMS,
) -> rehearsal_report.Findings:
    """Rehearse the programs of a run.

    Args:
        overrides: of the scripts, such as `experiment=paper`.
        only: a choice of `PROGRAMS`.

    Raises:
        ValueError: an option that no script has; a set too small for the batch; or what the scripts themselves refuse.
    """
    configs = composed(overrides)
    size, images, stored = _set_of(configs["train_restorer"])
    found = rehearsal_report.Findings(size=size, images=images, image_bytes=stored)
    scenes = configs["train_restorer"]
    found.problems = [*preflight.problems(configs["train_fadex"], "fadex", gpus)]
    found.problems += preflight.problems(scenes, "restorer", gpus)
    found.places = {"data": Path(scenes.data.root).parent, "runs": Path(scenes.paths.runs)}
    found.faces = _referenced(scenes, images or 0) * int(configs["precompute_ref_fr"].recipes)
    with tempfile.TemporaryDirectory() as scratch:
        smallest = max(12, 2 * preflight.most_images(configs["train_fadex"].train.fadex))
        bytes_ = rehearsal.generated_set(Path(scratch), size=size, count=smallest)
        found.image_bytes = found.image_bytes or bytes_
        for name in only:
            costs = Costs(card, efficiency)
            with torch.random.fork_rng(), fake_tensors():
                if name == "stage_one":
                    program = _stage_one(configs["precompute_ref_fr"], costs, found.faces)
                elif name == "restore":
                    found.programs += [_restoring(configs["restore"], costs, side) for side in (512, 1024)]
                    continue
                else:
                    root = configs[_root(name)]
                    if name == "s3diff":
                        root = composed([*overrides, "restorer=s3diff"])["train_restorer"]
                    program = _training(name, root, Path(scratch), costs, gpus)
            program.units /= 1 if program.unit == "step" else gpus
            found.programs.append(program)
    return found


def composed(overrides: Sequence[str]) -> dict[str, DictConfig]:
    """The configuration of every script; an option may be unknown to some of them, but not to all.

    Raises:
        ValueError: no script knows an option, or its value.
        UsageError: a value that its key cannot have.
    """
    refuse_renamed(overrides)
    words = path_values(overrides)
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):

        def one(root: str) -> DictConfig:
            try:
                return compose(root, overrides=words)
            except HydraException:
                return compose(root, overrides=[word for word in words if known(root, word)])

        def known(root: str, word: str) -> bool:
            try:
                compose(root, overrides=[word])
            except HydraException as error:
                failures.setdefault(word, []).append(str(error).splitlines()[0])
                return False
            return True

        failures: dict[str, list[str]] = {}
        found = {root: one(root) for root in ROOTS}
    for word, messages in failures.items():
        if len(messages) == len(ROOTS):
            raise ValueError(f"{word}: {messages[0]}")
    for root, cfg in found.items():
        refuse_values(cfg, root, overrides)
    return found


def _set_of(cfg: DictConfig) -> tuple[tuple[int, int], int | None, int]:
    """(height, width) of the training images, their number if it is known, and bytes of a file if one is there."""
    folder = Path(cfg.data.root)
    if (folder / METADATA).is_file():
        records = Records(folder, "train")
        file = folder / records[0].image
        stored = file.stat().st_size if file.is_file() else 0
        return (records[0].height, records[0].width), preflight.images_of(cfg), stored
    images = preflight.images_of(cfg)
    path = CONFIGS / "data" / f"{folder.name}.yaml"
    data: Any = OmegaConf.load(path) if path.is_file() else cfg.data
    if data.get("size"):
        return (int(data.size), int(data.size)), images, 0
    maker = data.get("infiniteyou_generator") or {}
    return (int(maker.get("height", 1024)), int(maker.get("width", 1024))), images, 0


def _referenced(cfg: DictConfig, images: int) -> float:
    """How many of the images have references; by the paper's share (facts 1) where the mix's parts are not built."""
    counts = [preflight.without_references(folder) for folder in preflight.parts_of(cfg)]
    if any(count is None for count in counts):
        return images * (1 - _NO_REFERENCES) if len(counts) > 1 else images
    return images - sum(count or 0 for count in counts)


def _captured(script: str, cfg: DictConfig) -> dict[str, Any]:
    """What a training script hands to `train`: its task, accelerator and schedule; weights are random."""
    for state in (AcceleratorState, GradientState):
        state._reset_state(True) if state is AcceleratorState else state._reset_state()
    specification: Any = importlib.util.find_spec(f"face2scene.cli.commands.{script}")
    module: Any = importlib.util.module_from_spec(specification)  # a copy, whose names are replaced below
    specification.loader.exec_module(module)
    found: dict[str, Any] = {}

    def train(task: Any, accelerator: Any, schedule: Any, *_: Any, **__: Any) -> None:
        found.update(task=task, accelerator=accelerator, schedule=schedule)

    def base(source: str, *, revision: str | None = None, **precisions: Any) -> Any:
        return load_base(rehearsal.random_source(source), **precisions)

    def features(source: Any) -> ViTModel:
        shape = source if isinstance(source, dict) else VIT_B16 | {"image_size": 224, "patch_size": 16}
        return ViTModel(ViTConfig(**shape), add_pooling_layer=False)

    encoder = SimpleNamespace(from_file=lambda *_, **__: instantiate(cfg.fadex.encoder, _convert_="all"))

    def read(function: Any) -> Any:
        def reading(*arguments: Any, **options: Any) -> Any:
            with real():
                return function(*arguments, **options)

        return reading

    folder = Path(cfg.paths.runs) / str(cfg.name)
    run = SimpleNamespace(timed=lambda _: nullcontext(), check_base=lambda _: None, folder=folder)
    stand_ins = {"train": train, "open_run": lambda *_, **__: run, "load_base": base, "load_features": features}
    stand_ins |= {"Perceptual": rehearsal.RandomLpips} | ({"FaDeX": encoder} if script == "train_restorer" else {})
    stand_ins |= {name: read(getattr(module, name, None)) for name in ("SceneBatches", "held_out")}
    pairs = getattr(module, "FacePairBatches", None)
    stand_ins |= {"FacePairBatches": SimpleNamespace(from_manifest=read(getattr(pairs, "from_manifest", None)))}
    for name, stand_in in stand_ins.items():
        if hasattr(module, name):
            setattr(module, name, stand_in)
    module.main.__wrapped__(cfg)
    return found


def prepared(name: str, overrides: Sequence[str], folder: Path) -> tuple[Any, Any, Any]:
    """Task, accelerator and the largest batch of a training, as its script makes them; in `fake_tensors`.

    Args:
        folder: for a generated set.
    """
    cfg = _settled(name, composed(overrides)[_root(name)], folder, 1)[0]
    with real():
        rehearsal.generated_set(folder, size=_set_of(cfg)[0], count=12)
    found = _captured(_root(name), cfg)
    with real():
        return found["task"], found["accelerator"], rehearsal.loading(found["task"].data)[1]


def _root(name: str) -> str:
    return "train_fadex" if name == "fadex" else "train_restorer"


def _settled(name: str, cfg: DictConfig, folder: Path, gpus: int) -> tuple[DictConfig, int]:
    """The configuration of a rehearsed training, and the batches of its real step on each card."""
    cfg = cfg.copy()
    OmegaConf.set_struct(cfg, False)
    settings = cfg.train["fadex" if name == "fadex" else "restorer"]
    accumulate = int(settings.accumulate or 1)
    if "effective_batch" in settings:
        limits = {key: settings.get(key) for key in ("effective_batch", "accumulate")}
        settings.batches.batch, accumulate = share_batch(settings.batches.batch, gpus, **limits)
        settings.effective_batch = None
    settings.accumulate = min(accumulate, 2)
    if settings.mixed_precision == "fp16":
        settings.mixed_precision = "bf16"  # of the same size; the CPU has no fp16 training
    cfg.data = {"name": "rehearsal", "root": str(folder), "size": cfg.data.get("size")}
    cfg.paths.face_crops = str(folder / "face_crops")
    cfg.init_from = None
    if "restorer" in cfg.ref_fr or "FaceMe" in str(cfg.ref_fr.get("_target_")):
        cfg.ref_fr = {"_target_": "face2scene.ref_fr.stand_ins.Copy"}  # the cache's reading is not counted
    if "score_net" in cfg.restorer and str(cfg.restorer.score_net._target_).endswith(".published"):
        cfg.restorer.score_net = {"_target_": "face2scene.models.s3diff.degradation_scores.ScoreNet"}
    if "score_net" in cfg.restorer and "estimator" in settings:
        settings.estimator = None  # S3Diff has no tokens to estimate
    if "validation_images" in settings:
        settings.validation_images = 0
    return cfg, accumulate


def _training(name: str, cfg: DictConfig, folder: Path, costs: Costs, gpus: int) -> Rehearsed:
    cfg, accumulate = _settled(name, cfg, folder, gpus)
    group = "fadex" if name == "fadex" else "restorer"
    settings = cfg.train[group]
    with costs:
        found = _captured(_root(name), cfg)
        task = found["task"]
        with real():
            seconds, batch = rehearsal.loading(task.data)
        batch = faked(dict(batch))
        schedule = found["schedule"]
        program = rehearsal.training_step(task, found["accelerator"], batch, costs, max_norm=schedule.max_norm)
    program.work = {stage: w if stage == "optimiser" else w * accumulate for stage, w in program.work.items()}
    program.name = {"fadex": "FaDeX", "restorer": "restorer", "s3diff": "S3Diff, retrained"}[name]
    program.units, program.states = schedule.steps, schedule.keep_states + 1
    program.loader, program.workers = seconds * accumulate, int(settings.workers)
    advice = f"lower train.{group}.operators or train.{group}.images"
    program.advice = {"memory": getattr(task, "memory_advice", advice), "workers": f"train.{group}.workers"}
    return program


def _stage_one(cfg: DictConfig, costs: Costs, faces: float) -> Rehearsed:
    options = cfg.ref_fr
    if "FaceMe" not in str(options.get("_target_")):
        options = OmegaConf.load(CONFIGS / "ref_fr/faceme.yaml")
    names = ("scheduler", "spacing", "guidance", "control", "colour", "vae_dtype")
    settings = {name: options[name] for name in names} | {"dtype": options.dtype or "float16", "device": "cpu"}
    with costs:
        program = rehearsal.stage_one(
            costs, steps=int(options.steps), faces=int(options.batch), size=int(options.size), **settings
        )
    program.units = faces
    return program


def pipeline(cfg: DictConfig) -> Face2ScenePipeline:
    """The pipeline of restore.yaml with random weights; Stage I is the degraded face itself."""
    adapters: Any = OmegaConf.to_container(cfg.restorer.adapters, resolve=True)
    options: Any = OmegaConf.to_container(cfg.pipeline, resolve=True)
    precisions = {name: cfg.restorer.base[name] for name in ("dtype", "unet_dtype") if cfg.restorer.base.get(name)}
    base = load_base(rehearsal.random_source(str(cfg.restorer.base.source)), **precisions)
    restorer: Any = (
        S3Diff(base, ScoreNet(), **adapters)
        if "score_net" in cfg.restorer
        else OneStepRestorer(base, instantiate(cfg.mapnet, _convert_="all"), **adapters)
    )
    fadex: FaDeX = instantiate(cfg.fadex.encoder, _convert_="all")
    made = Face2ScenePipeline(restorer, fadex, ref_fr=Copy(), **options)
    return made.to(precision(cfg.dtype)) if cfg.dtype else made


def _restoring(cfg: DictConfig, costs: Costs, side: int) -> Rehearsed:
    with (costs := Costs(costs.card, costs.efficiency)):
        return rehearsal.restoring(pipeline(cfg), costs, size=side)
