"""FaDeX's training step, with and without the making of its batches, against DASR's batches.

Ours has several images for each operator, whose others in a step are the positives. In DASR's batch, with
as many images and the same encoder, loss and restored faces, every image has its own operator and is cropped twice,
each view is degraded separately, and the other view is the only positive. Both sides run in this process, in turns, and
the fastest turn counts. `--variants` times the step alone in other memory layouts and precisions and with
torch.compile; `--loader N` measures how long a training waits for N workers (wall time, so on an idle machine).
`--store` times one worker's batch at `--train`'s buckets from faces stored once (`data.face_crops`), against the same
batch that decodes the whole image of every face, on noisy images of 1024 x 1152 pixels with faces of 300.

    python benchmarks/fadex.py [--quick] [--fadex tiny] [--train quickstart] [--degradation tiny] [--variants]
        [--loader 2] [--store] [--turns 5] [--json FILE]
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from table import show
from torch import Tensor

from face2scene.common.files import sha256_of, write_json
from face2scene.common.memory import keep_freed_memory
from face2scene.common.optional import import_optional
from face2scene.common.reproducibility import REPOSITORY, seed_from
from face2scene.data.face_crops import Stored
from face2scene.data.face_pair_batches import FacePairBatches, RestoredBy
from face2scene.data.records import Record, write_manifest
from face2scene.image_io.arrays import write_png
from face2scene.models.fadex import MoCo
from face2scene.train.dataloader import batches

IMAGES = 24


def drawn(folder: Path) -> tuple[list[Path], list[tuple[int, int, int, int]]]:
    """Shifted copies of one packaged portrait, and the face box in each."""
    photo = import_optional("skimage.data", "dev", why="The astronaut photo").astronaut().astype(np.float32) / 255
    paths = [folder / f"{number:02d}.png" for number in range(IMAGES)]
    for number, path in enumerate(paths):
        write_png(path, np.roll(photo, 7 * number, axis=1))
    return paths, [(150, 50, 350, 250)] * IMAGES


class TwoViews(FacePairBatches):
    """DASR's batch: as many images, each with its own operator and seen in two crops, degraded one by one."""

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = np.random.default_rng(seed_from(self.seed, "two views", index))
        views: dict[str, list[Tensor]] = {
            f"{view}_{face}": [] for view in ("query", "key") for face in ("restored", "degraded")
        }
        labels = []
        crop, inner = self.crop, slice(self.margin, self.margin + self.crop)
        for _ in range(self.operators * self.images):
            recipe = self.space.draw(rng)
            number = int(rng.integers(len(self.boxes)))
            labels.append(int(recipe.key, 16) >> 1)
            for turn, view in enumerate(("query", "key")):
                gt = self._tile(number, crop, rng)
                degraded = recipe.with_noise_seed(seed_from(index, len(labels), turn)).apply(gt)
                views[f"{view}_restored"].append(self.restore(gt, degraded, rng)[..., inner, inner])
                views[f"{view}_degraded"].append(degraded[..., inner, inner])
        return {name: torch.stack(rows) for name, rows in views.items()} | {"labels": torch.tensor(labels)}


def scenes(folder: Path, count: int) -> Path:
    """An InScene set of generated noise over a packaged portrait: PNG files as large as real ones."""
    photo = import_optional("skimage.data", "dev", why="The astronaut photo").astronaut().astype(np.float32) / 255
    records = []
    for number in range(count):
        rng = np.random.default_rng(number)
        image = np.tile(np.roll(photo, 7 * number, axis=1), (3, 2, 1))[:1152]
        path = folder / f"{number:03d}.png"
        write_png(path, (image + 0.02 * rng.standard_normal(image.shape, dtype=np.float32)).clip(0, 1))
        known = {"prompt": "", "shot": "close-up", "landmarks_68": None, "references": (), "similarity": None}
        known |= {
            "source": "",
            "licence": "",
            "generator": {},
            "sha256": sha256_of(path),
            "width": 1024,
            "height": 1152,
        }
        records.append(Record(path.name, "train", str(number), face_box=(400.0, 400.0, 614.0, 614.0), **known))
    write_manifest(folder, records)
    return folder


