"""The metrics by key: direction, protocol and implementation of each.

Images are (B, 3, H, W), float32 RGB in [0, 1], of one size.
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
from face2scene.eval.metrics.psnr_ssim import psnr_rgb, psnr_y, ssim_rgb, ssim_y
from face2scene.eval.metrics.pyiqa_backend import MetricMissing, Pyiqa, Scorer, torch_home


@dataclass(frozen=True)
class Metric:
    """One metric, with the protocol without which two of its values are not comparable."""

    key: str
    title: str  # as printed in the paper
    better: Literal["higher", "lower"]
    # An image with its ground truth, nothing, the face of both, or two sets of images.
    compares: Literal["pair", "alone", "faces", "sets"]
    engine: Pyiqa | Callable[[torch.device | str], Scorer]
    network: str = "none"  # which one, and what it was trained on
    colour: str = "RGB"
    resize: str = "none"
    bounds: tuple[float | None, float | None] = (0, None)  # of the values; None is unbounded
    min_size: int = 1  # smallest side of an image in pixels
    undefined: str = ""  # why an image may have no value (NaN of `faces`, else infinity); it is left out and named
    assets: tuple[str, ...] = ()  # of the catalogue, whose files an engine of this project reads

    def build(self, device: torch.device | str = "cpu") -> Scorer:
        """The metric as a scorer; raises MetricMissing, MissingWeights, or ModuleNotFoundError naming the extra."""
        return self.engine.build(device) if isinstance(self.engine, Pyiqa) else self.engine(device)

    def weights(self) -> dict[str, str]:
        """Digests of its weight files by name, see `pyiqa_backend.identity`."""
        paths = self.engine.paths(torch_home()) if isinstance(self.engine, Pyiqa) else {}
        found = {name: pyiqa_backend.identity(path) for name, path in paths.items() if path.is_file()}
        return found | {name: digest for asset in self.assets for name, digest in recorded(asset).items()}

    @property
    def identity(self) -> str:
        """Changes with everything that may change a value: protocol, engine and its version, weights."""
        facts = self.described()
        return json.dumps([facts[key] for key in ("protocol", "engine", "engine_version", "weights_sha256")])

    @property
    def protocol(self) -> str:
        """Everything that must be equal for two values to be comparable, as one sentence."""
        parts = [self.network if self.network != "none" else "", self.colour]
        parts.append("no resize" if self.resize == "none" else self.resize)
        return ", ".join([*filter(None, parts), "no border cropped", "8-bit RGB PNG"])

    def described(self) -> dict[str, Any]:
        """The entry of `scores.json`."""
        by_pyiqa = isinstance(self.engine, Pyiqa)
        return {
            **{key: getattr(self, key) for key in ("title", "better", "compares", "protocol", "network", "colour")},
            "resize": self.resize,
            "crop": "none",
            "range": list(self.bounds),
            "engine": str(self.engine) if by_pyiqa else "face2scene",
            "engine_version": pyiqa_backend.pyiqa_version() if by_pyiqa else "",
            "weights_sha256": self.weights(),
        }

    @property
    def arrow(self) -> str:
        return "↑" if self.better == "higher" else "↓"


_Y = "Y of BT.601 YCbCr in 8 bit"
_WINDOW = "11 x 11 Gaussian window of 1.5 px"
_RGB_SSIM = f"mean over R, G and B, {_WINDOW}"
_KONIQ = "KonIQ-10k weights"
_EQUAL = "equal to the ground truth, so that its PSNR is infinite"
_ARCFACE = "ArcFace MobileFaceNet (w600k_mbf) on the face that YuNet finds in the ground truth"
_RGB = "dB of the mean error of R, G and B"
_PROMPTS = "CLIP RN50, the prompts Good photo and Bad photo"
_CLEAN_FID = "clean-fid's resize to 299 x 299"
_SIZES = "to 384 and 224 beside the full size"
# By pyiqa's own calibration up to 5 % away from the authors' MATLAB code, with the same parameters.
_PRISTINE = "the published pristine model, pyiqa's implementation"
_SSIM = {"bounds": (0, 1), "min_size": 11}
_LIQE = {"resize": "at least 224 pixels a side, fifteen crops of 224", "bounds": (1, 5), "min_size": 224}
_ID = {"resize": "aligned to 112 x 112", "bounds": (-1, 1), "undefined": NO_FACE, "assets": WEIGHTS}

_DISTS = Pyiqa("dists", (pyiqa_backend.VGG16, pyiqa_backend.DISTS), wrap=Dists)
_LPIPS = Pyiqa("lpips", (pyiqa_backend.ALEXNET, pyiqa_backend.LPIPS_ALEX), wrap=Lpips)
_LPIPS_VGG = Pyiqa("lpips-vgg", (pyiqa_backend.VGG16, pyiqa_backend.LPIPS_VGG), wrap=Lpips)
_FID = Pyiqa("fid", (pyiqa_backend.INCEPTION,), wrap=Fid)
_MUSIQ = Pyiqa("musiq", ("hub/pyiqa/musiq_koniq_ckpt-e95806b9.pth",))
_MANIQA = Pyiqa("maniqa", ("hub/pyiqa/ckpt_koniq10k.pt",), ("timm/vit_base_patch8_224.augreg2_in21k_ft_in1k",))
_TOPIQ = Pyiqa("topiq_nr", ("hub/pyiqa/cfanet_nr_koniq_res50-9a73138b.pth",), ("timm/resnet50.a1_in1k",))
_NIQE = Pyiqa("niqe", (pyiqa_backend.NIQE,))
_CLIPIQA = Pyiqa("clipiqa", (pyiqa_backend.CLIP_R50,))
_LIQE_KONIQ = Pyiqa("liqe", (pyiqa_backend.CLIP_B32, "hub/pyiqa/liqe_koniq.pt"))
_LIQE_MIX = Pyiqa("liqe_mix", (pyiqa_backend.CLIP_B32, "hub/pyiqa/liqe_mix.pt"))
_ALL = (
    Metric("dists", "DISTS", "lower", "pair", _DISTS, "VGG16", bounds=(0, 1)),
    Metric("lpips", "LPIPS", "lower", "pair", _LPIPS, "v0.1, AlexNet", min_size=32),
    Metric("lpips_vgg", "LPIPS-VGG", "lower", "pair", _LPIPS_VGG, "v0.1, VGG16", min_size=16),
    Metric("psnr", "PSNR", "higher", "pair", lambda _: psnr_rgb, colour=_RGB, undefined=_EQUAL),
    Metric("psnr_y", "PSNR-Y", "higher", "pair", lambda _: psnr_y, colour=f"dB, {_Y}", undefined=_EQUAL),
    Metric("ssim", "SSIM-RGB", "higher", "pair", lambda _: ssim_rgb, colour=_RGB_SSIM, **_SSIM),
    Metric("ssim_y", "SSIM", "higher", "pair", lambda _: ssim_y, colour=f"{_Y}, {_WINDOW}", **_SSIM),
    Metric("fid", "FID", "lower", "sets", _FID, "Inception of 2015, 2048 features", resize=_CLEAN_FID),
    Metric("musiq", "MUSIQ", "higher", "alone", _MUSIQ, _KONIQ, resize=_SIZES, bounds=(0, 100)),
    Metric("clipiqa", "C-IQA", "higher", "alone", _CLIPIQA, _PROMPTS, bounds=(0, 1)),
    Metric("maniqa", "M-IQA", "higher", "alone", _MANIQA, _KONIQ, resize="crops of 224", bounds=(0, 1), min_size=224),
    Metric("liqe", "LIQE", "higher", "alone", _LIQE_KONIQ, f"CLIP ViT-B/32, {_KONIQ}", **_LIQE),
    Metric("liqe_mix", "LIQE-mix", "higher", "alone", _LIQE_MIX, "CLIP ViT-B/32, multitask weights", **_LIQE),
    Metric("topiq", "TOPIQ", "higher", "alone", _TOPIQ, f"topiq_nr, ResNet-50, {_KONIQ}", bounds=(0, 1), min_size=32),
    Metric("niqe", "NIQE", "lower", "alone", _NIQE, _PRISTINE, "Y of YIQ in 8 bit", min_size=192),
    Metric("id", "ID", "higher", "faces", IdScore, _ARCFACE, **_ID),
)
METRICS: dict[str, Metric] = {metric.key: metric for metric in _ALL}


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
    """Scorers by key, and for each metric that is not available the reason with the command that installs it."""
    ready, missing = {}, {}
    for metric in metrics:
        try:
            ready[metric.key] = metric.build(device)
        except (MetricMissing, MissingWeights, ModuleNotFoundError) as error:
            missing[metric.key] = str(error)
    return ready, missing
