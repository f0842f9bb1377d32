"""Seconds of restoring one picture: ours against S3Diff run the published way, on the same base and machine.

Ours is FaDeX on one face, MapNet and the one-step restorer with merged LoRAs, both prompts in one call and encoded
beforehand. The other side is `restorer=s3diff` as its release runs it: float32, LoRAs modulated in every call, two
UNet calls one after the other, both prompts encoded for every picture, a quarter-size input enlarged by 4. Stage I
is on neither side. Both get copies of one random base; in turns, in this process, the fastest of --repeat runs.

    python benchmarks/restorer.py [--quick] [--size 512] [--device cpu] [--repeat 1] [--json FILE]

The default has SD 2.1's shapes and wants 12 GB of memory; --quick is a narrow base at 256 pixels.
"""

import argparse
import copy
import logging
import time
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel

from face2scene.fadex import FaDeX
from face2scene.files import write_json
from face2scene.mapnet import MapNet
from face2scene.restorer import s3diff
from face2scene.restorer.backbone import CLIP_VOCABULARY, Base
from face2scene.restorer.one_step import OneStepRestorer
from face2scene.restorer.s3diff import S3Diff
from face2scene.restorer.score_net import ScoreNet
from face2scene.runs import REPOSITORY

PROMPTS = (s3diff.POSITIVE, s3diff.NEGATIVE)
STAGES = ("encode", "unet", "decode", "rest")
FACE = 256  # pixels of the face that FaDeX reads, the pipeline's largest; 64 with --quick