def store_rows(cfg: DictConfig, folder: Path, count: int, quick: bool) -> dict[str, dict[str, Any]]:
    """Processor seconds of one worker's batch with and without stored faces."""
    settings = cfg.train.fadex
    shared = {
        "restore": RestoredBy(instantiate(cfg.ref_fr, _convert_="all"), settings.gt_share),
        **{name: settings[name] for name in ("operators", "images", "crop", "margin", "augment")},
        "seed": 0,
    }

    def keep(images: Any) -> Stored:
        stored = Stored(images, folder / "store")
        stored.fill()
        return stored

    space, root = instantiate(cfg.degradation, _convert_="all"), scenes(folder, count)
    plain = FacePairBatches.from_manifest(root, "train", space, **shared)
    start = time.process_time()
    stored = FacePairBatches.from_manifest(root, "train", space, keep=keep, **shared)
    once = (time.process_time() - start) / count
    buckets = dict(settings.buckets or {settings.crop: settings.images})
    turns = 1 if quick else 4

    def seconds(data: FacePairBatches, crop: int, turns: int) -> float:
        sized = data.at(crop, int(buckets[crop]))
        begin = time.process_time()
        for index in range(turns):
            sized[index]
        return (time.process_time() - begin) / turns

    by_crop = {int(crop): seconds(stored, crop, turns) for crop in buckets}
    crop = min(buckets, key=lambda crop: abs(int(crop) - 96))
    ours, other = by_crop[int(crop)], seconds(plain, crop, 1)
    listed = ", ".join(f"{crop}: {value:.2f}" for crop, value in by_crop.items())
    note = (
        f"a worker's batch at {crop} pixels; other: whole images decoded; mean {np.mean(list(by_crop.values())):.2f} of"
    )
    row = {"ours": ours, "other": other, "ratio": other / ours, "unit": "s"}
    return {"stored_batch": row | {"note": f"{note} {listed}; cutting a face once: {once:.3f} s"}}


def trainer(cfg: DictConfig, *, channels_last: bool, compiled: bool = False) -> tuple[MoCo, torch.optim.Optimizer]:
    """The contrast and the optimizer of one training."""
    torch.manual_seed(0)
    moco = MoCo(instantiate(cfg.fadex.encoder, _convert_="all"), **cfg.fadex.contrast)
    if channels_last:
        moco = moco.to(memory_format=torch.channels_last)
    if compiled:
        for encoder in (moco.query, moco.key):
            encoder.body.compile()
    return moco.train(), torch.optim.AdamW([p for p in moco.parameters() if p.requires_grad], lr=1e-3)


def step(moco: MoCo, optimizer: torch.optim.Optimizer, batch: Mapping[str, Tensor], *, bf16: bool = False) -> None:
    """One optimizer step, as in `train.loop`."""
    with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
        contrast = moco(
            (batch["query_restored"], batch["query_degraded"]),
            (batch["key_restored"], batch["key_degraded"]),
            batch["labels"],
        )
    optimizer.zero_grad()
    moco.loss(contrast).backward()
    optimizer.step()
    moco.update(contrast.keys, contrast.labels)


def fastest(ways: Mapping[str, Callable[[int], Any]], turns: int) -> dict[str, float]:
    """Processor seconds of the fastest call of each, called in turns with the turn's number; the first is warm-up."""
    best = dict.fromkeys(ways, float("inf"))
    for turn in range(turns + 1):
        for name, way in ways.items():
            start = time.process_time()
            way(turn)
            if turn:
                best[name] = min(best[name], time.process_time() - start)
    return best


