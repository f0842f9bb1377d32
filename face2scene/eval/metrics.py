"""Metrics as data: what each one is called, which way is better, and what must be held fixed.

IQA-PyTorch (`pyiqa`, the extra `metrics`, non-commercial licence) computes them. It looks for its weights
in a torch home folder under fixed file names and downloads what it does not find. Here the files are
*placed* for it, made from the catalogue's, in `torch_home` inside the weights folder; a metric with a file
missing is named as missing, with the command that helps, before pyiqa is asked. Nothing is downloaded and
no hub is retried.

B pictures of one size (H, W), float32 RGB in [0, 1].
"""

import contextlib
import importlib.util
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

from face2scene.extras import need
from face2scene.files import atomic_write, sha256_of
from face2scene.weights import folder, weights_root

Scorer = Callable[..., Tensor | float]
"""`pair`: f(pictures, truths) -> (B,); `alone`: f(pictures) -> (B,); `sets`: f(files, truths) -> float."""


class MetricMissing(RuntimeError):
    """A metric that cannot be computed here; the message says what is missing and how to get it."""


@dataclass(frozen=True)
class Pyiqa:
    """How pyiqa is asked for a metric: its name there, options, and the files it needs in the torch home."""

    name: str
    options: Mapping[str, object] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    hub: tuple[str, ...] = ()  # repositories whose `model.safetensors` must be in the hub's cache

    def __str__(self) -> str:
        options = ", ".join(f"{key}={value}" for key, value in self.options.items())
        return f"pyiqa {self.name}" + (f" ({options})" if options else "")

    def check(self, home: Path) -> None:
        """Raise MetricMissing unless everything this metric needs is at hand; places what can be made."""
        need("pyiqa", "metrics", why=f"The metric {self.name}")
        for file in self.files:
            if not (home / file).is_file():
                _place(file, home)
        if not self.hub:
            return
        import huggingface_hub

        for repository in self.hub:
            if not isinstance(huggingface_hub.try_to_load_from_cache(repository, "model.safetensors"), str):
                raise MetricMissing(f"needs {repository} in the hub's cache: hf download {repository}")

    def build(self, device: torch.device | str) -> Scorer:
        """The metric as a function; raises MetricMissing."""
        home = torch_home()
        self.check(home)
        with (
            _torch_home_is(home),
            contextlib.redirect_stdout(io.StringIO()),
        ):  # pyiqa announces every file it reads
            import pyiqa
            from pyiqa.utils import download_util

            download_util.DEFAULT_CACHE_DIR = str(home / "hub/pyiqa")  # pyiqa read TORCH_HOME if imported earlier
            model = pyiqa.create_metric(self.name, device=torch.device(device), **self.options)
        if self.name == "fid":
            return lambda paths, truths: _fid(model, paths, truths)
        model.to(memory_format=torch.channels_last)  # VGG16 runs in about two thirds of the time on a CPU
        memory = _TruthFeatures(model.net)

        def score(*pictures: Tensor) -> Tensor:
            with torch.inference_mode(), memory.of(pictures[-1]):
                return model(*pictures).double().reshape(len(pictures[0]))

        return score


@dataclass(frozen=True)
class Metric:
    """One column of a table."""

    key: str
    title: str  # as printed in the paper
    better: Literal["higher", "lower"]
    compares: Literal["pair", "alone", "sets"]
    protocol: str  # what must be held fixed for two numbers to be comparable
    engine: Pyiqa | Callable[[torch.device | str], Scorer]

    def build(self, device: torch.device | str = "cpu") -> Scorer:
        """The metric as a function; raises MetricMissing, or ModuleNotFoundError naming the extra."""
        return self.engine.build(device) if isinstance(self.engine, Pyiqa) else self.engine(device)

    def weights(self) -> dict[str, str]:
        """sha256 of the weight files behind it, by name."""
        files = self.engine.files if isinstance(self.engine, Pyiqa) else ()
        return {Path(file).name: sha256_of(torch_home() / file) for file in files if (torch_home() / file).is_file()}

    @property
    def arrow(self) -> str:
        return "↑" if self.better == "higher" else "↓"


VGG16, ALEXNET = "hub/checkpoints/vgg16-397923af.pth", "hub/checkpoints/alexnet-owt-7be5be79.pth"
LPIPS_ALEX, LPIPS_VGG = "hub/pyiqa/LPIPS_v0.1_alex-df73285e.pth", "hub/pyiqa/LPIPS_v0.1_vgg-a78928a0.pth"
DISTS = "hub/pyiqa/DISTS_weights-f5e65c96.pth"
NIQE = "hub/pyiqa/niqe_modelparameters.mat"
CLIP_B32, CLIP_R50 = "hub/clip/ViT-B-32.pt", "hub/clip/RN50.pt"

