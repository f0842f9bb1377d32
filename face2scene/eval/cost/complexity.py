"""The cost of a restoration: parameters, multiply-accumulates, seconds and memory, by stage and size.

Parameters and multiply-accumulates (MACs) follow from shapes and are counted on the meta device, without weights;
seconds and memory are measured on a device, with any weights, random ones too.

One MAC is two of torch's FLOPs. Convolutions, matrix products and attention are counted, element-wise work is not.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from scipy.stats import iqr
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from face2scene.common.files import write_json
from face2scene.common.memory import peak_memory, release_freed_memory
from face2scene.common.provenance import machine, versions
from face2scene.common.reproducibility import commit
from face2scene.eval.tables.render import plain_markdown
from face2scene.models.fadex.encoder import FaDeX
from face2scene.models.mapnet import MapNet
from face2scene.models.restorer.base_model import PackagedBase
from face2scene.models.restorer.one_step import OneStepRestorer
from face2scene.models.restorer.random_base import SD_TURBO, networks

FACE = 512  # side of the faces that FaceMe restores
FACEME_STEPS = 50  # the released code's
SDXL = {  # configuration that its UNet and its ControlNet share
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "block_out_channels": [320, 640, 1280],
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def paper_models(
    device: str | torch.device, dtype: torch.dtype | None = None, ranks: tuple[int, int] = (16, 32)
) -> tuple[OneStepRestorer, FaDeX]:
    """The restorer at SD 2.1's size, and FaDeX, with random weights; on `meta` without any.

    Args:
        dtype: of VAE and UNet; None is as they are used, bfloat16 and float32.
        ranks: of the LoRAs in VAE and UNet; (0, 0) is a restorer whose LoRAs are merged.
    """
    with torch.device("meta"):
        vae, unet, _ = networks(SD_TURBO)
        alphas = torch.linspace(0.999, 0.00466, 1000, device="cpu")  # only its last value is used
        text = torch.randn(2, 77, unet.config.cross_attention_dim)
        base = PackagedBase(vae.requires_grad_(False), unet.requires_grad_(False), text, alphas, "epsilon")
        restorer = OneStepRestorer(base, MapNet(), vae_rank=ranks[0], unet_rank=ranks[1])
        fadex = FaDeX()
    restorer.eval(), fadex.eval()
    if torch.device(device).type != "meta":
        restorer, fadex = (_filled(network, device) for network in (restorer, fadex))
        for network, own in ((restorer.vae, torch.bfloat16), (restorer.unet, torch.float32)):
            nn.Module.to(network, dtype or own)
    return restorer, fadex


def _filled(network: nn.Module, device: str | torch.device) -> nn.Module:
    network = network.to_empty(device=device)
    for parameter in network.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        else:
            nn.init.ones_(parameter)
    for buffer in network.buffers():
        buffer.fill_(buffer.is_floating_point())
    return network


def count(network: nn.Module) -> dict[str, int]:
    """Numbers of `parameters` of a network, and of those that are `trainable`."""
    parameters = list(network.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    return {"parameters": sum(p.numel() for p in parameters), "trainable": trained}


def macs(work: Callable[[], Any]) -> int:
    """Multiply-accumulates of one call."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode(False), torch.no_grad():
        work()
    return counter.get_total_flops() // 2


def timed(
    work: Callable[[], Any], *, device: str | torch.device = "cpu", warmup: int = 2, repeats: int = 5
) -> dict[str, float]:
    """Seconds of `repeats` calls, after `warmup` calls that do not count; on CUDA each is waited for.

    Returns:
        `median`, `spread` (interquartile range) and `least` in seconds; `repeats` and `warmup`; `peak_memory_mib`, on
        CUDA of the tensors, elsewhere of the whole process during the calls.
    """
    if repeats < 1 or warmup < 0:
        raise ValueError(f"cost.repeats must be at least 1 and warmup at least 0, not {repeats} and {warmup}.")
    device = torch.device(device)
    seconds = []
    for number in range(warmup + repeats):
        if number == warmup:
            _reset_peak(device)
        synchronise(device)
        start = perf_counter()
        work()
        synchronise(device)
        if number >= warmup:
            seconds.append(perf_counter() - start)
    found = {"median": statistics.median(seconds), "spread": float(iqr(seconds)), "least": min(seconds)}
    return found | {"repeats": repeats, "warmup": warmup, "peak_memory_mib": _peak(device)}


def synchronise(device: torch.device) -> None:
    """Wait for the work queued on CUDA."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    release_freed_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak on Linux
    except OSError:
        return  # the peak is then that since the start of the process


def _peak(device: torch.device) -> float:
    status = Path("/proc/self/status")
    if device.type != "cuda" and status.is_file():  # `peak_memory` is not reset
        found = next((line for line in status.read_text().splitlines() if line.startswith("VmHWM")), None)
        if found:
            return round(int(found.split()[1]) / 1024, 1)
    return round(peak_memory(device) / 2**20, 1)


def stages(restorer: OneStepRestorer, fadex: FaDeX, *, size: int, face: int) -> dict[str, Callable[[], Any]]:
    """The stages of a restoration as calls: a square image of `size` pixels, no tiles, a face of `face` pixels.

    The UNet runs for both prompts.

    Raises:
        ValueError: a size that VAE and UNet cannot halve.
    """
    if size % restorer.multiple:
        raise ValueError(f"cost.sizes: {size} is no multiple of {restorer.multiple}.")
    device = restorer.null_tokens.device
    image, crop = torch.rand(1, 3, size, size, device=device), torch.rand(1, 3, face, face, device=device)

    def part(work: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            with torch.no_grad(), restorer._autocast():
                return work()

        return run

    extract, encode = part(lambda: fadex(crop, crop)), part(lambda: restorer._encode(image))
    features, latent = extract(), encode()
    tokens = part(lambda: restorer.tokens(features, 1))().expand(2, -1, -1)
    text, noisy = restorer.text[:2].to(device), latent.repeat(2, 1, 1, 1)
    return {
        "FaDeX": extract,
        "MapNet": part(lambda: restorer.mapnet(features)),
        "VAE encoder": encode,
        "UNet": part(lambda: restorer._predict(noisy, text, tokens)),
        "VAE decoder": part(lambda: restorer._decode(latent, image)),
    }


def faceme_networks() -> tuple[UNet2DConditionModel, ControlNetModel, AutoencoderKL]:
    """FaceMe's UNet, ControlNet and VAE at their published shapes, with random weights on the default device."""
    up = ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"]
    vae = AutoencoderKL.from_config(dict(SD_TURBO["vae"]))
    return UNet2DConditionModel(**SDXL, up_block_types=up), ControlNetModel(**SDXL), vae


