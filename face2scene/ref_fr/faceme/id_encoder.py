"""FaceMe's identity tokens, one per reference photo.

A reference has two features: PhotoMaker's encoding of the face crop (CLIP ViT-L/14 with the projections of both SDXL
text encoders concatenated, 768 + 1280 numbers) and ArcFace's unit vector of 512 numbers. A small network mixes them
into one token of SDXL's prompt width; the tokens of all references replace the word "face" of the prompt. Parameter
names are those of the released files (modyu-liu/FaceMe, TencentARC/PhotoMaker).
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

# CLIP's mean and standard deviation per channel, RGB in [0, 1].
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
    """LayerNorm and two linear layers with GELU between them, with a residual where the width is kept."""

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
    """ArcFace's vector to four times its width, in two doublings."""

    def __init__(self, width: int):
        super().__init__()
        self.mlp1 = TransformerBlock(width, 2 * width, residual=False)
        self.mlp2 = TransformerBlock(2 * width, 2 * width, residual=True)
        self.mlp3 = TransformerBlock(2 * width, 4 * width, residual=False)
        self.mlp4 = TransformerBlock(4 * width, 4 * width, residual=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp4(self.mlp3(self.mlp2(self.mlp1(x))))


class Mix(nn.Module):
    """One prompt token from the two features of one reference.

    Args:
        width: of the prompt; FaceMe's is SDXL's 2048.
        identity: length of the ArcFace vector, a quarter of `width`.
    """

    def __init__(self, width: int = 2048, identity: int = 512):
        super().__init__()
        if 4 * identity != width:
            raise ValueError(
                f"The mixer expands the identity to four times its length: {identity} does not give {width}."
            )
        self.pro_id = IdentityLift(identity)
        self.mlp1 = TransformerBlock(2 * width, width, residual=False)
        self.mlp2 = TransformerBlock(width, width, residual=True)
        self.norm1 = nn.LayerNorm(width)

    def forward(self, appearance: Tensor, identity: Tensor) -> Tensor:
        """(..., width) of `IDEncoder` and (..., identity) of unit length to (..., width)."""
        return self.mlp2(self.norm1(self.mlp1(torch.cat([appearance, self.pro_id(identity)], dim=-1))))


class IDEncoder(CLIPVisionModelWithProjection):
    """PhotoMaker v1's image encoder without its fuse module, which FaceMe replaces by `Mix`.

    Args:
        config: None is the released one (ViT-L/14).
        second: width of the second projection, the second text encoder's.
    """

    def __init__(self, config: CLIPVisionConfig | None = None, second: int = 1280):
        super().__init__(config or CLIPVisionConfig(**VIT_L_14))
        self.visual_projection_2 = nn.Linear(self.config.hidden_size, second, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Face crops (N, 3, s, s) of `clip_pixels` to (N, 768 + 1280)."""
        pooled = self.vision_model(pixel_values=pixels).pooler_output
        return torch.cat([self.visual_projection(pooled), self.visual_projection_2(pooled)], dim=-1)


def clip_pixels(image: np.ndarray, box: tuple[float, float, float, float], size: int = 224) -> Tensor:
    """The face of a uint8 image (H, W, 3) as CLIP's input (3, size, size).

    The box is rounded to pixels and padded with black outside the image; the shorter side is resized to `size` with
    Pillow's bicubic filter and the centre cropped, as CLIP's own processor does.
    """
    x0, y0, x1, y1 = (round(float(v)) for v in box)
    face = Image.fromarray(image).crop((x0, y0, x1, y1))
    width, height = face.size
    if min(width, height) < 1:
        raise ValueError(f"The face box {tuple(box)} is empty.")
    if width <= height:
        face = face.resize((size, int(size * height / width)), Image.Resampling.BICUBIC)
    else:
        face = face.resize((int(size * width / height), size), Image.Resampling.BICUBIC)
    left, top = (face.width - size) // 2, (face.height - size) // 2
    pixels = np.asarray(face.crop((left, top, left + size, top + size)), dtype=np.float32) / 255
    pixels = (pixels - np.array(_CLIP_MEAN, np.float32)) / np.array(_CLIP_STD, np.float32)
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def insert_tokens(prompt: Tensor, place: int, tokens: Tensor) -> Tensor:
    """Replace the token at `place` of a prompt (L, D) by N tokens (N, D), and truncate to L."""
    return torch.cat([prompt[:place], tokens.to(prompt), prompt[place + 1 :]])[: len(prompt)]


# --- released files -------------------------------------------------------------------------------------------


def load_mix(path: str | Path, mix: Mix | None = None) -> Mix:
    """Read `mix.safetensors`.

    Raises:
        FileNotFoundError, ValueError: no such file; corrupt; other names or shapes than FaceMe's.
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
    """Read PhotoMaker v1: the catalogue's `photomaker-v1.safetensors` or the released `photomaker-v1.bin` (a pickle).

    Returns:
        `id_encoder` and `lora_weights`, each by name.

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
    for name in ("id_encoder", "lora_weights"):
        if not isinstance(parts, dict) or name not in parts:
            raise ValueError(f"{path} lacks the part {name!r}: it is not PhotoMaker v1.")
    return parts


def load_id_encoder(
    tensors: Mapping[str, Tensor], encoder: IDEncoder | None = None, *, source: str | Path
) -> IDEncoder:
    """Fill the encoder from the `id_encoder` part of PhotoMaker v1.

    Raises:
        ValueError: missing or unknown names, or other shapes; the fuse module and the position ids of old versions
            are skipped.
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
    """Add PhotoMaker's attention LoRA (rank 64, scale 1) to the UNet's weights; the number of changed layers.

    An experiment and not FaceMe: the released training and inference code look for names that the file does not have,
    so its weights were trained with the UNet alone.

    Raises:
        ValueError: a name without a layer in the UNet, half a pair, or another shape.
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
