"""The diffusion base: VAE, UNet, text encoder and tokenizer of one Stable Diffusion 2.1-shaped model.

Read from a folder or hub repository in diffusers' layout (`vae/ unet/ text_encoder/ tokenizer/ scheduler/`), such as
SD-Turbo or the tiny base that ships with this project.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import AutoTokenizer, CLIPTextModel, PreTrainedTokenizerBase

from face2scene.assets import catalogue
from face2scene.common.shipped import shipped
from face2scene.models.restorer.random_base import random_parts
from face2scene.models.restorer.skips import Skips

log = logging.getLogger(__name__)
CLIP_VOCABULARY = 49408
_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Seeds = Tensor | Sequence[int]  # (B,), one per image


@dataclass(frozen=True, eq=False)
class DiffusionBase:
    """A loaded base model, on the CPU, in evaluation mode and without gradients."""

    vae: AutoencoderKL
    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    tokenizer: PreTrainedTokenizerBase
    alphas: Tensor  # (T,) cumulative product of alphas of the noise schedule, float32
    prediction: str  # "epsilon" or "v_prediction"
    clip: float | None = None  # the schedule's bound on clean latents; SD-Turbo's has none
    skips: Skips | None = None  # skip connections of its pretraining, from its folder `skips`; SD-Turbo has none
    origin: dict[str, str] = field(default_factory=dict)  # `origin_of` its networks

    def encode_prompts(self, prompts: list[str]) -> Tensor:
        """Text tokens (len(prompts), 77, D) in float32; longer prompts are truncated."""
        ids = self.tokenizer(
            prompts,
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        with torch.no_grad():
            return self.text_encoder(ids).last_hidden_state.float()


@dataclass(frozen=True, eq=False)
class PackagedBase:
    """The base in a merged restorer's file, which holds encoded prompts and no text encoder."""

    vae: AutoencoderKL
    unet: UNet2DConditionModel
    text: Tensor  # (2, 77, D)
    alphas: Tensor
    prediction: str

    def encode_prompts(self, prompts: list[str]) -> Tensor:
        return self.text


def base_folder(source: str) -> str:
    """The folder of a base of the asset catalogue, or of one that ships with the package; other sources unchanged.

    Raises:
        MissingWeights: not fetched yet.
    """
    if source in catalogue.catalogue():
        return str(catalogue.folder(source))
    return source if Path(source).exists() else str(shipped(source) or source)


