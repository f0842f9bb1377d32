"""The cost of one image of 1024 x 1024, for every method that runs in this process: counted, and measured here.

    python benchmarks/cost.py [--card a6000] [--size 1024] [--measure [NAME ...]] [--again] [--json FILE] [--page FILE]

Counted as by `face2scene rehearse`: the method's own code on tensors without values, operations and bytes by kernel
against the card's data sheet (face2scene/eval/cost/simulation.py). Networks have their published shapes; no weights are
needed. `--measure` runs methods, those of `MEASURED` where none is named, on one thread of this processor, with random
weights where the real ones are not here, and gives processor seconds: those of one call are to be compared with each
other, since what else the machine does slows them by as much.
"""

import argparse
import platform
from collections.abc import Callable
from pathlib import Path
from time import process_time
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import AutoencoderTiny
from diffusers.models.autoencoders.vae import Decoder
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from face2scene.cli.rehearse import composed, pipeline
from face2scene.cli.rehearse import rehearse as rehearsed
from face2scene.common.files import atomic_write, read_json, write_json
from face2scene.common.reproducibility import REPOSITORY
from face2scene.common.types import Scene
from face2scene.eval.baselines.methods import FFDNetColour, RealESRGANx4
from face2scene.eval.baselines.networks import FFDNet, SRVGGNetCompact
from face2scene.eval.cost.cards import CARDS, CONTEXT, EFFICIENCY, FRAGMENTS, Card
from face2scene.eval.cost.complexity import FACEME_STEPS
from face2scene.eval.cost.simulation import Costs, fake_tensors
from face2scene.eval.tables.render import plain_markdown
from face2scene.inference.pipeline import Face2ScenePipeline
from face2scene.models.fadex import FaDeX
from face2scene.models.loading import load_restorer
from face2scene.models.restorer.light_decoders import _Taesd
from face2scene.ref_fr.no_reference import RRDBNet
from face2scene.ref_fr.stand_ins import Copy

FACE = 256  # side in pixels of the face in the scene
VOSR_WIDTHS = (64, 128, 256, 256)  # half of Stable Diffusion 2.1's; its file is not at hand


def released(kind: str) -> Callable[[], Any]:
    """A small method with its network's shape and random weights."""

    def make() -> Any:
        if kind == "ffdnet":
            method: Any = FFDNetColour(sigma=25, device="cpu")
            method.__dict__["network"] = FFDNet().eval()
        else:
            version, network = {"x4plus": ("x4plus", RRDBNet), "general": ("general-x4v3", SRVGGNetCompact)}[kind]
            method = RealESRGANx4(version=version, device="cpu", tile=4096)
            method.__dict__["network"] = network().eval()
        return SimpleNamespace(modules={"network": method.network}, call=lambda image: method(image, 1))

    return make


def stage_two(*overrides: str, decoder: str | None = None, experiment: str = "paper") -> Callable[[], Any]:
    """The pipeline of scripts/restore.py with random weights, on one face whose Stage I costs nothing."""

    def make() -> Any:
        made = pipeline(composed([f"experiment={experiment}", "pipeline.tile=null", *overrides])["restore"])
        if decoder is not None:
            made.restorer.vae.decoder = light(decoder, made.restorer.vae)
            made.restorer.vae.post_quant_conv = None

        return staged(made)

    return make


def photo() -> Any:
    """The weights of `face2scene restore`, whose base has a shape of its own; read outside the counting's tensors."""
    with unset_fake_temporarily():
        restorer = load_restorer(REPOSITORY / "checkpoints/photo/restorer.safetensors")
        fadex = FaDeX.from_file(REPOSITORY / "checkpoints/photo/fadex.safetensors")
    return staged(Face2ScenePipeline(restorer, fadex, ref_fr=Copy(), tile=None))


def staged(made: Face2ScenePipeline) -> Any:
    """A pipeline's parts by name, and its call on one image with one face."""

    def call(image: torch.Tensor) -> Any:
        start = (image.shape[-1] - FACE) // 2
        return made(Scene("cost", image), box=(start, start, start + FACE, start + FACE))

    restorer: Any = made.restorer
    modules = {"FaDeX": made.fadex, "VAE encoder": restorer.vae.encoder, "UNet": restorer.unet}
    modules |= {"VAE decoder": restorer.vae.decoder}
    if hasattr(restorer, "score_net"):
        modules["score network"] = restorer.score_net
    return SimpleNamespace(modules=modules, call=call)


def light(kind: str, vae: Any) -> nn.Module:
    """A light decoder's shape with random weights, in the VAE's precision."""
    like = vae.decoder.conv_in.weight
    if kind == "taesd":
        made: nn.Module = _Taesd(AutoencoderTiny(), vae.config.scaling_factor)
    else:
        blocks = ("UpDecoderBlock2D",) * 4
        made = Decoder(4, 3, up_block_types=blocks, block_out_channels=VOSR_WIDTHS, layers_per_block=2)
    return nn.Module.to(made, like.device, like.dtype).eval().requires_grad_(False)


