"""FaceMe at a size for tests, and SDXL's shapes by the names of its released files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import CLIPTextConfig

from face2scene.eval.cost.complexity import SDXL
from face2scene.image_io.arrays import write_png
from face2scene.models.restorer.random_base import SD_TURBO
from face2scene.ref_fr.base import in_bytes
from face2scene.ref_fr.faceme.model import FaceMe

# stabilityai/stable-diffusion-xl-base-1.0, which RealVisXL is tuned from; its ControlNet is `SDXL` as it stands
SDXL_UNET = SDXL | {
    "sample_size": 128,
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
}
SDXL_VAE = {**SD_TURBO["vae"], "sample_size": 1024, "scaling_factor": 0.13025}


def tiny(**settings) -> FaceMe:
    return FaceMe.tiny(**{"size": 64, "steps": 3, "device": "cpu"} | settings)


@pytest.fixture(scope="module")
def people(tmp_path_factory) -> dict[str, list[Path]]:
    """Two people of three photos each: WholeImage tells them apart by their colours."""
    folder = tmp_path_factory.mktemp("people")
    rng, photos = np.random.default_rng(0), {}
    for name, colour in {"ann": (0.9, 0.4, 0.2), "bob": (0.1, 0.3, 0.9)}.items():
        photos[name] = [folder / f"{name}{n}.png" for n in range(3)]
        for path in photos[name]:
            write_png(path, np.float32(colour) + rng.uniform(-0.05, 0.05, (80, 64, 3)).astype(np.float32))
    return photos


@pytest.fixture(scope="module")
def faces() -> torch.Tensor:
    """(3, 3, 64, 64), the same every time."""
    smooth = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return in_bytes(F.interpolate(smooth, size=(64, 64), mode="bicubic"))


def clip_layer(name: str, width: int, inner: int) -> dict[str, tuple[int, ...]]:
    shapes = {f"{name}.mlp.fc1.weight": (inner, width), f"{name}.mlp.fc1.bias": (inner,)}
    shapes |= {f"{name}.mlp.fc2.weight": (width, inner), f"{name}.mlp.fc2.bias": (width,)}
    shapes |= {f"{name}.layer_norm{n}.{s}": (width,) for n in (1, 2) for s in ("weight", "bias")}
    for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
        shapes |= {f"{name}.self_attn.{projection}.weight": (width, width)}
        shapes |= {f"{name}.self_attn.{projection}.bias": (width,)}
    return shapes


def clip_text(width: int, inner: int, layers: int, projection: int | None) -> dict[str, tuple[int, ...]]:
    """A text encoder of SDXL as its released file has it."""
    shapes = {
        "text_model.embeddings.token_embedding.weight": (49408, width),
        "text_model.embeddings.position_embedding.weight": (77, width),
        "text_model.final_layer_norm.weight": (width,),
        "text_model.final_layer_norm.bias": (width,),
    }
    for n in range(layers):
        shapes |= clip_layer(f"text_model.encoder.layers.{n}", width, inner)
    return shapes | ({"text_projection.weight": (projection, width)} if projection else {})


def text_config(width: int, inner: int, layers: int, heads: int, activation: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        hidden_act=activation,
        projection_dim=width,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    )
