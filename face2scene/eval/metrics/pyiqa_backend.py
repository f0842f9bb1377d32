"""What computes a metric: pyiqa, given its files by us, and how each kind of metric is called.

IQA-PyTorch (`pyiqa`, the extra `metrics`, non-commercial licence) looks for its weights in a torch home folder under
fixed file names and downloads what it does not find. Here they are links in `torch_home`, inside the weights folder, to
the files of fetched assets, which the converters make: the same bytes on every machine. A metric with a file missing
or changed is named before pyiqa is asked. Nothing is downloaded and no hub is retried.

B images of one size (H, W), float32 RGB in [0, 1].
"""

import contextlib
import hashlib
import importlib.util
import io
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from face2scene.assets.catalogue import catalogue, folder, recorded, verify, weights_root
from face2scene.common.files import atomic_write, sha256_of
from face2scene.common.optional import import_optional

PerImage = Callable[..., Tensor]
"""`pair`: f(images, ground truths) -> (B,); `alone`: f(images) -> (B,); `faces`: f(images, ground truths, boxes) ->
(B,)."""


class SetScorer(Protocol):
    """A metric of two sets of images."""

    def features(self, images: Tensor) -> Tensor:
        """What stands for each image, (B, D)."""
        ...

    def distance(self, ours: Tensor, theirs: Tensor) -> float:
        """The metric of two sets of features, (N, D) and (M, D)."""
        ...


Scorer = PerImage | SetScorer


class MetricMissing(RuntimeError):
    """A metric that cannot be computed here; the message says what is missing and how to get it."""


@dataclass(frozen=True)
class Pyiqa:
    """How pyiqa is asked for a metric.

    Args:
        name: the metric's name there.
        options: of `pyiqa.create_metric`.
        files: what it reads in the torch home.
        hub: repositories whose `model.safetensors` it loads through timm.
        wrap: makes the scorer from pyiqa's network, where ours computes the same values in less time.
    """

    name: str
    options: Mapping[str, object] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    hub: tuple[str, ...] = ()
    wrap: Callable[[nn.Module, torch.device], Scorer] | None = None

    def __str__(self) -> str:
        options = ", ".join(f"{key}={value}" for key, value in self.options.items())
        return f"pyiqa {self.name}" + (f" ({options})" if options else "")

    def paths(self, home: Path) -> dict[str, Path]:
        """Its weight files by name, as far as they are here: of the torch home, and of the hub's cache."""
        found = {Path(file).name: home / file for file in self.files}
        for repository in self.hub if importlib.util.find_spec("huggingface_hub") else ():
            import huggingface_hub

            cached = huggingface_hub.try_to_load_from_cache(repository, "model.safetensors")
            found |= {repository: Path(cached)} if isinstance(cached, str) else {}
        return found

    def check(self, home: Path) -> None:
        """Raise MetricMissing unless everything this metric needs is at hand and whole; places what can be made."""
        import_optional("pyiqa", "metrics", why=f"The metric {self.name}")
        for file in self.files:
            ready(file, home)
        for repository in set(self.hub) - self.paths(home).keys():
            raise MetricMissing(f"needs {repository} in the hub's cache: hf download {repository}")

    def network(self, device: torch.device | str) -> Any:
        """pyiqa's own metric object; raises MetricMissing."""
        home = torch_home()
        self.check(home)
        with (
            _torch_home_is(home),
            contextlib.redirect_stdout(io.StringIO()),
        ):  # pyiqa announces every file it reads
            import pyiqa
            from pyiqa.utils import download_util

            download_util.DEFAULT_CACHE_DIR = str(home / "hub/pyiqa")  # pyiqa read TORCH_HOME if imported earlier
            return pyiqa.create_metric(self.name, device=torch.device(device), **self.options)

    def build(self, device: torch.device | str) -> Scorer:
        """The metric as a scorer; raises MetricMissing."""
        model = self.network(device)
        if self.wrap is not None:
            return self.wrap(model.net, torch.device(device))
        model.to(memory_format=torch.channels_last)

        def score(*images: Tensor) -> Tensor:
            with torch.inference_mode():
                return model(*images).double().reshape(len(images[0]))

        return score


# --- the files pyiqa reads ----------------------------------------------------------------------------------

