"""Restorers without references, as baselines of Stage I: Real-ESRGAN, and CodeFormer and RestoreFormer (spandrel)."""

import pickle
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from face2scene.assets import catalogue
from face2scene.common.choices import one_of
from face2scene.common.memory import named_device
from face2scene.common.optional import import_optional
from face2scene.image_io.arrays import resize
from face2scene.ref_fr import base
from face2scene.ref_fr.base import AlignedRefFR, RestoredFace, RestorerUnavailableError, in_bytes
from face2scene.ref_fr.fingerprint import code_version, digest, files_version, resolve_paths

_HALF = 0x01306B47  # ncnn's tag of weights in half precision
_SLOPE = 0.2
Network = TypeVar("Network", bound=nn.Module)


class DenseBlock(nn.Module):
    """Five densely connected 3 x 3 convolutions with a residual scaled by 0.2."""

    def __init__(self, channels: int, growth: int):
        super().__init__()
        for n in range(5):
            out = growth if n < 4 else channels
            self.add_module(f"conv{n + 1}", nn.Conv2d(channels + n * growth, out, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        dense = x
        for n in range(1, 5):
            dense = torch.cat([dense, F.leaky_relu(self.get_submodule(f"conv{n}")(dense), _SLOPE)], dim=1)
        return x + 0.2 * self.get_submodule("conv5")(dense)


class Trunk(nn.Module):
    """Three dense blocks with a residual scaled by 0.2."""

    def __init__(self, channels: int, growth: int):
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (DenseBlock(channels, growth) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.2 * self.rdb3(self.rdb2(self.rdb1(x)))


class RRDBNet(nn.Module):
    """ESRGAN's x4 generator (Wang et al. 2018), with the parameter names of its released files."""

    def __init__(self, channels: int = 64, blocks: int = 23, growth: int = 32):
        super().__init__()
        self.conv_first = nn.Conv2d(3, channels, 3, padding=1)
        self.body = nn.Sequential(*(Trunk(channels, growth) for _ in range(blocks)))
        self.conv_body, self.conv_up1, self.conv_up2, self.conv_hr = (
            nn.Conv2d(channels, channels, 3, padding=1) for _ in range(4)
        )
        self.conv_last = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, h, w) to (B, 3, 4h, 4w), both about [0, 1]."""
        x = self.conv_first(x)
        x = x + self.conv_body(self.body(x))
        for convolution in (self.conv_up1, self.conv_up2):
            x = F.leaky_relu(convolution(F.interpolate(x, scale_factor=2, mode="nearest")), _SLOPE)
        return self.conv_last(F.leaky_relu(self.conv_hr(x), _SLOPE))


def read_ncnn(param: str | Path, binary: str | Path) -> list[tuple[Tensor, ...]]:
    """Parameters of an ncnn network's layers, float32, in file order.

    Returns:
        Of a convolution its weight (out, in, k, k) and bias (out,), of a PReLU its slopes (channels,).

    Raises:
        ValueError: a convolution without half-precision weights or bias, or too few or too many bytes.
    """
    data, place = Path(binary).read_bytes(), 0
    layers: list[tuple[Tensor, ...]] = []

    def read(name: str, count: int, dtype: str, padded: int = 0) -> np.ndarray:
        nonlocal place
        size = padded or 4 * count
        if place + size > len(data):
            raise ValueError(f"{binary} is cut short at {name}: fetch {Path(binary).parent.name} again.")
        place += size
        return np.frombuffer(data, dtype, count, place - size)

    for line in Path(param).read_text().splitlines():
        words = line.split()
        options = dict(word.split("=", 1) for word in words if "=" in word)
        if words and words[0] == "PReLU":
            layers.append((torch.from_numpy(read(words[1], int(options["0"]), "<f4").copy()),))
        if not words or words[0] != "Convolution":
            continue
        out, kernel, count = int(options["0"]), int(options["1"]), int(options["6"])
        if read(words[1], 1, "<u4")[0] != _HALF or options.get("5") != "1":
            raise ValueError(
                f"{binary}: {words[1]} has no half-precision weights with a bias, the only supported kind."
            )
        weight = read(words[1], count, "<f2", -(-2 * count // 4) * 4).astype(np.float32)  # padded to four bytes
        bias = read(words[1], out, "<f4").copy()
        layers.append((torch.from_numpy(weight).reshape(out, -1, kernel, kernel), torch.from_numpy(bias)))
    if place != len(data):
        raise ValueError(f"{binary} holds {len(data) - place} bytes beyond the layers of {param}.")
    return layers


def with_ncnn_weights(network: Network, folder: Path, name: str) -> Network:
    """`network` with the parameters of `folder`/`name`.param and .bin, layer by layer, for inference.

    Raises:
        ValueError: the files are of another network.
    """
    layers = read_ncnn(folder / f"{name}.param", folder / f"{name}.bin")
    own = [list(m.parameters()) for m in network.modules() if isinstance(m, nn.Conv2d | nn.PReLU)]
    if [[p.shape for p in layer] for layer in own] != [[p.shape for p in layer] for layer in layers]:
        raise ValueError(f"{folder} holds {len(layers)} layers that are not those of {name}.")
    with torch.no_grad():
        for mine, given in zip(own, layers, strict=True):
            for parameter, value in zip(mine, given, strict=True):
                parameter.copy_(value)
    return network.eval().requires_grad_(False)


def load_real_esrgan(folder: str | Path | None = None) -> RRDBNet:
    """Real-ESRGAN x4plus from the packaged ncnn files (asset `real_esrgan_x4plus`).

    Raises:
        MissingWeights, ValueError: not fetched; another network.
    """
    place = Path(folder) if folder is not None else catalogue.folder("real_esrgan_x4plus")
    return with_ncnn_weights(RRDBNet(), place, "realesrgan-x4plus")


class RealESRGAN:
    """Real-ESRGAN x4plus on the crop: downsampled, restored at four times the size, resized to the crop's size.

    Args:
        folder: of the ncnn files; None is the asset.
        shrink: factor of the downsampling, 1 to 4. 4, at which the output has the crop's size, is the author's advice
            for degraded images that were upsampled before.
        device: None is CUDA where there is one.
    """

    name = "real_esrgan"
    needs_gt = False

    def __init__(self, folder: str | Path | None = None, *, shrink: float = 4.0, device: str | None = None):
        if not 1 <= shrink <= 4:
            raise ValueError(f"ref_fr.shrink is {shrink}: it lies between 1 and 4.")
        self.folder, self.shrink = folder, shrink
        self.device = named_device(device, "ref_fr.device")

    @cached_property
    def network(self) -> RRDBNet:
        return load_real_esrgan(self.folder).to(self.device)

    def ready(self) -> None:
        """Load the network now."""
        _ = self.network

    @torch.inference_mode()
    def restore(
        self, degraded: Tensor, references: Sequence[Path], *, gt: Tensor | None, rng: np.random.Generator
    ) -> Tensor:
        """See `RefFR.restore`; only the degraded face is used."""
        height, width = degraded.shape[-2:]
        small = resize(degraded, (max(4, round(height / self.shrink)), max(4, round(width / self.shrink))))
        large = self.network(small[None].to(self.device))[0].float().clamp(0, 1)
        return resize(large, (height, width)).to(degraded).clone()


class SpandrelFace(AlignedRefFR):
    """CodeFormer or RestoreFormer on the aligned face, through the packages spandrel and spandrel_extra_arches.

    Args:
        kind: `codeformer` or `restoreformer`.
        weights_file: its released .pth, or a name of the asset catalogue and a path in it.
        fidelity: CodeFormer's w, 0 (quality) to 1 (fidelity).
        device: None is CUDA where there is one.
    """

    def __init__(self, kind: str, weights_file: str, *, fidelity: float = 0.5, device: str | None = None):
        one_of("ref_fr.kind", kind, ("codeformer", "restoreformer"))
        self.name, self.weights_file, self.fidelity = kind, weights_file, fidelity
        self.device = named_device(device, "ref_fr.device")

    @cached_property
    def fingerprint(self) -> str:
        code = code_version(sys.modules[__name__], base)
        return digest(self.name, files_version(self._path), str(self.fidelity), code)

    @property
    def _path(self) -> Path:
        return resolve_paths({"weights_file": self.weights_file})["weights_file"]

    def ready(self) -> None:
        """Load the network now."""
        try:
            _ = self._network
        except (OSError, ValueError, ModuleNotFoundError, catalogue.WeightsError) as error:
            raise RestorerUnavailableError(f"ref_fr={self.name} cannot be loaded: {error}") from error

    @cached_property
    def _network(self) -> nn.Module:
        spandrel = import_optional("spandrel", "restorers", why=f"ref_fr={self.name}")
        loader = spandrel.ModelLoader()
        if self.name == "codeformer":
            extra = import_optional("spandrel_extra_arches", "restorers", why="ref_fr=codeformer")
            extra.install(ignore_duplicates=True)
        path = self._path
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise ValueError(f"{path} is not a whole checkpoint of tensors (ref_fr.weights_file).") from error
        state = state.get("params_ema", state.get("params", state.get("state_dict", state)))
        found = loader.load_from_state_dict(state)
        if found.architecture.id.lower() != self.name:
            raise ValueError(f"{path} is a {found.architecture.id}, not a {self.name} (ref_fr.weights_file).")
        return found.model.eval().requires_grad_(False).to(self.device)

    @torch.inference_mode()
    def restore_aligned(self, faces: Tensor, references: Sequence[Sequence[Path]]) -> list[RestoredFace]:
        """See `AlignedRefFR`; references are not used. Both networks work in [-1, 1]."""
        self.ready()
        options = {"weight": self.fidelity} if self.name == "codeformer" else {}
        outputs = [self._network((in_bytes(face)[None] * 2 - 1).to(self.device), **options)[0] for face in faces]
        return [RestoredFace(in_bytes(output[0] / 2 + 0.5).cpu()) for output in outputs]