METHODS: dict[str, Callable[[], Any]] = {
    "FFDNet": released("ffdnet"),
    "Real-ESRGAN general": released("general"),
    "Real-ESRGAN x4plus": released("x4plus"),
    "S3Diff": stage_two("restorer=s3diff"),
    "Face2Scene, Stage II": stage_two(),
    "Face2Scene, Stage II, decoder taesd": stage_two(decoder="taesd"),
    "Face2Scene, Stage II, decoder vosr_decoder": stage_two(decoder="vosr_decoder"),
    "S3Diff, tiny": stage_two("restorer=s3diff_tiny", experiment="quickstart"),
    "Face2Scene, Stage II, tiny": stage_two(experiment="quickstart"),
    "Face2Scene, Stage II, photo": photo,
}
# What runs here, with the largest side at which it is measured; those of full size take minutes and more than 8 GiB.
MEASURED = {
    "FFDNet": 1024,
    "Real-ESRGAN general": 1024,
    "Real-ESRGAN x4plus": 1024,
    "Face2Scene, Stage II, photo": 1024,
    "Face2Scene, Stage II, tiny": 512,
    "S3Diff, tiny": 512,
}
UNCOUNTED = ("S3Diff, tiny",)  # 64 tiles of its latent at 1024: more than half an hour to count


def counted(name: str, card: Card, size: int, efficiency: float) -> dict[str, Any]:
    """Weights, operations, bytes moved, memory and seconds of one image on a card."""
    costs = Costs(card, efficiency)
    with torch.random.fork_rng(), fake_tensors(), costs:
        method = METHODS[name]()
        weights = sum(p.numel() for module in method.modules.values() for p in module.parameters())
        costs.stages(method.modules)
        costs.restart()
        with torch.no_grad():
            method.call(torch.rand(3, size, size))
    return {
        "weights": weights,
        "flops": sum(work.flops for work in costs.work.values()),
        "bytes": sum(work.bytes for work in costs.work.values()),
        "memory": sum(costs.peak.values()) * (1 + FRAGMENTS) + CONTEXT,
        "seconds": sum(work.seconds for work in costs.work.values()),
        "stages": {stage: work.seconds for stage, work in costs.work.items()},
    }


def stage_one(card: Card, efficiency: float) -> dict[str, Any]:
    """FaceMe on one face of 512 x 512, in the steps of the paper's run."""
    program = rehearsed(["experiment=paper"], card, 1, efficiency=efficiency, only=["stage_one"]).programs[0]
    return {
        "weights": None,
        "flops": sum(work.flops for work in program.work.values()),
        "bytes": sum(work.bytes for work in program.work.values()),
        "memory": program.memory(1),
        "seconds": program.seconds(1),
        "stages": {stage: work.seconds for stage, work in program.work.items()},
    }


def measured(name: str, size: int) -> dict[str, Any]:
    """Processor seconds of one image on one thread, after one of 288 pixels that does not count."""
    torch.set_num_threads(1)
    with torch.inference_mode():
        method = METHODS[name]()
        method.call(torch.rand(3, 288, 288))
        start = process_time()
        method.call(torch.rand(3, size, size))
    return {"seconds": process_time() - start, "size": size}


def processor() -> str:
    """Its name."""
    names = Path("/proc/cpuinfo")
    lines = names.read_text().splitlines() if names.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def page(found: dict[str, Any]) -> str:
    """docs/cost.md."""
    card, size = CARDS[found["card"]], found["size"]
    lines = []
    for name in [*found["counted"], *(name for name in UNCOUNTED if name in found["measured"])]:
        row, cpu = found["counted"].get(name), found["measured"].get(name)
        cells = ["-"] * 5
        if row:
            cells = ["-" if row["weights"] is None else f"{row['weights'] / 1e6:.1f}", f"{row['flops'] / 1e12:.2f}"]
            cells += [f"{row['bytes'] / 1e9:.1f}", f"{row['memory'] / 2**30:.1f}", f"{row['seconds']:.3f}"]
        side = "" if not cpu or cpu["size"] == size else f" at {cpu['size']}"
        lines.append([name, *cells, f"{cpu['seconds']:.1f}{side}" if cpu else "-"])
    header = ["method", "weights, M", "TFLOP", "GB moved", "memory, GiB", f"{card.name}, s", "one CPU thread, s"]
    rows = found["counted"]
    both = rows["Stage I, FaceMe"]["seconds"] + rows["Face2Scene, Stage II"]["seconds"]
    one, steps = rows["Stage I, FaceMe"], FACEME_STEPS
    stages = [
        [name, ", ".join(f"{stage} {seconds:.3f}" for stage, seconds in row["stages"].items() if seconds >= 0.0005)]
        for name, row in rows.items()
    ]
    return PAGE.format(
        size=size,
        table=plain_markdown(header, lines),
        stages=plain_markdown(["method", f"seconds by stage on {card.name}"], stages),
        efficiency=f"{EFFICIENCY:.0%}",
        card=card.name,
        both=both,
        processor=found["processor"],
        steps=steps,
        fewer=(2.0 - one["stages"]["other"]) / (one["seconds"] - one["stages"]["other"]) * steps,
        ratio=rows["S3Diff"]["seconds"] / rows["Face2Scene, Stage II"]["seconds"],
        share=both / rows["S3Diff"]["seconds"],
        tiny=tiny_ratio(found["measured"]),
    )


