"""FaceMe at a size for tests, and SDXL's shapes by the names of its released files."""

from transformers import CLIPTextConfig

from face2scene.eval.cost.complexity import SDXL
from face2scene.models.restorer.random_base import SD_TURBO
from face2scene.ref_fr.faceme.model import FaceMe

# stabilityai/stable-diffusion-xl-base-1.0, which RealVisXL is tuned from; its ControlNet is `SDXL` as it stands
SDXL_UNET = SDXL | {
    "sample_size": 128,
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
}
SDXL_VAE = {**SD_TURBO["vae"], "sample_size": 1024, "scaling_factor": 0.13025}


def tiny(**settings) -> FaceMe:
    return FaceMe.tiny(**{"size": 64, "steps": 3, "device": "cpu"} | settings)


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
