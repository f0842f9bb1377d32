"""Metrics as data: what each one is called, which way is better, and what must be held fixed.

How they are computed is in `engines`. B images of one size (H, W), float32 RGB in [0, 1].
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from face2scene.assets.catalogue import MissingWeights, recorded
from face2scene.eval.metrics import pyiqa_backend
from face2scene.eval.metrics.fid import Fid
from face2scene.eval.metrics.identity import NO_FACE, WEIGHTS, IdScore
from face2scene.eval.metrics.perceptual import Dists, Lpips
from face2scene.eval.metrics.pyiqa_backend import MetricMissing, Pyiqa, Scorer, torch_home
from face2scene.eval.metrics.ssim import ssim_rgb, ssim_y


@dataclass(frozen=True)
class Metric:
    """One column of a table, and the protocol without which two numbers are not comparable."""

    key: str
    title: str  # as printed in the paper
    better: Literal["higher", "lower"]
    compares: Literal[
        "pair", "alone", "faces", "sets"
    ]  # with the ground truth, with nothing, the ground truth's face, both sets
    engine: Pyiqa | Callable[[torch.device | str], Scorer]
    network: str = "none"  # and what it was trained on
    colour: str = "RGB"
    resize: str = "none"
    bounds: tuple[float | None, float | None] = (0, None)  # of its values; None is unbounded
    least: int = 1  # pixels, smallest side that it takes
    undefined: str = ""  # why a value may be missing without anything being wrong; such images are left out by name
    assets: tuple[str, ...] = ()  # of the catalogue, whose files an engine of ours reads

    def build(self, device: torch.device | str = "cpu") -> Scorer:
        """The metric as a scorer; raises MetricMissing, MissingWeights, or ModuleNotFoundError naming the extra."""
        return self.engine.build(device) if isinstance(self.engine, Pyiqa) else self.engine(device)

    def weights(self) -> dict[str, str]:
        """What stands for the weight files behind it, by name; see `engines.identity`."""
        paths = self.engine.paths(torch_home()) if isinstance(self.engine, Pyiqa) else {}
        found = {name: pyiqa_backend.identity(path) for name, path in paths.items() if path.is_file()}
        return found | {name: digest for asset in self.assets for name, digest in recorded(asset).items()}

    @property
    def identity(self) -> str:
        """Changes with everything that may change a value: protocol, engine and its version, weights."""
        said = self.described()
        return json.dumps([said[key] for key in ("protocol", "engine", "engine_version", "weights_sha256")])

    @property
    def protocol(self) -> str:
        """Everything that must be equal for two values to be comparable, as one sentence."""
        parts = [self.network if self.network != "none" else "", self.colour]
        parts.append("no resize" if self.resize == "none" else self.resize)
        return ", ".join([*filter(None, parts), "no border cropped", "8-bit RGB PNG"])

    def described(self) -> dict[str, Any]:
        """For `scores.json`."""
        return {
            "title": self.title,
            "better": self.better,
            "compares": self.compares,
            "protocol": self.protocol,
            "network": self.network,
            "colour": self.colour,
            "resize": self.resize,
            "crop": "none",
            "range": list(self.bounds),
            "engine": str(self.engine) if isinstance(self.engine, Pyiqa) else "face2scene",
            "engine_version": pyiqa_backend.pyiqa_version() if isinstance(self.engine, Pyiqa) else "",
            "weights_sha256": self.weights(),
        }

    @property
    def arrow(self) -> str:
        return "↑" if self.better == "higher" else "↓"


_Y = "Y of BT.601 YCbCr in 8 bit"
_KONIQ = "KonIQ-10k weights"
_MULTITASK = "multitask weights"
_LIQE_SIDE = "at least 224 pixels a side, fifteen crops of 224"
METRICS: dict[str, Metric] = {
    metric.key: metric
    for metric in (
        Metric(
            "dists",
            "DISTS",
            "lower",
            "pair",
            Pyiqa("dists", files=(pyiqa_backend.VGG16, pyiqa_backend.DISTS), wrap=Dists),
            network="VGG16",
            bounds=(0, 1),
        ),
        Metric(
            "lpips",
            "LPIPS",
            "lower",
            "pair",
            Pyiqa("lpips", files=(pyiqa_backend.ALEXNET, pyiqa_backend.LPIPS_ALEX), wrap=Lpips),
            network="v0.1, AlexNet",
            least=32,
        ),
        Metric(
            "lpips_vgg",
            "LPIPS-VGG",
            "lower",
            "pair",
            Pyiqa("lpips-vgg", files=(pyiqa_backend.VGG16, pyiqa_backend.LPIPS_VGG), wrap=Lpips),
            network="v0.1, VGG16",
            least=16,
        ),
        Metric("psnr", "PSNR", "higher", "pair", Pyiqa("psnr"), colour="dB of the mean error of R, G and B"),
        Metric("psnr_y", "PSNR-Y", "higher", "pair", Pyiqa("psnry", {"color_space": "ycbcr"}), colour=f"dB, {_Y}"),
        Metric(
            "ssim",
            "SSIM-RGB",
            "higher",
            "pair",
            lambda device: ssim_rgb,
            colour="mean over R, G and B, 11 x 11 Gaussian window of 1.5 px",
            bounds=(0, 1),
            least=11,
        ),
        Metric(
            "ssim_y",
            "SSIM",
            "higher",
            "pair",
            lambda device: ssim_y,
            colour=f"{_Y}, 11 x 11 Gaussian window of 1.5 px",
            bounds=(0, 1),
            least=11,
        ),
        Metric(
            "fid",
            "FID",
            "lower",
            "sets",
            Pyiqa("fid", files=(pyiqa_backend.INCEPTION,), wrap=Fid),
            network="Inception of 2015, 2048 features",
            resize="clean-fid's resize to 299 x 299",
        ),
        Metric(
            "musiq",
            "MUSIQ",
            "higher",
            "alone",
            Pyiqa("musiq", files=("hub/pyiqa/musiq_koniq_ckpt-e95806b9.pth",)),
            network=_KONIQ,
            resize="to 384 and 224 beside the full size",
            bounds=(0, 100),
        ),
        Metric(
            "clipiqa",
            "C-IQA",
            "higher",
            "alone",
            Pyiqa("clipiqa", files=(pyiqa_backend.CLIP_R50,)),
            network="CLIP RN50, the prompts Good photo and Bad photo",
            bounds=(0, 1),
        ),
        Metric(
            "maniqa",
            "M-IQA",
            "higher",
            "alone",
            Pyiqa(
                "maniqa",
                files=("hub/pyiqa/ckpt_koniq10k.pt",),
                hub=("timm/vit_base_patch8_224.augreg2_in21k_ft_in1k",),
            ),
            network=_KONIQ,
            resize="crops of 224",
            bounds=(0, 1),
            least=224,
        ),
        Metric(
            "liqe",
            "LIQE",
            "higher",
            "alone",
            Pyiqa("liqe", files=(pyiqa_backend.CLIP_B32, "hub/pyiqa/liqe_koniq.pt")),
            network=f"CLIP ViT-B/32, {_KONIQ}",
            resize=_LIQE_SIDE,
            bounds=(1, 5),
            least=224,
        ),
        Metric(
            "liqe_mix",
            "LIQE-mix",
            "higher",
            "alone",
            Pyiqa("liqe_mix", files=(pyiqa_backend.CLIP_B32, "hub/pyiqa/liqe_mix.pt")),
            network=f"CLIP ViT-B/32, {_MULTITASK}",
            resize=_LIQE_SIDE,
            bounds=(1, 5),
            least=224,
        ),
        Metric(
            "topiq",
            "TOPIQ",
            "higher",
            "alone",
            Pyiqa(
                "topiq_nr",
                files=("hub/pyiqa/cfanet_nr_koniq_res50-9a73138b.pth",),
                hub=("timm/resnet50.a1_in1k",),
            ),
            network=f"topiq_nr, ResNet-50, {_KONIQ}",
            bounds=(0, 1),
            least=32,
        ),
        Metric(
            "niqe",
            "NIQE",
            "lower",
            "alone",
            Pyiqa("niqe", files=(pyiqa_backend.NIQE,)),
            # With the same parameters its code is up to 5 % away from the authors' MATLAB code, by its own calibration.
            network="the published pristine model, pyiqa's implementation",
            colour="Y of YIQ in 8 bit",
            least=192,
        ),
        Metric(
            "id",
            "ID",
            "higher",
            "faces",
            IdScore,
            network="ArcFace MobileFaceNet (w600k_mbf) on the face that YuNet finds in the ground truth",
            resize="aligned to 112 x 112",
            bounds=(-1, 1),
            undefined=NO_FACE,
            assets=WEIGHTS,
        ),
    )
}


def choose(keys: Iterable[str]) -> list[Metric]:
    """The metrics of these keys, in that order; an unknown key is refused with the list of known ones."""
    keys = list(dict.fromkeys(keys))
    unknown = [key for key in keys if key not in METRICS]
    if unknown or not keys:
        raise ValueError(
            f"Unknown metric {', '.join(map(repr, unknown)) or '(none given)'}: "
            f"choose from {', '.join(METRICS)} (option metrics)."
        )
    return [METRICS[key] for key in keys]


def build_all(
    metrics: Iterable[Metric], device: torch.device | str = "cpu"
) -> tuple[dict[str, Scorer], dict[str, str]]:
    """Build each metric once.

    Returns:
        The functions by key, and for each metric that cannot be had, the reason with the command that helps.
    """
    ready: dict[str, Scorer] = {}
    missing: dict[str, str] = {}
    for metric in metrics:
        try:
            ready[metric.key] = metric.build(device)
        except (MetricMissing, MissingWeights, ModuleNotFoundError) as error:
            missing[metric.key] = str(error)
    return ready, missing
