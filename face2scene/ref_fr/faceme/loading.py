"""FaceMe's released files, validated by tensor names and shapes before weights are read."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from face2scene.common.files import read_json
from face2scene.ref_fr.faceme import id_encoder as identity
from face2scene.ref_fr.faceme.id_encoder import IDEncoder, Mix
from face2scene.ref_fr.faceme.references import Antelope, ReferenceEncoder

log = logging.getLogger(__name__)
CLIP_VOCABULARY = 49408


@dataclass(frozen=True, eq=False)
class TextPrompt:
    """The two prompts, encoded by both text encoders of SDXL."""

    positive: Tensor  # (L, D)
    pooled: Tensor  # (P,)
    negative: Tensor  # (L, D)
    negative_pooled: Tensor  # (P,)
    place: int  # of the word that the references replace


@dataclass(frozen=True, eq=False)
class Parts:
    """FaceMe's networks, on the CPU, with its encoded prompt and scheduler."""

    vae: AutoencoderKL
    unet: UNet2DConditionModel
    controlnet: ControlNetModel
    id_encoder: IDEncoder
    mix: Mix
    prompt: TextPrompt
    schedule: dict[str, Any]  # the base model's scheduler_config.json
    reference_encoder: ReferenceEncoder


def load_released(
    places: Mapping[str, Path],
    antelope: str | None,
    photomaker_lora: bool,
    *,
    prompt: str,
    negative: str,
    word: str,
    dtype: torch.dtype,
    vae_dtype: torch.dtype,
) -> Parts:
    """Read the released files; see `FaceMe.released`.

    Weights are read in their final dtype, so that a file of that dtype is mapped and not copied.

    Args:
        places: `base`, `controlnet`, `mix`, `photomaker`.

    Raises:
        FileNotFoundError, ValueError: with the file, the tensor and the option.
    """
    found = places["base"]
    mix = identity.load_mix(places["mix"])
    photomaker = identity.read_photomaker(places["photomaker"])
    id_encoder = identity.load_id_encoder(photomaker["id_encoder"], source=places["photomaker"])
    controlnet = load_network(ControlNetModel, places["controlnet"], "controlnet", dtype)
    unet = load_network(UNet2DConditionModel, found / "unet", "base", dtype)
    vae = load_network(AutoencoderKL, found / "vae", "base", vae_dtype)
    if photomaker_lora:
        changed = identity.apply_photomaker_lora(unet, photomaker["lora_weights"], source=places["photomaker"])
        log.warning(
            "PhotoMaker's LoRA was added to %d layers: an experiment, the released FaceMe runs without.", changed
        )
    schedule = read_json(_there(found / "scheduler" / "scheduler_config.json", "base"))
    prompts = encode_prompts(found, prompt=prompt, negative=negative, word=word)
    return Parts(vae, unet, controlnet, id_encoder, mix, prompts, schedule, Antelope(antelope))


def check_files(places: Mapping[str, Path], antelope: str | None) -> None:
    """Look for the released files without reading weights, which takes minutes.

    Args:
        places, antelope: see `load_released`.

    Raises:
        FileNotFoundError, ValueError: a file is missing; with its option.
    """
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        _there(places["base"] / part / "config.json", "base")
    _there(places["base"] / "scheduler" / "scheduler_config.json", "base")
    _there(places["controlnet"] / "config.json", "controlnet")
    for option in ("mix", "photomaker"):
        _there(places[option], option)
    Antelope(antelope).files()


def load_network(kind: Any, folder: Path, option: str, dtype: torch.dtype = torch.float32) -> Any:
    """Read a network `kind` of diffusers' layout.

    Raises:
        FileNotFoundError, ValueError: a file is missing; a tensor is missing, unknown or of another shape.
    """
    _there(folder / "config.json", option)
    compare_headers(kind, folder)
    return kind.from_pretrained(folder, torch_dtype=dtype, local_files_only=True).eval().requires_grad_(False)


def load_text_encoder(kind: Any, folder: Path) -> Any:
    """Read a text encoder `kind` of transformers' layout, in float32.

    Raises:
        FileNotFoundError, ValueError: see `load_network`; transformers alone would fill missing tensors at random.
    """
    _there(folder / "config.json", "base")
    with torch.device("meta"):
        network = kind(CLIPTextConfig.from_pretrained(folder))
    own = network.state_dict().keys()

    def named(name: str) -> str | None:
        # transformers 5 dropped the files' prefix text_model; old files have position ids
        return None if name.endswith("position_ids") else name if name in own else name.removeprefix("text_model.")

    compare(network, folder, "model", named)
    return kind.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True).eval().requires_grad_(False)


def _there(file: Path, option: str) -> Path:
    if not file.is_file():
        raise FileNotFoundError(
            f"There is no {file.name} in {file.parent}: ref_fr.{option} has to name what was released."
        )
    return file