VGG16, ALEXNET = "hub/checkpoints/vgg16-397923af.pth", "hub/checkpoints/alexnet-owt-7be5be79.pth"
LPIPS_ALEX, LPIPS_VGG = "hub/pyiqa/LPIPS_v0.1_alex-df73285e.pth", "hub/pyiqa/LPIPS_v0.1_vgg-a78928a0.pth"
DISTS = "hub/pyiqa/DISTS_weights-f5e65c96.pth"
INCEPTION = "hub/pyiqa/pt_inception-2015-12-05-6726825d.pth"
NIQE = "hub/pyiqa/niqe_modelparameters.mat"
CLIP_B32, CLIP_R50 = "hub/clip/ViT-B-32.pt", "hub/clip/RN50.pt"
_ASSETS = {  # the assets that hold a file, the first that is fetched; all others are pyiqa's own
    **dict.fromkeys((VGG16, ALEXNET, LPIPS_ALEX, LPIPS_VGG), ("lpips",)),
    DISTS: ("dists",),
    INCEPTION: ("fid_inception", "pyiqa"),
    CLIP_R50: ("clip_rn50",),
    CLIP_B32: ("clip_vit_b32",),
    NIQE: (),
}


def pyiqa_version() -> str:
    """The version of pyiqa, or nothing where it is not installed."""
    try:
        return version("pyiqa")
    except PackageNotFoundError:
        return ""


def torch_home() -> Path:
    """Where the files for pyiqa are linked: with our weights, so a person's own torch cache is left alone."""
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


def ready(file: str, home: Path) -> Path:
    """A file of the torch home, linked there if need be.

    Raises:
        MetricMissing: its asset is not fetched, or it is not the file that was fetched or that the catalogue names.
    """
    path, assets = home / file, _ASSETS.get(file, ("pyiqa",))
    if not path.is_file() or (not path.is_symlink() and any(map(recorded, assets))):
        with atomic_write(path) as partial:
            if file == NIQE:
                _niqe_parameters(partial)
            else:
                name = next(filter(recorded, assets), assets[0])
                try:
                    source = folder(name) / path.name
                except FileNotFoundError as error:
                    raise MetricMissing(str(error)) from error
                partial.symlink_to(os.path.relpath(source.resolve(), path.parent.resolve()))
    known = {name: recorded(name).get(path.name) or _published(name, path.name) for name in assets}
    if any(known.values()) and (found := sha256_of(path)) not in known.values():
        name, digest = next((name, digest) for name, digest in known.items() if digest)
        raise MetricMissing(
            f"needs {path} as it was, and its sha256 is {found[:16]}... where {digest[:16]}... is known: "
            f"remove {path.resolve()} and run `face2scene fetch {name}`"
        )
    return path


def identity(path: Path) -> str:
    """What stands for a weights file in a protocol: its sha256, or of a file made here the sha256 of what it holds.

    A torch archive or a .mat file of the same numbers may have other bytes, from another version of its writer.
    """
    facts = path.stat()
    return _identity(path, facts.st_mtime_ns, facts.st_size)


@cache
def _identity(path: Path, changed: int, size: int) -> str:
    made = {Path(file).name for file in (VGG16, ALEXNET, DISTS, INCEPTION, NIQE)}
    if path.name not in made:
        return sha256_of(path)
    try:
        if path.suffix == ".mat":
            from scipy.io import loadmat

            held = {k: torch.from_numpy(v) for k, v in loadmat(path).items() if not k.startswith("__")}
        else:
            held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # somebody else's file under this name
        return sha256_of(path)
    digest = hashlib.sha256()
    for key, tensor in sorted(held.items()):
        if not key.startswith(_UNUSED):
            digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)} ".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


_UNUSED = ("classifier.", "fc.")  # no metric reads these layers; in files made here they are zeros


def _published(asset: str, name: str) -> str | None:
    facts = catalogue()[asset].files.get(name)
    return facts.sha256 if facts else None


def fetched(name: str) -> Path:
    """The folder of a fetched asset whose files are whole; raises MetricMissing."""
    try:
        place = folder(name)
    except FileNotFoundError as error:
        raise MetricMissing(str(error)) from error
    if degraded := verify(name):
        raise MetricMissing(degraded[0])
    return place


def _niqe_parameters(path: Path) -> None:
    import numpy as np
    from scipy.io import savemat

    spec = importlib.util.find_spec("basicsr")  # importing it fails beside a current torchvision; its file is enough
    source = spec and spec.origin and Path(spec.origin).parent / "metrics/niqe_pris_params.npz"
    if not source or not source.is_file():
        raise MetricMissing("needs the parameter file in the package 'basicsr': pip install 'face2scene[degrade]'")
    written = io.BytesIO()
    with np.load(source) as given:
        savemat(written, {"mu_prisparam": given["mu_pris_param"], "cov_prisparam": given["cov_pris_param"]})
    text = b"MATLAB 5.0 MAT-file".ljust(116)  # in place of scipy's, which holds the platform and the date
    path.write_bytes(text + written.getvalue()[116:])