def faceme_counts(steps: int = FACEME_STEPS) -> tuple[dict[str, dict[str, int]], dict[str, int]]:
    """Parameters of FaceMe's networks, and MACs of all their calls for one face, counted on the meta device.

    SDXL's UNet and its ControlNet run `steps` times for two prompts at 512 x 512; identity networks are left out.
    """
    with torch.device("meta"):
        unet, controlnet, vae = faceme_networks()
        noisy, context = torch.randn(2, 4, FACE // 8, FACE // 8), torch.randn(2, 77, 2048)
        added = {"text_embeds": torch.randn(2, 1280), "time_ids": torch.ones(2, 6)}
        face = torch.rand(1, 3, FACE, FACE)

        def control() -> Any:
            image = face.expand(2, -1, -1, -1)
            return controlnet(noisy, 1, context, controlnet_cond=image, added_cond_kwargs=added, return_dict=False)

        per_face = {
            "SDXL UNet": steps * macs(lambda: unet(noisy, 1, context, added_cond_kwargs=added)),
            "ControlNet": steps * macs(control),
            "VAE": macs(lambda: (vae.encode(face), vae.decode(noisy[:1]))),
        }
    return {"SDXL UNet": count(unet), "ControlNet": count(controlnet), "VAE": count(vae)}, per_face


def complexity(
    restorer: OneStepRestorer,
    fadex: FaDeX,
    *,
    sizes: Sequence[int],
    face: int,
    model: str,
    warmup: int = 2,
    repeats: int = 5,
    counted: tuple[OneStepRestorer, FaDeX] | None = None,
) -> dict[str, Any]:
    """Parameters, MACs and times of all stages and sizes, and FaceMe's counts, as `write` stores them.

    Args:
        restorer, fadex: measured on their device; on `meta` nothing is timed.
        face: side of the face crop in pixels, which decides the cost of FaDeX.
        model: description of the weights, for the record.
        counted: the same models on the meta device, so that counting MACs runs nothing; None counts on those measured.
    """
    device = restorer.null_tokens.device
    networks = {"VAE": restorer.vae, "UNet": restorer.unet, "MapNet": restorer.mapnet, "FaDeX": fadex}
    # FaDeX is trained on its own, so it is no part of the restorer.
    weights = {name: count(network) for name, network in networks.items()}
    weights["restorer in all"] = count(restorer)
    measured = device.type != "meta"
    fast = restorer.merged() if measured else restorer  # as in use: merged LoRAs cost nothing
    rows = []
    for size in sizes:
        parts = stages(fast, fadex, size=size, face=face)
        alike = stages(*counted, size=size, face=face) if counted else parts
        for name, run in parts.items():
            seconds = timed(run, device=device, warmup=warmup, repeats=repeats) if measured else None
            rows.append({"stage": name, "size": size, "macs": macs(alike[name]), "seconds": seconds})
    held, work = faceme_counts()
    faceme = {"steps": FACEME_STEPS, "weights": held, "macs_per_face": work}
    found = {"model": model, "face": face, "weights": weights, "stages": rows, "faceme": faceme}
    return found | {"machine": machine(device), "commit": commit(), "versions": versions()}


def table(found: Mapping[str, Any]) -> str:
    """The record as Markdown."""
    faceme = found["faceme"]
    held = dict(found["weights"]) | {f"FaceMe: {name}": value for name, value in faceme["weights"].items()}
    counts = [
        [name, *(f"{value[key] / 1e6:.3f}" for key in ("parameters", "trainable"))] for name, value in held.items()
    ]
    lines = []
    for row in found["stages"]:
        form = "{median:.4f} {spread:.4f} {peak_memory_mib:.0f}" if row["seconds"] else "- - -"
        spent = form.format(**row["seconds"] or {}).split()
        lines.append([row["stage"], str(row["size"]), f"{row['macs'] / 1e9:.2f}", *spent])
    for name, work in faceme["macs_per_face"].items():
        lines.append([f"FaceMe: {name}, {faceme['steps']} steps", str(FACE), f"{work / 1e9:.2f}", "-", "-", "-"])
    title = f"{found['model']}, face of {found['face']} pixels, {found['machine']['device']}"
    networks = plain_markdown(["network", "parameters, M", "trained, M"], counts)
    header = ["stage", "size", "GMACs", "seconds (median)", "spread", "peak memory, MiB"]
    return "\n".join([title + "\n", networks, plain_markdown(header, lines)])


def write(found: Mapping[str, Any], folder: str | Path) -> None:
    """complexity.json and complexity.md."""
    write_json(Path(folder) / "complexity.json", found)
    (Path(folder) / "complexity.md").write_text(table(found), encoding="utf-8", newline="\n")
