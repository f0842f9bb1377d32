"""Which layers of the base are adapted, and how the adapters are merged back."""

import shutil
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from peft import LoraConfig
from torch import nn

# S3Diff's layers (facts: its released code), as patterns over full names. The VAE's decoder stays as it is.
VAE_ENCODER = (
    "encoder.*conv1",
    "encoder.*conv2",
    "encoder.conv_in",
    "encoder.*conv_shortcut",
    "encoder.*.conv",
    "encoder.conv_out",
    "encoder.*to_[qkv]",
    "encoder.*to_out.0",
)
UNET = (
    "*to_[qkv]",
    "*to_out.0",
    "*.conv",
    "*conv1",
    "*conv2",
    "*conv_shortcut",
    "conv_out",
    "*proj_in",
    "*proj_out",
    "*ff.net.2",
    "*ff.net.0.proj",
)


def layers_matching(network: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Full names of the linear and convolution layers that any pattern fits, every pattern being needed.

    Raises:
        ValueError: a pattern fits no layer; names it and shows what layers look like.
    """
    layers = [name for name, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    idle = [p for p in patterns if not any(fnmatchcase(name, p) for name in layers)]
    if idle:
        raise ValueError(
            f"No layer of {type(network).__name__} fits {idle}. It has {len(layers)} layers, such as {layers[:3]}; "
            "see restorer.adapters.vae_layers and restorer.adapters.unet_layers."
        )
    return [name for name in layers if any(fnmatchcase(name, p) for p in patterns)]


def add_lora(network: nn.Module, patterns: Sequence[str], *, rank: int, alpha: float) -> list[str]:
    """Add trainable low-rank updates to the layers that fit; everything else stays frozen.

    A starts Gaussian and B at zero, so nothing changes until the first step.

    Returns:
        The names of the adapted layers.
    """
    if rank < 1:
        raise ValueError(f"A LoRA rank must be at least 1, not {rank}.")
    names = layers_matching(network, patterns)
    network.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=names))
    return names


def merge_lora(network: nn.Module) -> None:
    """Fold the updates into the base weights and drop the adapters: same output, no extra work per call.

    A network without adapters stays as it is.
    """
    if getattr(network, "peft_config", None):
        network.fuse_lora()
        network.unload_lora()


def save_lora(network: nn.Module, folder: Path) -> None:
    """Write a network's adapter as diffusers does, with its LoraConfig in the header.

    Plain diffusers reads it with `load_lora_adapter(folder, prefix=None,
    weight_name="pytorch_lora_weights.safetensors", adapter_name=...)`. Its defaults read nothing: `prefix` must be
    None, and without the file's header the scale would be guessed as 1.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    network.save_lora_adapter(partial, adapter_name="default")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
