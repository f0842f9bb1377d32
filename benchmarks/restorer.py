"""Restoring one image and training one step: ours against S3Diff as published, on the same base and machine.

Restoring. Ours is FaDeX on one face, MapNet and the one-step restorer as in the pipeline: merged LoRAs, upsampling
fused with its convolutions, both prompts in one call and encoded beforehand. The other side is `restorer=s3diff` as
released: float32, LoRAs modulated in every call, two UNet calls one after the other, both prompts encoded for every
image, a quarter-size input enlarged by 4. Stage I is on neither side. Both have the same random base and run one after
the other in this process; the fastest of --repeat runs counts. Beside every speed stands the PSNR to the float32
picture of the same side; the goal is 45 dB.

Training. One step of `train.loop` with `order=one_forward` against `order=published` (two restorations, four optimiser
steps), the same restorer, discriminator, batch and precision, in turns.

    python benchmarks/restorer.py [--quick] [--size 512] [--device cpu] [--repeat 1] [--json FILE]
        [--precisions fp32,mixed,bf16] [--cpu-seconds] [--only restore|train]

The default has SD 2.1's shapes and wants 8 GB of memory; --quick is a narrow base at 256 pixels. --cpu-seconds counts
the processor time of this process in place of the clock's, for machines that others use too (on a CPU only).
"""

import argparse
import logging
import time
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from omegaconf import OmegaConf
from table import show
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoTokenizer

from face2scene.common.files import write_json
from face2scene.common.memory import keep_freed_memory, release_freed_memory
from face2scene.common.reproducibility import REPOSITORY
from face2scene.models.fadex import FaDeX
from face2scene.models.mapnet import MapNet
from face2scene.models.restorer.base_model import DiffusionBase
from face2scene.models.restorer.discriminator import VIT_B16, Discriminator, load_features
from face2scene.models.restorer.one_step import OneStepRestorer
from face2scene.models.restorer.random_base import SD_TURBO, networks
from face2scene.models.s3diff import model as s3diff
from face2scene.models.s3diff.degradation_scores import ScoreNet
from face2scene.models.s3diff.model import S3Diff
from face2scene.train.loop import step
from face2scene.train.restorer_task import RestorerTask

PROMPTS = (s3diff.POSITIVE, s3diff.NEGATIVE)
STAGES = ("encode", "unet", "decode", "rest")
FACE = 256  # pixels of the face that FaDeX reads, the pipeline's largest; 64 with --quick


NARROW = {
    "vae": {"block_out_channels": [32, 64, 96, 96]},
    "unet": {"block_out_channels": [64, 128, 256, 256], "attention_head_dim": [2, 4, 8, 8]},
    "text_encoder": {"num_hidden_layers": 2},
    "scheduler": {},
}


def random_base(*, narrow: bool) -> DiffusionBase:
    """SD 2.1's networks with random weights; `narrow` has a fifth of the channels and two text layers."""
    torch.manual_seed(0)
    shapes = {part: dict(config) | (NARROW[part] if narrow else {}) for part, config in SD_TURBO.items()}
    vae, unet, text_encoder = networks(shapes)
    tokenizer = AutoTokenizer.from_pretrained(REPOSITORY / "checkpoints/tiny/base/tokenizer", trust_remote_code=False)
    alphas = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)
    for network in (vae, unet, text_encoder):
        network.eval().requires_grad_(False)
    return DiffusionBase(vae, unet, text_encoder, tokenizer, alphas, "epsilon")


