"""Metrics computed by IQA-PyTorch (`pyiqa`, extra `metrics`, non-commercial licence), with weight files placed by us.

pyiqa looks for its weights in a torch home folder under fixed file names and downloads what it does not find. Here the
folder is `torch_home` among this project's weights, and the files in it are links to those of fetched assets. A missing
or changed file is reported before pyiqa is called; nothing is downloaded.

Images are (B, 3, H, W), float32 RGB in [0, 1], of one size.
"""

import contextlib
import hashlib
import importlib.util
import io
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate.utils import patch_environment
from huggingface_hub import try_to_load_from_cache
from torch import Tensor, nn

from face2scene.assets.catalogue import catalogue, folder, recorded, verify, weights_root
from face2scene.common.files import atomic_write, sha256_of
from face2scene.common.optional import import_optional
from face2scene.common.provenance import versions

# Files of the torch home, by their paths in it.
VGG16, ALEXNET = "hub/checkpoints/vgg16-397923af.pth", "hub/checkpoints/alexnet-owt-7be5be79.pth"
LPIPS_ALEX, LPIPS_VGG = "hub/pyiqa/LPIPS_v0.1_alex-df73285e.pth", "hub/pyiqa/LPIPS_v0.1_vgg-a78928a0.pth"
DISTS = "hub/pyiqa/DISTS_weights-f5e65c96.pth"
INCEPTION = "hub/pyiqa/pt_inception-2015-12-05-6726825d.pth"
NIQE = "hub/pyiqa/niqe_modelparameters.mat"
CLIP_B32, CLIP_R50 = "hub/clip/ViT-B-32.pt", "hub/clip/RN50.pt"
_ASSETS = {  # the assets that hold a file; the first fetched one is used. Other files are in the asset `pyiqa`.
    **dict.fromkeys((VGG16, ALEXNET, LPIPS_ALEX, LPIPS_VGG), ("lpips",)),
    DISTS: ("dists",),
    INCEPTION: ("fid_inception", "pyiqa"),
    CLIP_R50: ("clip_rn50",),
    CLIP_B32: ("clip_vit_b32",),
    NIQE: (),
}
_CONVERTED = {Path(file).name for file in (VGG16, ALEXNET, DISTS, INCEPTION, NIQE)}  # written on this machine
_UNUSED = ("classifier.", "fc.")  # layers that no metric uses; zeros in converted files

PerImage = Callable[..., Tensor]
"""f(images, ground truths) of a metric that compares `pair`, f(images) of `alone`, f(images, ground truths, face boxes)
of `faces`; returns (B,)."""


class SetScorer(Protocol):
    """A metric of two sets of images."""

    def features(self, images: Tensor) -> Tensor:
        """Features (B, D) of images."""

    def distance(self, ours: Tensor, theirs: Tensor) -> float:
        """The value for features (N, D) and (M, D)."""


Scorer = PerImage | SetScorer


class MetricMissing(RuntimeError):
    """A metric that cannot be computed here; the message names what is missing and how to get it."""