SAME = "8-bit RGB PNG, no resize, no border cropped"
METRICS: dict[str, Metric] = {
    metric.key: metric
    for metric in (
        Metric("dists", "DISTS", "lower", "pair", f"VGG16; {SAME}", Pyiqa("dists", files=(VGG16, DISTS))),
        Metric(
            "lpips",
            "LPIPS",
            "lower",
            "pair",
            f"v0.1, AlexNet; {SAME}",
            Pyiqa("lpips", files=(ALEXNET, LPIPS_ALEX)),
        ),
        Metric(
            "lpips_vgg",
            "LPIPS-VGG",
            "lower",
            "pair",
            f"v0.1, VGG16; {SAME}",
            Pyiqa("lpips-vgg", files=(VGG16, LPIPS_VGG)),
        ),
        Metric("psnr", "PSNR", "higher", "pair", f"dB, mean over R, G and B; {SAME}", Pyiqa("psnr")),
        Metric(
            "psnr_y",
            "PSNR-Y",
            "higher",
            "pair",
            f"dB, Y of BT.601 YCbCr; {SAME}",
            Pyiqa("psnry", {"color_space": "ycbcr"}),
        ),
        Metric(
            "ssim_y",
            "SSIM",
            "higher",
            "pair",
            f"Y of BT.601 YCbCr, 11 x 11 Gaussian window of 1.5 px, no downsampling; {SAME}",
            lambda device: ssim_y,
        ),
        Metric(
            "fid",
            "FID",
            "lower",
            "sets",
            "Inception 2048, clean-fid resize; 8-bit RGB PNG",
            Pyiqa("fid", files=("hub/pyiqa/pt_inception-2015-12-05-6726825d.pth",)),
        ),
        Metric(
            "musiq",
            "MUSIQ",
            "higher",
            "alone",
            f"KonIQ-10k weights; {SAME}",
            Pyiqa("musiq", files=("hub/pyiqa/musiq_koniq_ckpt-e95806b9.pth",)),
        ),
        Metric("clipiqa", "C-IQA", "higher", "alone", f"CLIP RN50; {SAME}", Pyiqa("clipiqa", files=(CLIP_R50,))),
        Metric(
            "maniqa",
            "M-IQA",
            "higher",
            "alone",
            f"KonIQ-10k weights; {SAME}",
            Pyiqa(
                "maniqa",
                files=("hub/pyiqa/ckpt_koniq10k.pt",),
                hub=("timm/vit_base_patch8_224.augreg2_in21k_ft_in1k",),
            ),
        ),
        Metric(
            "liqe",
            "LIQE",
            "higher",
            "alone",
            f"KonIQ-10k weights, both sides at least 224; {SAME}",
            Pyiqa("liqe", files=(CLIP_B32, "hub/pyiqa/liqe_koniq.pt")),
        ),
        Metric(
            "topiq",
            "TOPIQ",
            "higher",
            "alone",
            f"topiq_nr, ResNet-50, KonIQ-10k weights; {SAME}",
            Pyiqa(
                "topiq_nr",
                files=("hub/pyiqa/cfanet_nr_koniq_res50-9a73138b.pth",),
                hub=("timm/resnet50.a1_in1k",),
            ),
        ),
        Metric(
            "niqe",
            "NIQE",
            "lower",
            "alone",
            f"Y of YIQ, the published pristine model, both sides at least 192; {SAME}",
            Pyiqa("niqe", files=(NIQE,)),
        ),
    )
}