class Stages:
    """Seconds and floating-point operations of encoder, UNet and decoder, and of the rest of a call."""

    def __init__(self, model: nn.Module, device: torch.device, clock: Callable[[], float]):
        self.device, self.clock, self.counter = device, clock, None
        self.seconds: dict[str, float] = {}
        self.flops: dict[str, float] = {}
        for stage, module in (("encode", model.vae.encoder), ("unet", model.unet), ("decode", model.vae.decoder)):
            module.register_forward_pre_hook(lambda *_, stage=stage: self._add(stage, -1))
            module.register_forward_hook(lambda *_, stage=stage: self._add(stage, 1))

    def _add(self, stage: str, sign: int) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[stage] += sign * self.clock()
        if self.counter is not None:
            self.flops[stage] += sign * self.counter.get_total_flops()

    def run(self, work: Callable[[], object], *, count: bool = False) -> dict[str, float]:
        """Seconds by stage and in `total`; with `count` also the operations, which slows the call down."""
        self.seconds, self.flops = (dict.fromkeys((*STAGES, "total"), 0.0) for _ in range(2))
        counting = FlopCounterMode(display=False) if count else nullcontext()
        with counting as self.counter:
            self._add("total", -1)
            self.output = work()
            self._add("total", 1)
        self.counter = None
        self.flops["rest"] = self.flops["total"] - sum(self.flops[s] for s in STAGES[:3])
        self.seconds["rest"] = self.seconds["total"] - sum(self.seconds[s] for s in STAGES[:3])
        return self.seconds


@contextmanager
def peak_memory(device: torch.device):
    """Yields a list that holds, afterwards, the MiB needed on top of what was there before."""
    peak: list[float] = []
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak.append((torch.cuda.max_memory_allocated(device) - before) / 2**20)
        return
    release_freed_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    except OSError:
        yield peak
        return
    before = _status("VmRSS")
    yield peak
    peak.append((_status("VmHWM") - before) / 1024)


def _status(key: str) -> int:
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if key in line)


def weights_mib(*modules: nn.Module) -> float:
    tensors = {id(t): t for module in modules for t in (*module.parameters(), *module.buffers())}
    return sum(t.numel() * t.element_size() for t in tensors.values()) / 2**20


def operations_per_second(device: torch.device, dtype: torch.dtype, clock: Callable[[], float]) -> float:
    """Floating-point operations per second of a large matrix product: the best of six."""
    side = 8192 if device.type == "cuda" else 2048
    a, best = torch.randn(side, side, device=device).to(dtype), 0.0
    for _ in range(6):
        start = clock()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = max(best, 2 * side**3 / (clock() - start))
    return best


class RandomLpips(nn.Module):
    """LPIPS on VGG with random weights: the same operations, without the download."""

    def __init__(self):
        super().__init__()
        import lpips

        self.network = lpips.LPIPS(net="vgg", pnet_rand=True, pretrained=False, verbose=False).requires_grad_(False)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return self.network(output, target).mean()


def train_rows(options: argparse.Namespace, device: torch.device, clock: Callable[[], float], what: str) -> dict:
    """A training step in our order and in the published one."""
    crop = 64 if options.quick else 256
    base = random_base(narrow=options.quick)
    restorer = OneStepRestorer(base, MapNet(in_channels=8, channels=64, heads=8, width=1024)).to(device)
    del base
    restorer.checkpoint_gradients()
    vit = {"hidden_size": 96, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 384}
    discriminator = Discriminator(
        load_features((vit if options.quick else VIT_B16) | {"image_size": 224, "patch_size": 16})
    )
    batch = {name: torch.rand(1, 3, crop, crop, device=device) for name in ("image", "gt", "target")}
    batch |= {name: torch.rand(1, 8, 32, 32, device=device) for name in ("restored", "degraded")}
    batch |= {"negative": torch.tensor([False], device=device), "drop": torch.tensor([False], device=device)}
    batch["seed"] = torch.tensor([0])
    accelerator = Accelerator(cpu=device.type == "cpu")
    near, faces, settings = RandomLpips(), _Faces(), {"lr": 2e-5, "device": device, "about": {}}
    orders = ("one_forward", "published")
    tasks = {
        o: RestorerTask(restorer, faces, near, None, [], discriminator=discriminator, order=o, **settings)
        for o in orders
    }
    seconds, memory = dict.fromkeys(orders, float("inf")), {}
    for turn in range(options.repeat + (not options.no_warm_up)):
        for order, task in tasks.items():
            with peak_memory(device) as peak:
                start = clock()
                step(task, [batch], accelerator, 1.0)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                spent = clock() - start
            if turn or options.no_warm_up:
                seconds[order] = min(seconds[order], spent)
                memory[order] = weights_mib(restorer, discriminator, near) + peak[0] if peak else None
    note = f"one_forward, published; a step of one {crop} x {crop} crop, fp32, gradient checkpointing; {what}"
    return {
        "train_step": row(seconds["one_forward"], seconds["published"], "s", note),
        "train_memory": row(memory["one_forward"], memory["published"], "MiB", "weights and what a step adds to them"),
    }