@dataclass(frozen=True)
class Pyiqa:
    """A metric of pyiqa."""

    name: str  # in pyiqa
    files: tuple[str, ...] = ()  # of the torch home, that it reads
    hub: tuple[str, ...] = ()  # repositories whose `model.safetensors` it loads through timm
    options: Mapping[str, object] = field(default_factory=dict)  # of `pyiqa.create_metric`
    # Makes a faster scorer with the same values from pyiqa's network.
    wrap: Callable[[nn.Module, torch.device], Scorer] | None = None

    def __str__(self) -> str:
        options = ", ".join(f"{key}={value}" for key, value in self.options.items())
        return f"pyiqa {self.name}" + (f" ({options})" if options else "")

    def paths(self, home: Path) -> dict[str, Path]:
        """Its weight files by name: those of the torch home, and those that are in the hub's cache."""
        found = {Path(file).name: home / file for file in self.files}
        for repository in self.hub:
            cached = try_to_load_from_cache(repository, "model.safetensors")
            found |= {repository: Path(cached)} if isinstance(cached, str) else {}
        return found

    def network(self, device: torch.device | str) -> Any:
        """pyiqa's own metric object.

        Raises:
            MetricMissing, MissingWeights: a file has changed; is missing.
            ModuleNotFoundError: pyiqa is not installed.
        """
        home = torch_home()
        import_optional("pyiqa", "metrics", why=f"The metric {self.name}")
        for file in self.files:
            ready(file, home)
        for repository in set(self.hub) - self.paths(home).keys():
            raise MetricMissing(f"needs {repository} in the hub's cache: hf download {repository}")
        # pyiqa prints every file that it reads.
        with patch_environment(torch_home=home), contextlib.redirect_stdout(io.StringIO()):
            import pyiqa
            from pyiqa.utils import download_util

            download_util.DEFAULT_CACHE_DIR = str(home / "hub/pyiqa")  # pyiqa read TORCH_HOME if imported earlier
            return pyiqa.create_metric(self.name, device=torch.device(device), **self.options)

    def build(self, device: torch.device | str) -> Scorer:
        """The metric as a scorer; raises as `network`."""
        model = self.network(device)
        if self.wrap is not None:
            return self.wrap(model.net, torch.device(device))
        model.to(memory_format=torch.channels_last)

        def score(*images: Tensor) -> Tensor:
            with torch.inference_mode():
                return model(*images).double().reshape(len(images[0]))

        return score


def pyiqa_version() -> str:
    """The version of pyiqa; empty where it is not installed."""
    return versions().get("pyiqa", "")


def torch_home() -> Path:
    """The torch home folder for pyiqa: among this project's weights, apart from the user's own torch cache."""
    return weights_root() / "torch_home"


def ready(file: str, home: Path) -> Path:
    """A file of the torch home, linked there if need be.

    Raises:
        MissingWeights: its asset is not fetched.
        MetricMissing: its content is neither what was fetched nor as in the catalogue.
    """
    path, assets = home / file, _ASSETS.get(file, ("pyiqa",))
    if not path.is_file() or (not path.is_symlink() and any(map(recorded, assets))):
        with atomic_write(path) as partial:
            if file == NIQE:
                _write_niqe_parameters(partial)
            else:
                source = folder(next(filter(recorded, assets), assets[0])) / path.name
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
    """The digest of a weights file in a protocol: its sha256, or for a converted file the sha256 of its values.

    A torch archive or a .mat file of the same values may differ in its bytes, by the version of its writer.
    """
    facts = path.stat()
    return _identity(path, facts.st_mtime_ns, facts.st_size)


@cache
def _identity(path: Path, changed: int, size: int) -> str:
    if path.name not in _CONVERTED:
        return sha256_of(path)
    try:
        if path.suffix == ".mat":
            from scipy.io import loadmat

            held = {k: torch.from_numpy(v) for k, v in loadmat(path).items() if not k.startswith("__")}
        else:
            held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # another file of this name
        return sha256_of(path)
    digest = hashlib.sha256()
    for key, tensor in sorted(held.items()):
        if not key.startswith(_UNUSED):
            digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)} ".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def fetched(name: str) -> Path:
    """The folder of a fetched asset; raises MissingWeights, or MetricMissing where a file of it has changed."""
    place = folder(name)
    if changed := verify(name):
        raise MetricMissing(changed[0])
    return place


def _published(asset: str, name: str) -> str | None:
    facts = catalogue()[asset].files.get(name)
    return facts.sha256 if facts else None


def _write_niqe_parameters(path: Path) -> None:
    import numpy as np
    from scipy.io import savemat

    spec = importlib.util.find_spec("basicsr")  # importing it fails with a current torchvision; its file is enough
    source = spec and spec.origin and Path(spec.origin).parent / "metrics/niqe_pris_params.npz"
    if not source or not source.is_file():
        raise MetricMissing("needs the parameter file in the package 'basicsr': pip install 'face2scene[degrade]'")
    written = io.BytesIO()
    with np.load(source, allow_pickle=False) as given:
        savemat(written, {"mu_prisparam": given["mu_pris_param"], "cov_prisparam": given["cov_pris_param"]})
    text = b"MATLAB 5.0 MAT-file".ljust(116)  # in place of scipy's header, which holds the platform and the date
    path.write_bytes(text + written.getvalue()[116:])