def random_base(*, narrow: bool) -> Base:
    """SD 2.1's networks with random weights; `narrow` has a fifth of the channels and two text layers."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[32, 64, 96, 96] if narrow else [128, 256, 512, 512],
        layers_per_block=2,
        scaling_factor=0.18215,
    )
    unet = UNet2DConditionModel(
        block_out_channels=[64, 128, 256, 256] if narrow else [320, 640, 1280, 1280],
        attention_head_dim=[2, 4, 8, 8] if narrow else [5, 10, 20, 20],
        cross_attention_dim=1024,
        use_linear_projection=True,
    )
    text = CLIPTextConfig(
        vocab_size=CLIP_VOCABULARY,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=2 if narrow else 23,
        num_attention_heads=16,
        hidden_act="gelu",
    )
    text_encoder = CLIPTextModel(text)
    tokenizer = AutoTokenizer.from_pretrained(REPOSITORY / "checkpoints/tiny/base/tokenizer")
    alphas = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)
    for network in (vae, unet, text_encoder):
        network.eval().requires_grad_(False)
    return Base(vae, unet, text_encoder, tokenizer, alphas, "epsilon")


class Stages:
    """Seconds and floating-point operations of encoder, UNet and decoder, and of the rest of a call."""

    def __init__(self, model: nn.Module, device: torch.device):
        self.device, self.counter = device, None
        self.seconds: dict[str, float] = {}
        self.flops: dict[str, float] = {}
        for stage, module in (("encode", model.vae.encoder), ("unet", model.unet), ("decode", model.vae.decoder)):
            module.register_forward_pre_hook(lambda *_, stage=stage: self._add(stage, -1))
            module.register_forward_hook(lambda *_, stage=stage: self._add(stage, 1))

    def _add(self, stage: str, sign: int) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[stage] += sign * time.perf_counter()
        if self.counter is not None:
            self.flops[stage] += sign * self.counter.get_total_flops()

    def run(self, work: Callable[[], object], *, count: bool = False) -> dict[str, float]:
        """Seconds by stage and in `total`; with `count` also the operations, which slows the call down."""
        self.seconds, self.flops = (dict.fromkeys((*STAGES, "total"), 0.0) for _ in range(2))
        counting = FlopCounterMode(display=False) if count else nullcontext()
        with counting as self.counter:
            self._add("total", -1)
            work()
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


def operations_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """What a large matrix product reaches here: the best of a few."""
    side = 8192 if device.type == "cuda" else 2048
    a, best = torch.randn(side, side, device=device).to(dtype), 0.0
    for _ in range(6):
        start = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = max(best, 2 * side**3 / (time.perf_counter() - start))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the table here")
    parser.add_argument("--quick", action="store_true", help="a narrow base at 256 pixels, under a minute")
    parser.add_argument("--size", type=int, help="side of the restored picture; a multiple of 256")
    parser.add_argument("--repeat", type=int, default=1, help="timed runs, of which the fastest counts")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    logging.disable(logging.INFO)
    device, size = torch.device(options.device), options.size or (256 if options.quick else 512)

    base = random_base(narrow=options.quick)
    again = Base(
        copy.deepcopy(base.vae),
        copy.deepcopy(base.unet),
        base.text_encoder,
        base.tokenizer,
        base.alphas,
        base.prediction,
    )
    encoder = OmegaConf.to_container(OmegaConf.load(REPOSITORY / "configs/fadex/paper.yaml").encoder)
    fadex = FaDeX(**{k: v for k, v in encoder.items() if k != "_target_"}).eval().to(device)
    ours = OneStepRestorer(base, MapNet(in_channels=256, channels=512, heads=8, width=1024)).merged().to(device)
    other = S3Diff(again, ScoreNet(), start="identity").merged().to(device)
    base.text_encoder.to(device)
    torch.manual_seed(1)
    image, low = torch.rand(1, 3, size, size, device=device), torch.rand(1, 3, size // 4, size // 4, device=device)
    face = torch.rand(1, 3, *[64 if options.quick else FACE] * 2, device=device)

    @torch.inference_mode()
    def run_ours() -> Tensor:
        return ours.restore(image, ours.tokens(fadex(face, face), 1))

    @torch.inference_mode()
    def run_other() -> Tensor:
        ids = [base.tokenizer(p, padding="max_length", max_length=77, return_tensors="pt").input_ids for p in PROMPTS]
        text = torch.cat([base.text_encoder(each.to(device)).last_hidden_state for each in ids])
        other.text = text.to(other.text)
        return other.restore(low, scale=4)

    sides = {"ours": (Stages(ours, device), run_ours), "other": (Stages(other, device), run_other)}
    networks = {"ours": (ours, fadex), "other": (other, base.text_encoder)}
    seconds: dict[tuple[str, str], dict[str, float]] = {}
    memory: dict[tuple[str, str], float | None] = {}
    counted: dict[str, dict[str, float]] = {}
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        for part in (ours.vae, ours.unet):
            part.to(dtype)
        other.merged(dtype)
        for side, (stages, work) in sides.items():
            stages.run(work, count=True)  # the warm-up
            if precision == "fp32":
                counted[side] = dict(stages.flops)
        for _ in range(options.repeat):
            for side, (stages, work) in sides.items():
                with peak_memory(device) as peak:
                    times = dict(stages.run(work))
                best = seconds.setdefault((side, precision), times)
                if times["total"] < best["total"]:
                    seconds[side, precision] = times
                memory[side, precision] = weights_mib(*networks[side]) + peak[0] if peak else None
        print(
            f"{precision}: ours {seconds['ours', precision]['total']:.2f} s, S3Diff "
            f"{seconds['other', precision]['total']:.2f} s",
            flush=True,
        )

    what = f"{size} x {size}, {'narrow base' if options.quick else 'SD 2.1'}, {device.type}, "
    what += f"{torch.get_num_threads()} threads" if device.type == "cpu" else torch.cuda.get_device_name(device)
    results = {}
    for name, mine, published in (
        ("published", "bf16", "fp32"),
        ("equal_fp32", "fp32", "fp32"),
        ("equal_bf16", "bf16", "bf16"),
    ):
        for stage in ("total", *STAGES):
            a, b = seconds["ours", mine][stage], seconds["other", published][stage]
            results[f"{name}_{stage}"] = row(a, b, "s", f"ours {mine}, S3Diff {published}; {what}")
        a, b = memory["ours", mine], memory["other", published]
        note = f"ours {mine}, S3Diff {published}; weights and what a call adds to them"
        results[f"{name}_memory"] = row(a, b, "MiB", note)
    for stage in STAGES:
        a, b = counted["ours"][stage] / 1e12, counted["other"][stage] / 1e12
        results[f"operations_{stage}"] = row(a, b, "TFLOP", "convolutions, matrix products and counted attention")
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        rate = operations_per_second(device, dtype)
        floors = [counted[side]["total"] / rate for side in ("ours", "other")]
        note = f"the operations at the {rate / 1e9:.0f} GFLOP/s that a matrix product reaches here in {precision}"
        results[f"floor_{precision}"] = row(*floors, "s", note)
    print(f"{'measure':<22}{'ours':>10}{'S3Diff':>10}{'ratio':>8}  unit")
    for name, line in results.items():
        cells = [f"{line[key]:.3g}" if line[key] is not None else "-" for key in ("ours", "other", "ratio")]
        print(f"{name:<22}{cells[0]:>10}{cells[1]:>10}{cells[2]:>8}  {line['unit']} ({line['note']})")
    if options.json:
        write_json(options.json, results)


def row(ours: float | None, other: float | None, unit: str, note: str) -> dict:
    ratio = other / ours if ours and other else None
    return {"ours": ours, "other": other, "ratio": ratio, "unit": unit, "note": note}


if __name__ == "__main__":
    main()