class _Faces(nn.Module):
    # In FaDeX's place, which is frozen and the same on both sides.
    def forward(self, restored: Tensor, degraded: Tensor) -> Tensor:
        return restored - degraded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the table here")
    parser.add_argument("--quick", action="store_true", help="a narrow base at 256 pixels, under a minute")
    parser.add_argument("--size", type=int, help="side of the restored image; a multiple of 256")
    parser.add_argument("--repeat", type=int, default=1, help="timed runs, of which the fastest counts")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--precisions", default="fp32,mixed,bf16", help="fp32 first; bf16 only where the processor has it"
    )
    parser.add_argument("--cpu-seconds", action="store_true", help="processor time in place of the clock's")
    parser.add_argument("--only", choices=("restore", "train"), help="one half of the measurements")
    parser.add_argument("--no-warm-up", action="store_true", help="the first run counts already, slower by its set-up")
    options = parser.parse_args()
    keep_freed_memory()  # both sides alike
    logging.disable(logging.INFO)
    device = torch.device(options.device)
    clock = time.process_time if options.cpu_seconds else time.perf_counter
    what = f"{'narrow base' if options.quick else 'SD 2.1'}, {device.type}, "
    what += f"{torch.get_num_threads()} threads" if device.type == "cpu" else torch.cuda.get_device_name(device)
    what += ", processor time" if options.cpu_seconds else ""
    results = {}
    if options.only != "train":
        results |= restore_rows(options, device, clock, what)
    if options.only != "restore":
        results |= train_rows(options, device, clock, what)
    show(results)
    if options.json:
        write_json(options.json, results)


def build_ours(
    options: argparse.Namespace, device: torch.device, size: int
) -> tuple[nn.Module, tuple[nn.Module, ...], Callable[[], Tensor]]:
    """Our restorer, all that is held in memory for it, and what restores one image."""
    encoder = OmegaConf.to_container(OmegaConf.load(REPOSITORY / "configs/fadex/paper.yaml").encoder)
    fadex = FaDeX(**{k: v for k, v in encoder.items() if k != "_target_"}).eval().to(device)
    mapnet = MapNet(in_channels=256, channels=512, heads=8, width=1024)
    ours = OneStepRestorer(random_base(narrow=options.quick), mapnet).merged().to(device)
    torch.manual_seed(1)
    image = torch.rand(1, 3, size, size, device=device)
    face = torch.rand(1, 3, *[64 if options.quick else FACE] * 2, device=device)

    @torch.inference_mode()
    def run() -> Tensor:
        return ours.restore(image, ours.tokens(fadex(face, face), 1))

    return ours, (ours, fadex), run