def load_base(
    source: str | Path,
    *,
    revision: str | None = None,
    dtype: str | torch.dtype = torch.float32,
    unet_dtype: str | torch.dtype | None = None,
) -> DiffusionBase:
    """Read a base model.

    Args:
        source: a name of the asset catalogue such as `sd_turbo`, a local folder, a hub id, or `random` for random
            weights in SD-Turbo's shapes (`random:FOLDER`: the shapes of a folder's config files).
        revision: of a hub repository.
        dtype: of VAE and UNet, also as `fp32`, `bf16` or `fp16`; the text encoder is float32.
        unet_dtype: of the UNet, if another.

    Raises:
        FileNotFoundError: not fetched yet, no such folder, or not available from the hub; with the remedy.
        ValueError: an empty tokenizer, a text encoder without some of its weights, parts that do not fit each other, or
            an unknown dtype.
    """
    where, unet_dtype = str(source), precision(unet_dtype or dtype, "restorer.base.unet_dtype")
    dtype = precision(dtype, "restorer.base.dtype")
    if where.partition(":")[0] == "random":
        log.warning("The base model has random weights (restorer.base.source=%s): it restores nothing.", where)
        return _checked(where, *random_parts(where, dtype=dtype, unet_dtype=unet_dtype))
    where = base_folder(where)
    local = Path(where).exists() or Path(where).is_absolute() or where.startswith(".") or where.count("/") != 1
    if local and not (Path(where) / "unet").is_dir():
        raise FileNotFoundError(
            f"{where} holds no base model (no folder 'unet' in it). Set restorer.base.source (base= of restore.py) to "
            "a folder in diffusers' layout, or to a hub id such as stabilityai/sd-turbo."
        )
    try:
        vae = AutoencoderKL.from_pretrained(where, subfolder="vae", revision=revision, torch_dtype=dtype)
        unet = UNet2DConditionModel.from_pretrained(where, subfolder="unet", revision=revision, torch_dtype=unet_dtype)
        text_encoder, loading = CLIPTextModel.from_pretrained(
            where, subfolder="text_encoder", revision=revision, torch_dtype=torch.float32, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(
            where, subfolder="tokenizer", revision=revision, trust_remote_code=False
        )
        schedule = DDPMScheduler.from_pretrained(where, subfolder="scheduler", revision=revision)
    except OSError as error:
        raise FileNotFoundError(
            f"The base model {where} could not be read ({error}). Get it with `face2scene fetch sd_turbo`, or set "
            "restorer.base.source to a local copy; restorer=tiny needs no download."
        ) from error
    if missing := sorted(loading["missing_keys"]):  # transformers would leave these random, with a warning
        raise ValueError(
            f"The text encoder of {where} lacks {len(missing)} weights, such as {missing[0]}: its file is of another "
            "layout than this version of transformers reads. Set restorer.base.source to a whole copy."
        )
    base = _checked(where, vae, unet, text_encoder, tokenizer, schedule)
    if (Path(where) / "skips").is_dir():
        base = replace(base, skips=Skips.from_pretrained(where, subfolder="skips"))
    return base


def _checked(
    where: str,
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: PreTrainedTokenizerBase,
    schedule: DDPMScheduler,
) -> DiffusionBase:
    # transformers returns an empty tokenizer, without an error, when its files are missing
    if len(tokenizer) != CLIP_VOCABULARY:
        raise ValueError(
            f"The tokenizer of {where} has {len(tokenizer)} entries instead of {CLIP_VOCABULARY}: its files are "
            "missing or corrupt. Fetch the base again, or set restorer.base.source to a complete copy."
        )
    width, needed = text_encoder.config.hidden_size, unet.config.cross_attention_dim
    if width != needed or unet.config.in_channels != vae.config.latent_channels:
        raise ValueError(
            f"{where} is not an SD 2.1-shaped model: text width {width} against cross-attention {needed}, "
            f"{vae.config.latent_channels} latent channels against {unet.config.in_channels} UNet inputs. Set "
            "restorer.base.source to one."
        )
    further = [key for key in _FURTHER_CONDITIONS if unet.config.get(key) is not None]
    if further:
        raise ValueError(
            f"{where} is not an SD 2.1-shaped model: its UNet needs conditions beyond latent, timestep and text ("
            f"{further[0]}={unet.config[further[0]]!r}). Set restorer.base.source to one."
        )
    if schedule.config.prediction_type not in ("epsilon", "v_prediction"):
        raise ValueError(f"{where} predicts {schedule.config.prediction_type!r}; only epsilon and v_prediction work.")
    for part in (vae, unet, text_encoder):
        part.eval().requires_grad_(False)
    clip = schedule.config.clip_sample_range if schedule.config.clip_sample else None
    alphas, kind = schedule.alphas_cumprod.float(), schedule.config.prediction_type
    origin = {} if where.partition(":")[0] == "random" else origin_of(vae, unet)
    return DiffusionBase(vae, unet, text_encoder, tokenizer, alphas, kind, clip, origin=origin)


def origin_of(vae: AutoencoderKL, unet: UNet2DConditionModel) -> dict[str, str]:
    """`dtype` and `unet_dtype`, and `content`: 16 hex digits of names, shapes and up to 64 values of every tensor.

    The values are rounded to bfloat16, so that a base in float32 and in bfloat16 has one content.
    """
    content = hashlib.sha256()
    for network in (vae, unet):
        for name, tensor in sorted(network.named_parameters()):
            flat = tensor.detach().flatten()
            content.update(f"{name} {tuple(tensor.shape)}".encode())
            content.update(flat[:: max(1, len(flat) // 64)][:64].bfloat16().view(torch.int16).numpy().tobytes())
    names = {dtype: name for name, dtype in _PRECISIONS.items()}
    dtypes = (names.get(network.dtype, str(network.dtype)) for network in (vae, unet))
    return dict(zip(("dtype", "unet_dtype"), dtypes, strict=True)) | {"content": content.hexdigest()[:16]}


_FURTHER_CONDITIONS = ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type", "num_class_embeds")


def precision(name: str | torch.dtype, key: str = "dtype") -> torch.dtype:
    """The dtype of `fp32`, `bf16` or `fp16`; a dtype is returned unchanged.

    Raises:
        ValueError: another name; with `key`, the option.
    """
    if isinstance(name, torch.dtype):
        return name
    if name not in _PRECISIONS:
        raise ValueError(f"{key} must be one of {', '.join(_PRECISIONS)}, not {name!r}.")
    return _PRECISIONS[name]


def per_sample_noise(seeds: Seeds, like: Tensor) -> Tensor:
    """Gaussian noise of the shape of `like` (B, ...), each image's from its own seed of (B,), on every device the same.

    Independent of the batch; drawn on the CPU. In a training loop the seeds are no tensor of a GPU, whose values the
    host would wait for.
    """
    noise = [torch.randn(like.shape[1:], generator=torch.Generator().manual_seed(int(seed))) for seed in seeds]
    return torch.stack(noise).to(like, non_blocking=True)


def amplification(alpha: float, kind: str) -> float:
    """By how much an error of the UNet's prediction is multiplied in x0; arguments of `predict_x0`."""
    return (1 - alpha) ** 0.5 / (1.0 if kind == "v_prediction" else alpha**0.5)


def predict_x0(noisy: Tensor, prediction: Tensor, alpha: float, kind: str) -> Tensor:
    """The clean latent x0 of DDPM in closed form, in float32.

    At SD 2.1's last timestep (alpha = 0.00466) an error of the prediction is multiplied by 14.6, see `amplification`.

    Args:
        noisy, prediction: (B, C, h, w).
        alpha: cumulative product of alphas at the timestep.
        kind: of the prediction, `epsilon` or `v_prediction`.
    """
    noisy, prediction = noisy.float(), prediction.float()
    signal, noise = alpha**0.5, (1 - alpha) ** 0.5
    if kind == "v_prediction":
        return signal * noisy - noise * prediction
    return (noisy - noise * prediction) / signal
