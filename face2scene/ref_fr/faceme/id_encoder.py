"""FaceMe's identity tokens: what a reference photo becomes in the prompt.

A reference gives two descriptions: PhotoMaker's encoder looks at the face crop (CLIP ViT-L/14 with the projections of
both SDXL text encoders side by side, 768 + 1280 numbers), ArcFace gives 512 numbers of unit length. A small network
mixes them into one token of the width of SDXL's prompt, and the tokens of all references take the place of the word
"face". Parameter names are those of the released files (modyu-liu/FaceMe, TencentARC/PhotoMaker).
"""

import pickle
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from face2scene.common.model_files import fit

# Pixels of CLIP's image tower: mean and spread per channel, RGB in [0, 1].
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
VIT_L_14 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "patch_size": 14,
    "projection_dim": 768,
}


class TransformerBlock(nn.Module):
    """LayerNorm, two linear layers with GELU between them, and the input added where its width is kept."""

    def __init__(self, width_in: int, width_out: int, *, residual: bool):
        super().__init__()
        self.layernorm = nn.LayerNorm(width_in)
        self.fc1 = nn.Linear(width_in, width_out)
        self.fc2 = nn.Linear(width_out, width_out)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc2(nn.functional.gelu(self.fc1(self.layernorm(x))))
        return x + y if self.residual else y