def ssim_y(pictures: Tensor, truths: Tensor) -> Tensor:
    """SSIM of the luma (Wang et al. 2004), (B,) in float64.

    Equal to `pyiqa ssim` on YCbCr, which is far slower: it runs the window as one dense convolution.

    Raises:
        ValueError: a side is under 11 pixels, the window's.
    """
    if min(pictures.shape[-2:]) < 11:
        raise ValueError(f"SSIM needs 11 x 11 pixels, the picture has {pictures.shape[-1]} x {pictures.shape[-2]}.")
    weights = torch.tensor([65.481, 128.553, 24.966], device=pictures.device).view(3, 1, 1)
    x, y = (((image * weights).sum(1, keepdim=True) + 16).round().double() for image in (pictures, truths))
    window = torch.exp(-((torch.arange(11, device=x.device, dtype=x.dtype) - 5) ** 2) / (2 * 1.5**2))
    window = (window / window.sum()).tolist()

    def blurred(image: Tensor) -> Tensor:
        height, width = image.shape[-2] - 10, image.shape[-1] - 10
        rows = sum(w * image[..., i : i + height, :] for i, w in enumerate(window))
        return sum(w * rows[..., i : i + width] for i, w in enumerate(window))

    mean_x, mean_y = blurred(x), blurred(y)
    var_x, var_y = blurred(x * x) - mean_x**2, blurred(y * y) - mean_y**2
    covariance = blurred(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    structure = ((2 * covariance + c2) / (var_x + var_y + c2)).clamp_min(0)  # pyiqa's, as in the official MATLAB code
    return ((2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1) * structure).mean((1, 2, 3))


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
        except (MetricMissing, ModuleNotFoundError) as error:
            missing[metric.key] = str(error)
    return ready, missing


def torch_home() -> Path:
    """Where the files for pyiqa are placed: with our weights, so a person's own torch cache is left alone."""
    return weights_root() / "torch_home"


@contextlib.contextmanager
def _torch_home_is(home: Path) -> Iterator[None]:
    before = os.environ.get("TORCH_HOME")
    os.environ["TORCH_HOME"] = str(home)
    try:
        yield
    finally:
        if before is None:
            del os.environ["TORCH_HOME"]
        else:
            os.environ["TORCH_HOME"] = before


def _place(file: str, home: Path) -> None:
    """Make one file of the torch home from the catalogue's, or raise MetricMissing."""
    makers: dict[str, Callable[[Path], None]] = {
        VGG16: lambda path: _trunk(path, "vgg16", (4096, 25088), (4096, 4096), (1000, 4096), linears=(0, 3, 6)),
        ALEXNET: lambda path: _trunk(path, "alexnet", (4096, 9216), (4096, 4096), (1000, 4096), linears=(1, 4, 6)),
        LPIPS_ALEX: lambda path: _heads(path, "alex"),
        LPIPS_VGG: lambda path: _heads(path, "vgg"),
        DISTS: lambda path: torch.save(load_file(_fetched("dists") / "weights.safetensors"), path),
        NIQE: _niqe_parameters,
        CLIP_R50: lambda path: path.symlink_to((_fetched("clip_rn50") / "RN50.pt").resolve()),
        CLIP_B32: lambda path: path.symlink_to((_fetched("clip_vit_b32") / "ViT-B-32.pt").resolve()),
    }
    pyiqas_own = lambda path: path.symlink_to((_fetched("pyiqa") / Path(file).name).resolve())  # noqa: E731
    with atomic_write(home / file) as partial:
        makers.get(file, pyiqas_own)(partial)


def _fetched(name: str) -> Path:
    try:
        return folder(name)
    except FileNotFoundError as error:
        raise MetricMissing(str(error)) from error


def _trunk(path: Path, name: str, *shapes: tuple[int, int], linears: tuple[int, ...]) -> None:
    # torchvision insists on the classifier, which no metric uses: one stored zero, expanded, is each matrix.
    state = load_file(_fetched("lpips") / f"{name}.safetensors")
    for layer, (outputs, inputs) in zip(linears, shapes, strict=True):
        state[f"classifier.{layer}.weight"] = torch.zeros(1, 1).expand(outputs, inputs)
        state[f"classifier.{layer}.bias"] = torch.zeros(1).expand(outputs)
    torch.save(state, path)


def _heads(path: Path, net: str) -> None:
    spec = importlib.util.find_spec("lpips")  # found, not imported: only its 6 KB of learned weights are wanted
    if spec is None or spec.origin is None:
        raise MetricMissing("needs the linear heads in the package 'lpips': pip install lpips")
    path.write_bytes((Path(spec.origin).parent / f"weights/v0.1/{net}.pth").read_bytes())


def _niqe_parameters(path: Path) -> None:
    import numpy as np
    from scipy.io import savemat

    spec = importlib.util.find_spec("basicsr")  # importing it fails beside a current torchvision; its file is enough
    source = spec and spec.origin and Path(spec.origin).parent / "metrics/niqe_pris_params.npz"
    if not source or not source.is_file():
        raise MetricMissing("needs the parameter file in the package 'basicsr': pip install 'face2scene[degrade]'")
    with np.load(source) as given, open(path, "wb") as file:
        savemat(file, {"mu_prisparam": given["mu_pris_param"], "cov_prisparam": given["cov_pris_param"]})


class _TruthFeatures:
    """DISTS's VGG features of the newest truth, kept while several methods are compared with that tensor."""

    def __init__(self, net: torch.nn.Module):
        self.truth: Tensor | None = None
        self.features: tuple[Tensor, list[Tensor]] | None = None  # the tensor is held too, so that `is` tells the truth
        self.compute = getattr(net, "forward_once", None)
        if self.compute is not None:
            net.forward_once = self.forward_once

    @contextlib.contextmanager
    def of(self, truth: Tensor) -> Iterator[None]:
        self.truth = truth
        try:
            yield
        finally:
            self.truth = None

    def forward_once(self, pictures: Tensor) -> list[Tensor]:
        if self.features is not None and self.features[0] is pictures:
            return self.features[1]
        features = self.compute(pictures)
        if pictures is self.truth:
            self.features = (pictures, features)
        return features


def _fid(model: torch.nn.Module, paths: list[Path], truths: list[Path]) -> float:
    """FID of two lists of files; pyiqa wants folders, so links to exactly these files stand in two."""
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        for side, files in (("a", paths), ("b", truths)):
            (Path(place) / side).mkdir()
            for number, file in enumerate(files):
                (Path(place) / side / f"{number:06d}{file.suffix}").symlink_to(file.resolve())
        return float(model(str(Path(place) / "a"), str(Path(place) / "b")))