def compare_headers(kind: Any, folder: Path) -> None:
    """Compare the safetensors headers of a folder of diffusers' layout with the network of its config.

    Without memory for weights: the network is on the meta device, and only headers are read.

    Raises:
        FileNotFoundError, ValueError: with the file and the tensor.
    """
    with torch.device("meta"):
        network = kind.from_config(kind.load_config(folder, local_files_only=True))
    compare(network, folder, "diffusion_pytorch_model", _renamed)


def compare(network: nn.Module, folder: Path, stem: str, named: Callable[[str], str | None]) -> None:
    """Compare tensor names and shapes of a folder's files with a network on the meta device.

    Args:
        stem: of the files; others, such as half-precision variants, are ignored.
        named: from a file's tensor name to the network's; None skips the tensor.

    Raises:
        FileNotFoundError, ValueError: with the file and the tensor.
    """
    # one file, or shards such as STEM-00001-of-00002.safetensors
    files = sorted([*folder.glob(f"{stem}.safetensors"), *folder.glob(f"{stem}-*-of-*.safetensors")])
    if not files:
        raise FileNotFoundError(f"There is no {stem}.safetensors in {folder}. Fetch it again.")
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    there: dict[str, tuple[int, ...]] = {}
    for file in files:
        try:
            with safe_open(file, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118 (not a dict)
                    shape = tuple(opened.get_slice(name).get_shape())
                    # the 1 x 1 convolutions of old VAE files became linear layers
                    if own_name := named(name):
                        own = expected.get(own_name)
                        flat = own is not None and len(own) == 2 and shape[2:] == (1, 1)
                        there[own_name] = shape[:2] if flat else shape
        except SafetensorError as error:
            raise ValueError(f"{file} is not a whole safetensors file ({error}). Fetch it again.") from error
    where = files[0] if len(files) == 1 else folder
    missing, unknown = sorted(expected.keys() - there.keys()), sorted(there.keys() - expected.keys())
    wrong = [f"{n} {there[n]} for {expected[n]}" for n in expected if n in there and there[n] != expected[n]]
    if missing or unknown or wrong:
        raise ValueError(
            f"{where} does not fit {type(network).__name__}: missing {missing[:3]}, unknown {unknown[:3]}, "
            f"wrong {wrong[:3]}."
        )


def _renamed(name: str) -> str:
    # Attention layers of VAE files before 2023; diffusers renames them on loading.
    for old, new in {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}.items():
        if ".attentions." in name:
            name = name.replace(f".{old}.", f".{new}.")
    return name


def encode_prompts(found: Path, *, prompt: str, negative: str, word: str) -> TextPrompt:
    """Encode both prompts with both text encoders, in float32 on the CPU; the encoders are then dropped.

    Raises:
        FileNotFoundError, ValueError: a text encoder or tokenizer is missing or incomplete; the word is not one token
            of the prompt.
    """
    encoders = [
        load_text_encoder(CLIPTextModel, found / "text_encoder"),
        load_text_encoder(CLIPTextModelWithProjection, found / "text_encoder_2"),
    ]
    tokenizers = []
    for name in ("tokenizer", "tokenizer_2"):
        try:
            tokenizers.append(
                AutoTokenizer.from_pretrained(found / name, local_files_only=True, trust_remote_code=False)
            )
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0][:200]
            raise FileNotFoundError(f"{found / name} cannot be read ({reason}): see ref_fr.base.") from error
        if len(tokenizers[-1]) != CLIP_VOCABULARY:
            raise ValueError(
                f"{found / name} has {len(tokenizers[-1])} entries instead of {CLIP_VOCABULARY}: fetch it again."
            )
    return encode_with(tokenizers, encoders, prompt=prompt, negative=negative, word=word)


@torch.no_grad()
def encode_with(
    tokenizers: Sequence[Any], encoders: Sequence[Any], *, prompt: str, negative: str, word: str
) -> TextPrompt:
    """See `encode_prompts`: second-to-last hidden states of both encoders, concatenated; the second's pooled vector."""
    found = []
    for text in (prompt, negative):
        ids, outputs = [], []
        for tokenizer, encoder in zip(tokenizers, encoders, strict=True):
            limit = {"padding": "max_length", "max_length": tokenizer.model_max_length, "truncation": True}
            ids.append(tokenizer(text, return_tensors="pt", **limit).input_ids)
            outputs.append(encoder.eval()(ids[-1], output_hidden_states=True))
        hidden = torch.cat([output.hidden_states[-2][0] for output in outputs], dim=-1)
        found.append((hidden.float(), outputs[-1].text_embeds[0].float(), ids[0][0]))
    token = tokenizers[0](word, add_special_tokens=False).input_ids
    places = (found[0][2] == token[0]).nonzero().flatten().tolist()
    if len(token) != 1 or not places:
        raise ValueError(f"ref_fr.word {word!r} has to be one token of ref_fr.prompt {prompt!r}.")
    return TextPrompt(found[0][0], found[0][1], found[1][0], found[1][1], places[0])
