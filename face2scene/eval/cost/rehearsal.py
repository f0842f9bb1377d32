"""What a training step, Stage I and a restoration need: measured on fake tensors, or on real ones for comparison.

Everything here runs the code of a real run; see `simulation`.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from face2scene.common.files import sha256_of
from face2scene.common.shipped import shipped
from face2scene.common.types import Scene
from face2scene.data.records import Record, write_manifest
from face2scene.eval.cost.cards import CONTEXT, FRAGMENTS, LINK, Card
from face2scene.eval.cost.complexity import faceme_networks
from face2scene.eval.cost.simulation import Costs, Work
from face2scene.eval.cost.timing import drawn_scene
from face2scene.image_io.arrays import write_png
from face2scene.inference.pipeline import Face2ScenePipeline
from face2scene.models.restorer.perceptual import Perceptual
from face2scene.ref_fr.faceme.id_encoder import IDEncoder, Mix
from face2scene.ref_fr.faceme.loading import Parts, TextPrompt
from face2scene.ref_fr.faceme.model import FaceMe
from face2scene.ref_fr.faceme.tiny import SDXL_SCHEDULE, WholeImage
from face2scene.train.loop import prepare, step

_STAGES = {  # attribute of a task or of its restorer -> name
    "fadex": "FaDeX",
    "moco.query": "FaDeX",
    "moco.key": "FaDeX for the keys",
    "mapnet": "MapNet",
    "score_net": "score network",
    "vae.encoder": "VAE encoder",
    "unet": "UNet",
    "vae.decoder": "VAE decoder",
    "perceptual": "LPIPS",
}


@dataclass
class Rehearsed:
    """One program of a run: what one unit of it needs on one card."""

    name: str
    unit: str  # step, face or image
    peak: dict[str, int]  # bytes by part, see `simulation.PARTS`
    work: dict[str, Work]  # by stage
    units: float = 0.0  # of the whole run, on each card
    trained: int = 0  # bytes of gradients, which are summed over the cards
    state: int = 0  # bytes of one saved state
    states: int = 0  # states on disk at once
    loader: float = 0.0  # processor seconds for the batches of a unit; 0 loads nothing
    workers: int = 0
    advice: dict[str, str] = field(default_factory=dict)  # for memory and workers: the option to change

    def memory(self, gpus: int) -> float:
        """Bytes that a card needs: the peak, DDP's copy of the gradients, and what no tensor shows."""
        tensors = sum(self.peak.values()) + (self.trained if gpus > 1 else 0)
        return tensors * (1 + FRAGMENTS) + CONTEXT

    def seconds(self, gpus: int) -> float:
        """Of a unit on a card, with the sum of gradients over the cards."""
        link = 2 * self.trained * (gpus - 1) / gpus / LINK
        return sum(work.seconds for work in self.work.values()) + link

    def fed(self, gpus: int) -> float:
        """Seconds of a unit where the loader is the limit, each worker on a core of its own."""
        return max(self.seconds(gpus), self.loader / max(self.workers, 1))

    def hours(self, gpus: int) -> float:
        return self.units * self.fed(gpus) / 3600

    def workers_needed(self, gpus: int) -> int:
        """Workers per process that keep its card busy."""
        return int(-(-self.loader // self.seconds(gpus))) if self.loader else 0


def modules_of(task: Any) -> dict[str, nn.Module]:
    """The networks of a training or a pipeline by the name of their stage."""
    found = {}
    for path, name in _STAGES.items():
        for owner in (task, getattr(task, "restorer", None)):  # the first that has it
            module: Any = owner
            for part in path.split("."):
                module = getattr(module, part, None)
            if isinstance(module, nn.Module):
                found[name] = module
                break
    if len(getattr(task, "phases", ())) > 1:
        found["discriminator"] = task.phases[-1].model
    return found


def training_step(task: Any, accelerator: Any, batch: Any, costs: Costs, *, max_norm: float = 1.0) -> Rehearsed:
    """A step of `train.loop` on one batch, with the memory of a later step: the optimiser's state is there.

    Where batches are accumulated, gradients of earlier ones are there too.

    Args:
        batch: on the task's device.
        costs: the mode that is active since before the task was built.
    """
    costs.stages(modules_of(task))
    models, optimizers = prepare(task.phases, accelerator)
    for optimizer in optimizers:
        costs.optimiser(optimizer.optimizer)
    for leaf in tree_leaves(batch):
        if isinstance(leaf, Tensor):
            costs.assign(leaf, "batch")
    for model, optimizer in zip(models, optimizers, strict=True):
        for weight in (p for p in model.parameters() if p.requires_grad):
            weight.grad = torch.zeros_like(weight)
            costs.assign(weight.grad, "gradients")
        optimizer.optimizer.step()
        if accelerator.gradient_accumulation_steps == 1:
            optimizer.optimizer.zero_grad()
    costs.restart()
    step(task, [batch], accelerator, max_norm, [0])
    task.after_step()
    trained = {id(p): p.numel() * p.element_size() for phase in task.phases for p in phase.weights}
    stored = sum(trained.values()) * 3 + sum(
        leaf.numel() * leaf.element_size()
        for one in getattr(task, "stateful", ())
        for leaf in tree_leaves(one.state_dict())
        if isinstance(leaf, Tensor)
    )
    return Rehearsed("", "step", costs.peak, dict(costs.work), trained=sum(trained.values()), state=stored)


def faceme_parts(dtype: torch.dtype, vae_dtype: torch.dtype) -> Parts:
    """FaceMe's networks at their published shapes, with random weights."""
    unet, controlnet, vae = faceme_networks()
    encoder, mix = IDEncoder(), Mix()
    for network in (unet, controlnet, vae, encoder, mix):
        network.eval().requires_grad_(False)
    for network in (unet, controlnet, encoder, mix):
        nn.Module.to(network, dtype)
    nn.Module.to(vae, vae_dtype)
    text, pooled = torch.rand(77, 2048), torch.rand(1280)
    prompt = TextPrompt(text, pooled, text, pooled, 4)
    return Parts(vae, unet, controlnet, encoder, mix, prompt, dict(SDXL_SCHEDULE), WholeImage())


def stage_one(costs: Costs, *, steps: int, faces: int, size: int, **settings: Any) -> Rehearsed:
    """Stage I of one face: `faces` of them in one pass, the denoiser once and counted `steps` times."""
    faceme = FaceMe(faceme_parts, weights_version=str, steps=1, batch=faces, size=size, **settings)
    parts = faceme.parts
    costs.stages({"SDXL UNet": parts.unet, "ControlNet": parts.controlnet})
    images, tokens = torch.rand(faces, 3, size, size), [torch.rand(4, 2048) for _ in range(faces)]
    costs.restart()
    with torch.no_grad():
        parts.id_encoder(torch.rand(1, 3, 224, 224, dtype=faceme.dtype, device=faceme.device))
    faceme._restore(images, tokens)
    work = {
        name: each * ((steps if name in ("SDXL UNet", "ControlNet") else 1) / faces)
        for name, each in costs.work.items()
    }
    return Rehearsed("Stage I", "face", costs.peak, work, advice={"memory": "lower ref_fr.batch"})


def restoring(pipeline: Face2ScenePipeline, costs: Costs, *, size: int, face: int = 256) -> Rehearsed:
    """A square image of `size` pixels through the pipeline, with a face of `face` pixels and its Stage I."""
    costs.stages(modules_of(pipeline))
    costs.restart()
    start = (size - face) // 2
    pipeline(Scene("rehearsal", torch.rand(3, size, size)), box=(start, start, start + face, start + face))
    advice = {"memory": "lower pipeline.tile, or set dtype=bf16"}
    return Rehearsed(f"restoring {size} x {size}", "image", costs.peak, dict(costs.work), advice=advice)


def generated_set(folder: Path, *, size: tuple[int, int], count: int) -> int:
    """An InScene set of `count` generated images of (height, width), each with a reference; for the loaders' speed.

    Returns:
        Bytes of an image file.
    """
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number in range(count):
        name, (height, width) = f"images/{number}.png", size
        image = drawn_scene(number, max(size))[:, :height, :width]
        image = (image + torch.randn(image.shape, generator=generator) * 0.02).clamp(0, 1)
        write_png(folder / name, image.permute(1, 2, 0).numpy())
        side, split = 0.4 * min(size), "train"
        box = ((width - side) / 2, 0.1 * height, (width + side) / 2, 0.1 * height + side)
        plain = {"prompt": "", "shot": "mid-up", "landmarks_68": None, "similarity": None, "source": "generated"}
        plain |= {"licence": "", "generator": {}, "width": width, "height": height, "face_box": box}
        others = (f"images/{(number + 1) % count}.png",)
        rows.append(
            Record(
                image=name,
                split=split,
                identity=str(number),
                references=others,
                sha256=sha256_of(folder / name),
                **plain,
            )
        )
    held = [Record(**vars(row) | {"split": "val", "lq": row.image}) for row in rows]
    write_manifest(folder, [*rows, *held])
    return sum((folder / row.image).stat().st_size for row in rows) // count


def loading(data: Any) -> tuple[float, Any]:
    """Seconds of one core for a batch, and a batch; where batches differ in size, the mean and the largest."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        count = min(4, len(getattr(data, "buckets", "-")))
        start = time.process_time()
        batch = [data[number] for number in range(count)][-1]
        seconds = (time.process_time() - start) / count
        if count > 1:
            batch = data.at(*max(data.buckets, key=lambda bucket: bucket[0] ** 2 * bucket[1]))[0]
        return seconds, batch
    finally:
        torch.set_num_threads(threads)


def fits(program: Rehearsed, card: Card, gpus: int) -> bool:
    """Whether the program's memory is that of the card or less."""
    return program.memory(gpus) <= card.memory * 1e9


class RandomLpips(Perceptual):
    """LPIPS with random weights: the same work, without the download."""

    def __init__(self, network: str = "vgg"):
        nn.Module.__init__(self)
        import lpips

        self.network = lpips.LPIPS(net=network, pretrained=False, pnet_rand=True, verbose=False).requires_grad_(False)


def random_source(source: str) -> str:
    """A base of random weights: in the shapes of a local folder, or of SD-Turbo."""
    for folder in filter(None, (Path(source), shipped(source))):
        if (folder / "unet" / "config.json").is_file():
            return f"random:{folder}"
    return "random"
