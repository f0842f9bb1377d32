"""Loading the restorer of a weights file, and files of merged restorers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn

from face2scene.common import model_files
from face2scene.models.mapnet import MapNet
from face2scene.models.restorer.base_model import PackagedBase
from face2scene.models.restorer.one_step import OneStepRestorer
from face2scene.models.s3diff.model import S3Diff

# Settings that a file's weights depend on, and the values of those that older headers lack.
_DECISIVE = ("vae_rank", "unet_rank", "lora_alpha", "full", "skips", "residual")
_OLDER = {"skips": False, "residual": False}


def load_restorer(
    path: str | Path, *, expected: Mapping[str, Any] | None = None, **base: Any
) -> OneStepRestorer | S3Diff:
    """Rebuild the restorer that the header of `path` names.

    Args:
        expected: settings of `restorer.adapters` that the file must have been written with, such as its LoRA ranks.
        base: arguments of `from_file`, such as the base's `source`.

    Raises:
        FileNotFoundError: no such file, or no base model.
        ValueError: not restorer weights, of other settings than expected, or a merged restorer, which has its base, and
            another base or a training's settings are asked for.
    """
    kind = model_files.kind_of(path)
    if kind == "merged_restorer":
        if expected or base.get("source"):
            raise ValueError(
                f"{path} is a merged restorer, which includes its base model: leave out base, and begin no training "
                "with it (init_from)."
            )
        return load_merged(path)
    restorer: type[OneStepRestorer] | type[S3Diff] = S3Diff if kind == S3Diff.kind else OneStepRestorer
    if expected:
        config = _OLDER | model_files.load_weights(path, kind=restorer.kind)[1]
        other = [k for k in _DECISIVE if k in expected and k in config and config[k] != expected[k]]
        if other:
            settings = ", ".join(f"{k}={config[k]} (asked for: {expected[k]})" for k in other)
            raise ValueError(
                f"{path} was written with {settings}: set restorer.adapters.{other[0]}={config[other[0]]} to continue "
                "from it, or start from the base alone (init_from=null)."
            )
    return restorer.from_file(path, **base)


def save_merged(
    restorer: OneStepRestorer, path: str | Path, *, about: Mapping[str, Any], dtype: torch.dtype | None = None
) -> None:
    """Write a merged restorer with its base and encoded prompts; `load_merged` needs no other file.

    In its present precision (see `OneStepRestorer.merged`): about 1.9 GB at SD 2.1's size in bf16. The base's licence
    applies to the file.

    Args:
        dtype: of the file alone; it is read back in the restorer's present precision.

    Raises:
        ValueError: LoRAs that are not merged, or a small decoder in place of the VAE's.
    """
    if any(".lora_" in name for name, _ in restorer.named_parameters()):
        raise ValueError("Only a merged restorer can be saved with its base: call merged() first.")
    if restorer.vae.post_quant_conv is None and restorer.vae.config.use_post_quant_conv:  # see `replace_decoder`
        raise ValueError("A restorer with a small decoder cannot be saved with its base: set restorer.decoder=null.")
    networks = {name: json.dumps(_described(getattr(restorer, name)), default=str) for name in ("vae", "unet")}
    config = restorer.config | networks | {"alpha": restorer.alpha, "prediction": restorer.prediction}
    if dtype is not None:
        config["dtypes"] = {name: str(getattr(restorer, name).dtype).removeprefix("torch.") for name in networks}
    tensors = restorer.state_dict() | {"text": restorer.text}
    model_files.save_weights(path, tensors, kind="merged_restorer", config=config, about=about, dtype=dtype)


def _described(network: Any) -> dict[str, Any]:
    return {key: value for key, value in network.config.items() if key != "_name_or_path"}  # a path of this machine


def load_merged(path: str | Path) -> OneStepRestorer:
    """Rebuild a restorer from a file of `save_merged`, in its precision; no base model is read."""
    tensors, config, _ = model_files.load_weights(path, kind="merged_restorer")
    with model_files.rebuilding(path):
        networks, dtypes = {}, config.pop("dtypes", {})
        for name, kind in (("vae", AutoencoderKL), ("unet", UNet2DConditionModel)):
            weight = next(tensor for key, tensor in tensors.items() if key.startswith(f"{name}."))
            network = kind.from_config(json.loads(config.pop(name))).requires_grad_(False)
            networks[name] = nn.Module.to(network, getattr(torch, dtypes[name]) if dtypes else weight.dtype)
        alphas = torch.full((config["timestep"] + 1,), config.pop("alpha"), dtype=torch.float64)
        base = PackagedBase(
            **networks, text=tensors.pop("text").float(), alphas=alphas, prediction=config.pop("prediction")
        )
        mapnet = MapNet(**config.pop("mapnet"))
        config |= {"vae_rank": 0, "unet_rank": 0, "full": False, "prompts": tuple(config["prompts"])}  # no adapters
        restorer = OneStepRestorer(base, mapnet, **config)
        nn.Module.to(restorer.unet, restorer.unet_dtype)
        model_files.fit(restorer, tensors, expected=set(restorer.state_dict()), source=path)
    return restorer.merged()  # for the fused upsampling and memory format of the saved one
