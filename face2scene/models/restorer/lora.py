"""Which layers of the base get LoRA adapters, and how these are merged and exported."""

import fnmatch
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import LoraConfig
from torch import nn

# S3Diff's layers (its released code), as patterns of full names. The VAE's decoder has none.
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


def add_lora(network: Any, patterns: Sequence[str], *, rank: int, alpha: float) -> list[str]:
    """Add trainable low-rank adapters to a diffusers network; everything else stays frozen.

    A starts Gaussian and B at zero, so that the output is unchanged at first.

    Args:
        patterns: of the full names of linear and convolution layers.

    Returns:
        The names of the adapted layers.

    Raises:
        ValueError: a rank below 1, or a pattern that matches no layer.
    """
    if rank < 1:
        raise ValueError(f"A LoRA rank must be at least 1, not {rank}.")
    layers = [name for name, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    matches = {pattern: fnmatch.filter(layers, pattern) for pattern in patterns}
    if unmatched := [pattern for pattern, found in matches.items() if not found]:
        raise ValueError(
            f"No layer of {type(network).__name__} matches {unmatched}. It has {len(layers)} layers, such as "
            f"{layers[:3]}; see restorer.adapters.vae_layers and restorer.adapters.unet_layers."
        )
    names = [name for name in layers if any(name in found for found in matches.values())]
    network.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=names))
    return names


def merge_lora(network: Any) -> None:
    """Merge the adapters of a diffusers network, if any, into its weights."""
    if getattr(network, "peft_config", None):
        network.fuse_lora()
        network.unload_lora()


def save_lora(network: Any, folder: Path) -> None:
    """Write a network's adapter as diffusers does, with its LoraConfig in the header, which holds the scale.

    Plain diffusers reads it with `load_lora_adapter(folder, prefix=None,
    weight_name="pytorch_lora_weights.safetensors", adapter_name=...)`; with its default `prefix` it reads nothing.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    network.save_lora_adapter(partial, adapter_name="default")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