class IdentityLift(nn.Module):
    """ArcFace's numbers to four times as many, by two doublings."""

    def __init__(self, width: int):
        super().__init__()
        self.mlp1 = TransformerBlock(width, 2 * width, residual=False)
        self.mlp2 = TransformerBlock(2 * width, 2 * width, residual=True)
        self.mlp3 = TransformerBlock(2 * width, 4 * width, residual=False)
        self.mlp4 = TransformerBlock(4 * width, 4 * width, residual=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp4(self.mlp3(self.mlp2(self.mlp1(x))))


class Mix(nn.Module):
    """One prompt token from the two descriptions of one reference.

    Args:
        width: of the prompt; FaceMe's is SDXL's 2048.
        identity: length of the ArcFace vector, a quarter of `width`.
    """

    def __init__(self, width: int = 2048, identity: int = 512):
        super().__init__()
        if 4 * identity != width:
            raise ValueError(
                f"The mixer lifts the identity to four times its length: {identity} does not make {width}."
            )
        self.pro_id = IdentityLift(identity)
        self.mlp1 = TransformerBlock(2 * width, width, residual=False)
        self.mlp2 = TransformerBlock(width, width, residual=True)
        self.norm1 = nn.LayerNorm(width)

    def forward(self, appearance: Tensor, identity: Tensor) -> Tensor:
        """(..., width) of `IDEncoder` and (..., identity) of unit length to (..., width)."""
        return self.mlp2(self.norm1(self.mlp1(torch.cat([appearance, self.pro_id(identity)], dim=-1))))


class IDEncoder(CLIPVisionModelWithProjection):
    """PhotoMaker v1's image tower without its fuse module, which FaceMe replaces by `Mix`.

    Args:
        config: of the tower; None is the released one (ViT-L/14).
        second: width of the second projection, the second text encoder's.
    """

    def __init__(self, config: CLIPVisionConfig | None = None, second: int = 1280):
        super().__init__(config or CLIPVisionConfig(**VIT_L_14))
        self.visual_projection_2 = nn.Linear(self.config.hidden_size, second, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Face crops (N, 3, s, s) as `clip_pixels` makes them to (N, 768 + 1280)."""
        pooled = self.vision_model(pixel_values=pixels).pooler_output
        return torch.cat([self.visual_projection(pooled), self.visual_projection_2(pooled)], dim=-1)


def clip_pixels(image: np.ndarray, box: tuple[float, float, float, float], size: int = 224) -> Tensor:
    """The face of a uint8 image (H, W, 3) as CLIP's tower wants it: (3, size, size).

    The box is rounded to whole pixels and may reach out of the image, which is black there; the shorter side is
    brought to `size` by Pillow's bicubic filter and the middle is cut out, as CLIP's own processor does.
    """
    face = Image.fromarray(image).crop(tuple(round(float(v)) for v in box))
    width, height = face.size
    if min(width, height) < 1:
        raise ValueError(f"The face box {tuple(box)} is empty.")
    if width <= height:
        face = face.resize((size, int(size * height / width)), Image.Resampling.BICUBIC)
    else:
        face = face.resize((int(size * width / height), size), Image.Resampling.BICUBIC)
    left, top = (face.width - size) // 2, (face.height - size) // 2
    pixels = np.asarray(face.crop((left, top, left + size, top + size)), dtype=np.float32) / 255
    pixels = (pixels - np.float32(_CLIP_MEAN)) / np.float32(_CLIP_STD)
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def insert_tokens(prompt: Tensor, place: int, tokens: Tensor) -> Tensor:
    """Put N tokens (N, D) where the prompt (L, D) has its word at `place`, and cut to L: what follows moves back."""
    return torch.cat([prompt[:place], tokens.to(prompt), prompt[place + 1 :]])[: len(prompt)]


# --- released files -------------------------------------------------------------------------------------------


def load_mix(path: str | Path, mix: Mix | None = None) -> Mix:
    """Read `mix.safetensors`.

    Raises:
        FileNotFoundError, ValueError: no such file; degraded; other names or shapes than FaceMe's.
    """
    path, mix = Path(path), mix or Mix()
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}: ref_fr.mix has to name the mix.safetensors of FaceMe.")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}). Fetch it again (ref_fr.mix).") from error
    fit(mix, tensors, expected=set(mix.state_dict()), source=path)
    return mix.eval().requires_grad_(False)


def read_photomaker(path: str | Path) -> dict[str, dict[str, Tensor]]:
    """Read PhotoMaker v1: `photomaker-v1.safetensors` of the catalogue, or the released `photomaker-v1.bin` (a pickle,
    unpickled as tensors only).

    Returns:
        `id_encoder` and `lora_weights`, each by its own names.

    Raises:
        FileNotFoundError, ValueError: no such file; not a checkpoint of tensors; a part is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}: ref_fr.photomaker has to name PhotoMaker's v1 file.")
    try:
        if path.suffix == ".safetensors":
            parts: dict[str, dict[str, Tensor]] = {"id_encoder": {}, "lora_weights": {}}
            for name, tensor in load_file(path).items():
                part, _, own = name.partition(".")
                parts.setdefault(part, {})[own] = tensor
            return parts
        parts = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise ValueError(f"{path} is not a whole checkpoint of tensors ({reason}). Fetch it again.") from error
    missing = [name for name in ("id_encoder", "lora_weights") if name not in parts] if isinstance(parts, dict) else []
    if not isinstance(parts, dict) or missing:
        raise ValueError(f"{path} lacks the part {(missing or ['id_encoder'])[0]!r}: it is not PhotoMaker v1.")
    return parts


def load_id_encoder(
    tensors: Mapping[str, Tensor], encoder: IDEncoder | None = None, *, source: str | Path
) -> IDEncoder:
    """Fill the encoder from the `id_encoder` part of PhotoMaker v1.

    Raises:
        ValueError: names missing or unknown, or shapes that differ; the fuse module and the position numbers that
            old versions stored are passed over.
    """
    encoder = encoder or IDEncoder()
    wanted = {
        name: tensor
        for name, tensor in tensors.items()
        if not name.startswith("fuse_module.") and not name.endswith("position_ids")
    }
    fit(encoder, wanted, expected=set(encoder.state_dict()), source=f"{source} (id_encoder)")
    return encoder.eval().requires_grad_(False)


def apply_photomaker_lora(unet: nn.Module, lora: Mapping[str, Tensor], *, source: str | Path) -> int:
    """Add PhotoMaker's attention LoRA (rank 64, scale 1) to the UNet's weights; the count of changed layers.

    An experiment and not FaceMe: the released training and inference code both look for names that the file does not
    hold, so its weights were trained with, and expect, the bare UNet.

    Raises:
        ValueError: a name that the UNet has no layer for, half a pair, or a shape that differs.
    """
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, tensor in lora.items():
        stem, _, side = name.removeprefix("unet.").replace(".processor.", ".").rpartition("_lora.")
        pairs.setdefault(stem, {})[side.removesuffix(".weight")] = tensor
    modules = dict(unet.named_modules())
    for stem, pair in pairs.items():
        layer = modules.get(f"{stem}.0" if stem.endswith("to_out") else stem)
        if layer is None or set(pair) != {"down", "up"}:
            raise ValueError(f"{source} (lora_weights): {stem!r} is no attention layer of this UNet, or half a pair.")
        change = pair["up"].float() @ pair["down"].float()
        if change.shape != layer.weight.shape:
            raise ValueError(
                f"{source} (lora_weights): {stem} is {tuple(change.shape)} for {tuple(layer.weight.shape)}."
            )
        with torch.no_grad():
            layer.weight.add_(change.to(layer.weight))
    return len(pairs)
