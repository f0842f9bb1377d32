"""What only a graphics card can show, in one run of less than 8 minutes: right values, memory as rehearsed, speed.

    python benchmarks/gpu.py [--device cuda] [--json FILE] [--tiny]

Needs torch, transformers, accelerate, diffusers, peft and hydra; weights are random. --tiny runs everything at a small
size, on a CPU too. In the table `other` is float32 or the CPU (correctness), the rehearsal on tensors without values
(memory), S3Diff as published (restoring) or the CPU (degradations).
"""

import argparse
import importlib.util
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

for _package in ("pyarrow", "scipy", "cv2", "lpips"):  # imported by our modules, and not used here
    if importlib.util.find_spec(_package) is None:
        for _name in (_package, *(f"{_package}.{part}" for part in ("compute", "parquet", "stats", "ndimage"))):
            sys.modules[_name] = MagicMock()

from restorer import build_other, build_ours, random_base, row  # noqa: E402  (after the stand-ins)
from table import show  # noqa: E402

from face2scene.common.files import write_json  # noqa: E402
from face2scene.common.reproducibility import REPOSITORY  # noqa: E402
from face2scene.degradation import PRESETS  # noqa: E402
from face2scene.eval.cost import rehearsal  # noqa: E402
from face2scene.eval.cost.simulation import Costs, fake_tensors, like_cuda  # noqa: E402
from face2scene.models.fadex import FaDeX, MoCo  # noqa: E402
from face2scene.models.mapnet import MapNet  # noqa: E402
from face2scene.models.restorer.base_model import load_base  # noqa: E402
from face2scene.models.restorer.discriminator import VIT_B16, Discriminator, load_features  # noqa: E402
from face2scene.models.restorer.one_step import OneStepRestorer  # noqa: E402
from face2scene.models.s3diff.degradation_scores import ScoreNet  # noqa: E402
from face2scene.models.s3diff.model import NoFaDeX, S3Diff  # noqa: E402
from face2scene.ref_fr.faceme.model import FaceMe  # noqa: E402
from face2scene.train.loop import Phase, step  # noqa: E402
from face2scene.train.restorer_task import RestorerTask  # noqa: E402

NARROW_FADEX = {"widths": (8, 8), "strides": (1, 2), "embedding": 8}


class Vgg(nn.Module):
    """The convolutions of LPIPS on VGG16, random: the same work, without the package."""

    def __init__(self, tiny: bool):
        super().__init__()
        width, layers, channels = (8 if tiny else 64), [], 3
        for level, count in enumerate((2, 2, 3, 3, 3)):
            layers += [nn.MaxPool2d(2)] if level else []
            for _ in range(count):
                layers += [nn.Conv2d(channels, width * min(2**level, 8), 3, padding=1), nn.ReLU()]
                channels = width * min(2**level, 8)
        self.layers = nn.Sequential(*layers).requires_grad_(False)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return (self.layers(output) - self.layers(target)).square().mean()


class FaDeXStep:
    """FaDeX's training without data: the task that `train.loop.step` takes."""

    def __init__(self, tiny: bool, device: torch.device):
        self.moco = MoCo(FaDeX(**(NARROW_FADEX if tiny else {})), queue_size=512 if tiny else 8192).to(device)
        optimizer = torch.optim.AdamW([p for p in self.moco.parameters() if p.requires_grad], lr=1e-3)
        self.phases = [Phase("fadex", self.moco, optimizer, self.losses)]
        self.stateful: list[Any] = []

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        contrast = self.phases[0].model((batch["a"], batch["b"]), (batch["b"], batch["a"]), batch["labels"])
        self.fresh = contrast.keys, contrast.labels
        return {"contrast": self.moco.loss(contrast)}

    def after_step(self) -> None:
        self.moco.update(*self.fresh)