def waiting(data: FacePairBatches, moco: MoCo, optimizer: torch.optim.Optimizer, workers: int, steps: int) -> float:
    """Share of the wall time in which a training of some steps waits for its loader."""
    waited, loader = 0.0, batches(data, Accelerator(cpu=True), 0, workers)
    for number in range(steps + 4):
        start = time.perf_counter()
        _, batch = next(loader)
        if number == 4:  # the workers have started
            began = start
        waited += time.perf_counter() - start if number >= 4 else 0.0
        step(moco, optimizer, batch)
    return waited / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two turns")
    parser.add_argument("--fadex", default="tiny", help="of configs/fadex")
    parser.add_argument("--train", default="quickstart", help="of configs/train")
    parser.add_argument("--degradation", default="tiny", help="of configs/degradation")
    parser.add_argument("--variants", action="store_true", help="also the step in other layouts and precisions")
    parser.add_argument("--loader", type=int, metavar="WORKERS", help="also measure the wait for so many workers")
    parser.add_argument("--store", action="store_true", help="only the batches from stored faces, at all buckets")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the table here")
    options = parser.parse_args()
    keep_freed_memory()  # both sides alike
    torch.set_num_threads(1)
    turns = 2 if options.quick else options.turns
    with initialize_config_dir(str(REPOSITORY / "configs"), version_base="1.3"):
        names = {"fadex": options.fadex, "train": options.train, "degradation": options.degradation}
        cfg = compose("train_fadex", ["data=quickstart", *(f"{group}={name}" for group, name in names.items())])
    settings = cfg.train.fadex

    rows: dict[str, dict[str, Any]] = {}
    if options.store:
        with tempfile.TemporaryDirectory() as folder:
            rows = store_rows(cfg, Path(folder), 8, options.quick)
        show(rows)
        if options.json:
            write_json(options.json, rows)
        return
    with tempfile.TemporaryDirectory() as folder:
        paths, boxes = drawn(Path(folder))
        # one crop size, so that every step is alike
        crop, images = next(iter((settings.buckets or {settings.crop: settings.images}).items()))
        shared = {
            "space": instantiate(cfg.degradation, _convert_="all"),
            "restore": RestoredBy(instantiate(cfg.ref_fr, _convert_="all"), settings.gt_share),
            **{"operators": settings.operators, "images": int(images), "crop": int(crop)},
            **{"margin": settings.margin, "augment": settings.augment, "seed": 0},
        }
        ours, other = FacePairBatches(paths, boxes, **shared), TwoViews(paths, boxes, **shared)
        faces = 2 * settings.operators * int(images)
        moco, optimizer = trainer(cfg, channels_last=settings.channels_last)
        theirs, their_optimizer = trainer(cfg, channels_last=settings.channels_last)
        note = f"{faces} faces of {crop} pixels, fadex={options.fadex} train={options.train}, one thread"
        seconds = fastest(
            {
                "ours": lambda turn: step(moco, optimizer, ours[turn]),
                "other": lambda turn: step(theirs, their_optimizer, other[turn]),
                "data": lambda turn: ours[turn],
                "other data": lambda turn: other[turn],
            },
            turns,
        )
        batch, their_batch = ours[0], other[0]
        seconds |= fastest(
            {
                "step": lambda _: step(moco, optimizer, batch),
                "other step": lambda _: step(theirs, their_optimizer, their_batch),
            },
            turns,
        )

        def row(mine: str, them: str, note: str) -> dict[str, Any]:
            rates = faces / seconds[mine], faces / seconds[them]
            return {"ours": rates[0], "other": rates[1], "ratio": rates[0] / rates[1], "unit": "faces/s", "note": note}

        rows["with_data"] = row("ours", "other", note)
        rows["data_alone"] = row("data", "other data", "pairs drawn, degraded, restored: what one worker makes")
        rows["step_alone"] = row("step", "other step", "forward, backward, optimiser, key encoder and queue")
        if options.variants:
            kinds = {
                "plain": {"channels_last": False},
                "channels_last": {"channels_last": True},
                "bf16": {"channels_last": settings.channels_last, "bf16": True},
                "compiled": {"channels_last": settings.channels_last, "compiled": True},
            }
            ways = {}
            for name, kind in kinds.items():
                bf16 = kind.pop("bf16", False)
                held = trainer(cfg, **kind)
                ways[name] = lambda _, held=held, bf16=bf16: step(*held, batch, bf16=bf16)
            seconds |= fastest(ways, turns)
            for name in ("channels_last", "bf16", "compiled"):
                rows[f"step_{name}"] = row(name, "plain", "the step alone; other: contiguous, float32, not compiled")
        if options.loader is not None:
            share = waiting(ours, moco, optimizer, options.loader, 10 * turns)
            about = f"share of the wall time that waits for {options.loader} workers, over {10 * turns} steps"
            rows["waiting"] = {"ours": share, "other": None, "ratio": None, "unit": "share", "note": about}

    show(rows)
    if options.json:
        write_json(options.json, rows)


if __name__ == "__main__":
    main()