def tiny_ratio(measured: dict[str, Any]) -> str:
    """The two tiny restorers beside each other, where both were measured at one size."""
    ours, other = (measured.get(name) for name in ("Face2Scene, Stage II, tiny", "S3Diff, tiny"))
    if not ours or not other or ours["size"] != other["size"]:
        return ""
    return f"On the tiny base S3Diff takes {other['seconds'] / ours['seconds']:.2f} times as long as Stage II."


PAGE = """# The cost of one image

`python benchmarks/cost.py --measure --again --json docs/cost.json --page docs/cost.md` makes this page: one image of
{size} x {size}, batch 1. Without `--measure` and `--again` it keeps what the JSON file has.

{table}
**Counted** are TFLOP, bytes, memory and the card's seconds, by the model of `face2scene rehearse`
([rehearsal.md](rehearsal.md)): the method's own code on tensors without values, {efficiency} of the card's
arithmetic and 80 % of its bandwidth, assumed and not measured; no card was at hand. A multiply-add counts as two.
Face detection, reading and writing are not in it. Stage I is FaceMe on one face; it restores the face at 512 x 512
whatever the image's size. `tiny` and `photo` have the shapes of the weights that ship; whole, as here, `tiny` attends
to all of the image, and by default it takes tiles of 512. S3Diff predicts its latent in tiles of 96. Real-ESRGAN
enlarges a quarter of the sides by four, as for a degraded image of full size; every other method takes the image
whole. `vosr_decoder` has the half widths that its project states; its file was not at hand.

**Measured** are processor seconds of one thread ({processor}), all in one run beside other programs, so that their
ratios mean more than they do: float32 except the VAE of the diffusion methods, which is as configured; "at 512" is
another size. Random weights where the real ones are not here; they change no time. The networks of full size are not
measured. {tiny}

{stages}
On {card} both stages of Face2Scene together take {both:.2f} s by this model, {share:.1f} times S3Diff's.
The paper's Figure 5 prints 3.3 s (2.0 + 1.3) and 1.4 s for S3Diff on the same card, 2.4 times. Stage I is what
differs: here FaceMe takes the {steps} steps of its released program, and the printed 2.0 s would be about
{fewer:.0f} of them by this model.

Measured before on another processor, two threads of an Intel Xeon with AVX-512 and AMX, at 1024 pixels
(`benchmarks/README.md`): Stage II 116 s and S3Diff 183 s in float32, 1.6 times; here {ratio:.1f} times.
"""


def main() -> None:
    """Count, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--card", choices=CARDS, default="a6000")
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--efficiency", type=float, default=EFFICIENCY)
    parser.add_argument("--measure", nargs="*", choices=METHODS, metavar="NAME", help="or all that run here")
    parser.add_argument("--json", type=Path, help="read, where it is there already, and what is in it kept; written")
    parser.add_argument("--again", action="store_true", help="count again what the file has")
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    earlier = read_json(options.json) if options.json and options.json.is_file() else {}
    found: dict[str, Any] = {"processor": earlier.get("processor", ""), "measured": earlier.get("measured", {})}
    if options.measure is not None:
        found = {"processor": processor(), "measured": {}}
        for name in options.measure or MEASURED:
            found["measured"][name] = measured(name, min(options.size, MEASURED.get(name, options.size)))
            print(name, found["measured"][name], flush=True)
    asked = {"card": options.card, "size": options.size, "efficiency": options.efficiency}
    found |= asked
    same = all(earlier.get(key) == value for key, value in asked.items())
    found["counted"] = dict(earlier["counted"]) if same and not options.again else {}
    for name in METHODS:
        if name not in found["counted"] and name not in UNCOUNTED:
            found["counted"][name] = counted(name, CARDS[options.card], options.size, options.efficiency)
            print(f"{name} is counted", flush=True)
    if "Stage I, FaceMe" not in found["counted"]:
        found["counted"]["Stage I, FaceMe"] = stage_one(CARDS[options.card], options.efficiency)
    if options.json:
        write_json(options.json, found)
    text = page(found)
    print(text)
    if options.page:
        with atomic_write(options.page) as partial:
            partial.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