def build_other(
    options: argparse.Namespace, device: torch.device, size: int
) -> tuple[nn.Module, tuple[nn.Module, ...], Callable[[], Tensor]]:
    """The same of S3Diff, run the published way."""
    base = random_base(narrow=options.quick)
    tokenizer, text_encoder = base.tokenizer, base.text_encoder
    other = S3Diff(base, ScoreNet(), start="identity").merged().to(device)
    text_encoder.to(device)
    torch.manual_seed(1)
    low = torch.rand(1, 3, size // 4, size // 4, device=device)

    @torch.inference_mode()
    def run() -> Tensor:
        ids = [tokenizer(p, padding="max_length", max_length=77, return_tensors="pt").input_ids for p in PROMPTS]
        text = torch.cat([text_encoder(each.to(device)).last_hidden_state for each in ids])
        other.text = text.to(other.text)
        return other.restore(low, scale=4)

    return other, (other, text_encoder), run


def restore_rows(options: argparse.Namespace, device: torch.device, clock: Callable[[], float], what: str) -> dict:
    """Restoring one image, by stage, ours and S3Diff's."""
    size = options.size or (256 if options.quick else 512)
    # mixed is the default of restorer=sd_turbo: the VAE in bf16, the UNet in float32 (TF32 on cards that have it)
    dtypes = {"fp32": torch.float32, "mixed": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    pictures: dict[tuple[str, str], Tensor] = {}
    precisions = {name: dtypes[name] for name in options.precisions.split(",")}
    seconds: dict[tuple[str, str], dict[str, float]] = {}
    memory: dict[tuple[str, str], float | None] = {}
    counted: dict[str, dict[str, float]] = {}
    for side, build in (("ours", build_ours), ("other", build_other)):  # one after the other: memory for one is enough
        model, held, work = build(options, device, size)
        stages = Stages(model, device, clock)
        for precision, dtype in precisions.items():
            model.merged(dtype)
            if precision == "mixed":
                nn.Module.to(model.vae, torch.bfloat16)
            with peak_memory(device) as peak:
                times = dict(stages.run(work, count=True))  # the warm-up
            pictures[side, precision] = stages.output.float()
            counted.setdefault(side, dict(stages.flops))
            best = times if options.no_warm_up else None
            for _ in range(0 if options.no_warm_up else options.repeat):
                with peak_memory(device) as peak:
                    times = dict(stages.run(work))
                best = times if best is None or times["total"] < best["total"] else best
            seconds[side, precision] = best
            memory[side, precision] = weights_mib(*held) + peak[0] if peak else None
            print(f"{precision}, {side}: {best['total']:.2f} s, {fidelity(pictures, side, precision)}", flush=True)
        del model, held, work, stages

    what = f"{size} x {size}, {what}"
    results = {}
    compared = (
        ("published", "mixed", "fp32"),
        ("published_bf16", "bf16", "fp32"),
        ("equal_fp32", "fp32", "fp32"),
        ("equal_bf16", "bf16", "bf16"),
    )
    for name, mine, published in compared:
        if not {mine, published} <= precisions.keys():
            continue
        for stage in ("total", *STAGES):
            a, b = seconds["ours", mine][stage], seconds["other", published][stage]
            results[f"{name}_{stage}"] = row(
                a, b, "s", f"ours {mine} ({fidelity(pictures, 'ours', mine)}), S3Diff {published}; {what}"
            )
        a, b = memory["ours", mine], memory["other", published]
        note = f"ours {mine}, S3Diff {published}; weights and what a call adds to them"
        results[f"{name}_memory"] = row(a, b, "MiB", note)
    for stage in STAGES:
        a, b = counted["ours"][stage] / 1e12, counted["other"][stage] / 1e12
        results[f"operations_{stage}"] = row(a, b, "TFLOP", "convolutions, matrix products and counted attention")
    for precision, dtype in precisions.items():
        rate = operations_per_second(device, dtype, clock)
        floors = [counted[side]["total"] / rate for side in ("ours", "other")]
        note = f"the operations at the {rate / 1e9:.0f} GFLOP/s that a matrix product reaches here in {precision}"
        results[f"floor_{precision}"] = row(*floors, "s", note)
    return results


def fidelity(pictures: dict[tuple[str, str], Tensor], side: str, precision: str) -> str:
    """PSNR to the float32 picture of the same side, in words; 45 dB is the goal."""
    if precision == "fp32" or (side, "fp32") not in pictures:
        return "float32 itself" if precision == "fp32" else "no float32 picture to compare with"
    error = (pictures[side, precision] - pictures[side, "fp32"]).square().mean()
    return f"{-10 * error.log10().item():.1f} dB to its float32 picture"


def row(ours: float | None, other: float | None, unit: str, note: str) -> dict:
    ratio = other / ours if ours and other else None
    return {"ours": ours, "other": other, "ratio": ratio, "unit": unit, "note": note}


if __name__ == "__main__":
    main()