def training(name: str, options: argparse.Namespace, device: torch.device) -> tuple[Any, dict[str, Any]]:
    """A training's task and a batch, at full shape or with --tiny."""
    tiny = options.tiny
    if name == "fadex":
        count, side = (8, 16) if tiny else (64, 96)
        batch = {key: torch.rand(count, 3, side, side, device=device) for key in ("a", "b")}
        return FaDeXStep(tiny, device), batch | {"labels": torch.arange(count, device=device) // 2}
    base = random_base(narrow=True) if tiny else load_base("random", dtype="bf16", unet_dtype="fp32")
    mapnet = MapNet(in_channels=8 if tiny else 256, channels=64 if tiny else 512, heads=8, width=1024)
    restorer: Any = S3Diff(base, ScoreNet()) if name == "s3diff" else OneStepRestorer(base, mapnet)
    del base
    restorer.checkpoint_gradients()
    vit = {"hidden_size": 48, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 96}
    discriminator = Discriminator(load_features((vit if tiny else VIT_B16) | {"image_size": 224, "patch_size": 16}))
    fadex = NoFaDeX() if name == "s3diff" else FaDeX(**(NARROW_FADEX if tiny else {}))
    settings = {"lr": 2e-5, "order": "published", "device": device, "about": {}}
    task = RestorerTask(restorer, fadex, Vgg(tiny), None, [], discriminator=discriminator, **settings)
    count, side, face = (2, 64, 32) if tiny else (options.batch, options.crop, 256)
    batch = {key: torch.rand(count, 3, side, side, device=device) for key in ("image", "gt", "target")}
    batch |= {key: list(torch.rand(count, 3, face, face, device=device)) for key in ("restored", "degraded")}
    if name == "s3diff":
        batch["small"] = torch.rand(count, 3, side // 4, side // 4, device=device)
    no = torch.zeros(count, dtype=torch.bool, device=device)
    return task, batch | {"negative": no, "drop": no.clone(), "seed": list(range(count))}


def train_rows(options: argparse.Namespace, device: torch.device) -> dict[str, dict]:
    """A step of each training: seconds, and peak memory against the rehearsal."""
    rows = {}
    for name in ("fadex", "restorer", "s3diff"):
        mixed = "bf16" if not options.tiny or device.type == "cuda" else "no"
        with fake_tensors(), Costs() as costs:
            task, batch = training(name, options, torch.device("cpu"))
            accelerator = Accelerator(cpu=True, mixed_precision=mixed)
            expected = sum(rehearsal.training_step(task, accelerator, batch, costs).peak.values())
        _forget()
        with like_cuda() if device.type == "cpu" else nullcontext(), Costs() as costs:  # the same on real tensors
            task, batch = training(name, options, device)
            accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=mixed)
            rehearsal.training_step(task, accelerator, batch, costs)
        counted = sum(costs.peak.values())
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        seconds = timed(partial(step, task, [batch], accelerator, 1.0), device)
        task.after_step()
        note = "live tensors against those of the rehearsal"
        rows[f"{name}_step_tensors"] = row(counted / 2**20, expected / 2**20, "MiB", note)
        if device.type == "cuda":
            there = torch.cuda.max_memory_allocated(device) / 2**20
            rows[f"{name}_step_allocated"] = row(there, expected / 2**20, "MiB", "the allocator's peak")
        rows[f"{name}_step"] = row(seconds, None, "s", f"one step, {mixed}")
        del task, batch, costs
        _forget()
    return rows


def _forget() -> None:
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of a second call."""
    for _ in range(2):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return time.perf_counter() - start


def correctness_rows(options: argparse.Namespace, device: torch.device) -> dict[str, dict]:
    """The shipped tiny base on the device against the CPU; half precision against float32 at full shape."""
    torch.manual_seed(0)
    base = load_base(REPOSITORY / "checkpoints/tiny/base")
    mapnet = MapNet(in_channels=8, channels=16, heads=2, width=base.unet.config.cross_attention_dim)
    tiny = OneStepRestorer(base, mapnet, vae_rank=0, unet_rank=0, skips=base.skips is not None).merged()
    image, features = torch.rand(1, 3, 64, 64), torch.rand(1, 8, 16, 16)
    restored = [tiny.to(d).restore(image.to(d), tiny.tokens(features.to(d), 1)).cpu() for d in ("cpu", device)]
    rows = {"tiny_device_psnr": row(psnr(*restored), None, "dB", "the device against the CPU, at most 99")}
    side = 64 if options.tiny else 512
    full = OneStepRestorer(random_base(narrow=options.tiny), MapNet()).merged().to(device)
    image, features = torch.rand(1, 3, side, side, device=device), torch.rand(1, 256, 64, 64, device=device)
    exact = full.restore(image, full.tokens(features, 1))
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        found = full.merged(dtype).restore(image, full.tokens(features, 1))
        rows[f"{name}_psnr"] = row(psnr(found, exact), None, "dB", f"{name} against float32, random weights, {side} px")
    return rows


def psnr(image: Tensor, other: Tensor) -> float:
    """Of [0, 1] images, at most 99 dB."""
    return float(-10 * (image.float() - other.float()).square().mean().clamp_min(10**-9.9).log10())


def restore_rows(options: argparse.Namespace, device: torch.device) -> dict[str, dict]:
    """Restoring one image: ours in bf16, S3Diff in float32 as published."""
    rows = {}
    for side in (64,) if options.tiny else (512, 1024):
        seconds = []
        for build, dtype in ((build_ours, torch.bfloat16), (build_other, torch.float32)):
            model, held, work = build(SimpleNamespace(quick=options.tiny), device, side)
            model.merged(dtype)
            seconds.append(timed(work, device))
            del model, held, work
        rows[f"restore_{side}"] = row(*seconds, "s", "ours bf16, S3Diff float32 as published")
    return rows


def stage_one_row(options: argparse.Namespace, device: torch.device) -> dict[str, dict]:
    """FaceMe on one face: two steps measured, fifty computed."""
    if options.tiny:
        faceme, size = FaceMe.tiny(steps=2, size=64, device=str(device)), 64
        width = faceme.parts.prompt.positive.shape[-1]
    else:
        kind = "float16" if device.type == "cuda" else "float32"
        faceme = FaceMe(rehearsal.faceme_parts, weights_version=str, steps=2, device=str(device), dtype=kind)
        size, width = 512, 2048
    faces, tokens = torch.rand(1, 3, size, size), [torch.rand(4, width)]
    found = []
    for faceme.steps in (1, 3):
        found.append(timed(lambda: faceme._restore(faces, tokens), device))
    seconds = found[0] + 49 * (found[1] - found[0]) / 2
    return {"stage_one": row(seconds, None, "s", "a face in 50 steps, computed from 1 and 3")}


def degradation_row(options: argparse.Namespace, device: torch.device) -> dict[str, dict]:
    """One recipe on a batch of images, on the device and on the CPU."""
    images = torch.rand(2 if options.tiny else 8, 3, *[64 if options.tiny else 512] * 2)
    recipe = next(iter(PRESETS.values()))
    seconds = [timed(lambda d=d: [recipe.apply(i) for i in images.to(d)], torch.device(d)) for d in (device, "cpu")]
    return {"degradation": row(*seconds, "s", f"a preset on {len(images)} images; other: the CPU")}


def loader_row(options: argparse.Namespace, device: torch.device) -> dict[str, dict]:
    """A batch of scenes by one worker."""
    if isinstance(sys.modules["pyarrow"], MagicMock):
        return {"loader": row(None, None, "s", "not measured: pyarrow is not installed")}
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from face2scene.data.scene_batches import SceneBatches
    from face2scene.ref_fr.stand_ins import Copy

    side = 64 if options.tiny else 1024
    space = instantiate(OmegaConf.load(REPOSITORY / "configs/degradation/paper.yaml"), _convert_="all")
    with tempfile.TemporaryDirectory() as folder:
        rehearsal.generated_set(Path(folder), size=(side, side), count=4)
        count = 2 if options.tiny else 8
        shares = {"negative_prob": 0.05, "token_dropout": 0.1, "seed": 0}
        data = SceneBatches(folder, space, Copy(), crop=side // 2, batch=count, **shares)
        seconds, _ = rehearsal.loading(data)
    return {"loader": row(seconds, None, "s", f"core seconds for a batch of {count} scenes of {side} px")}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="write the table here")
    parser.add_argument("--tiny", action="store_true", help="small networks and images, for a CPU")
    parser.add_argument("--batch", type=int, default=2, help="images of a restorer's training step")
    parser.add_argument("--crop", type=int, default=512, help="pixels of its crops")
    parser.add_argument("--only", nargs="+", help="some of: correctness train restore stage_one degradation loader")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    np.random.seed(0)
    torch.backends.cuda.matmul.allow_tf32 = True  # as train_restorer.py
    device, rows = torch.device(options.device), {}
    parts = {"correctness": correctness_rows, "train": train_rows, "restore": restore_rows}
    parts |= {"stage_one": stage_one_row, "degradation": degradation_row, "loader": loader_row}
    for name, part in parts.items():
        if options.only and name not in options.only:
            continue
        start = time.perf_counter()
        rows |= part(options, device)
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    show(rows)
    if options.json:
        write_json(options.json, rows)


if __name__ == "__main__":
    main()
