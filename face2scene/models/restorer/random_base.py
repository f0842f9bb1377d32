"""A base model of random weights, to measure size, speed and memory.

`restorer.base.source=random` has SD-Turbo's shapes (SD 2.1's networks); `random:FOLDER` those of the config files in
FOLDER, in diffusers' layout.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import nn
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerBase

from face2scene.common.shipped import CHECKPOINTS

# As published with SD-Turbo, without the defaults of diffusers and transformers.
SD_TURBO: Mapping[str, Mapping[str, Any]] = {
    "vae": {
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "sample_size": 768,
        "scaling_factor": 0.18215,
    },
    "unet": {
        "attention_head_dim": [5, 10, 20, 20],
        "block_out_channels": [320, 640, 1280, 1280],
        "cross_attention_dim": 1024,
        "sample_size": 64,
        "use_linear_projection": True,
    },
    "text_encoder": {
        "vocab_size": 49408,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 23,
        "num_attention_heads": 16,
        "max_position_embeddings": 77,
        "hidden_act": "gelu",
    },
    "scheduler": {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "clip_sample": False,
        "prediction_type": "epsilon",
        "timestep_spacing": "trailing",
    },
}


def networks(shapes: Mapping[str, Mapping[str, Any]]) -> tuple[AutoencoderKL, UNet2DConditionModel, CLIPTextModel]:
    """VAE, UNet and text encoder of the given configurations, with random weights on the default device."""
    vae = AutoencoderKL.from_config(dict(shapes["vae"]))
    unet = UNet2DConditionModel.from_config(dict(shapes["unet"]))
    return vae, unet, CLIPTextModel(CLIPTextConfig(**shapes["text_encoder"]))


def random_parts(
    source: str, *, dtype: torch.dtype, unet_dtype: torch.dtype
) -> tuple[AutoencoderKL, UNet2DConditionModel, CLIPTextModel, PreTrainedTokenizerBase, DDPMScheduler]:
    """VAE, UNet, text encoder, tokenizer and scheduler for `load_base`; the same weights every time.

    Args:
        source: `random` or `random:FOLDER`.

    Raises:
        FileNotFoundError: the folder has no config of a part.
    """
    folder = Path(source.partition(":")[2]) if ":" in source else None
    shapes = _read_shapes(folder) if folder else SD_TURBO
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae, unet, text_encoder = networks(shapes)
    shipped = CHECKPOINTS / "tiny/base/tokenizer"
    own = folder / "tokenizer" if folder else shipped
    tokenizer = AutoTokenizer.from_pretrained(own if own.is_dir() else shipped, trust_remote_code=False)
    schedule = DDPMScheduler.from_config(dict(shapes["scheduler"]))
    return nn.Module.to(vae, dtype), nn.Module.to(unet, unet_dtype), text_encoder, tokenizer, schedule


def _read_shapes(folder: Path) -> dict[str, dict[str, Any]]:
    shapes = {}
    for part in SD_TURBO:
        file = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
        if not file.is_file():
            raise FileNotFoundError(
                f"restorer.base.source=random:{folder} needs {file}, which does not exist. Set a folder in diffusers' "
                "layout (its config files suffice), or restorer.base.source=random for SD-Turbo's shapes."
            )
        shapes[part] = json.loads(file.read_text())
    return shapes
