"""FaceMe (Liu et al., AAAI 2025), the paper's Stage I: SDXL with a ControlNet that sees the degraded face and a prompt
that holds the person's references.

Written from the released code's behaviour (modyu-liu/FaceMe) for its released weights, whatever that behaviour is:
control in [-1, 1], start from the face's own latent under the noise of t = 999, DDPM, guidance 5, the negative prompt
with the plain word, no PhotoMaker LoRA. What differs is around it: models are loaded once for any number of people,
faces go in batches, every draw belongs to its face, and the VAE may run in float32.
"""

import ast
import hashlib
import inspect
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPTextModel, CLIPTextModelWithProjection

from face2scene import weights
from face2scene.files import read_json, sha256_of
from face2scene.images import ImageError, align_colour
from face2scene.ref_fr import base, faceme_id, references
from face2scene.ref_fr.base import AlignedRefFR, RestoredFace, StageOneError, in_bytes
from face2scene.ref_fr.faceme_id import IDEncoder, Mix, insert_tokens
from face2scene.ref_fr.references import Antelope, Describer, Reference, choose, describe
from face2scene.runs import seed_from

log = logging.getLogger(__name__)
# All of them work on latents whose variance is kept, as the noised start is; Euler's kind does not.
SCHEDULERS = {
    "ddpm": "DDPMScheduler",
    "ddim": "DDIMScheduler",
    "dpmpp": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}
CLIP_VOCABULARY = 49408
START = 999  # timestep of the noise on the start latent, whatever the first step is


@dataclass(frozen=True, eq=False)
class Prompt:
    """The two prompts through both text encoders of SDXL."""

    positive: Tensor  # (L, D)
    pooled: Tensor  # (P,)
    negative: Tensor  # (L, D)
    negative_pooled: Tensor  # (P,)
    place: int  # of the word that the references replace


@dataclass(frozen=True, eq=False)
class Parts:
    """Everything that FaceMe is made of, on the CPU."""

    vae: AutoencoderKL
    unet: UNet2DConditionModel
    controlnet: ControlNetModel
    id_encoder: IDEncoder
    mix: Mix
    prompt: Prompt
    schedule: dict[str, Any]  # the base model's scheduler_config.json
    describer: Describer


class FaceMe(AlignedRefFR):
    """FaceMe at the door of Stage I.

    What comes out follows from the face, the references and the settings alone: noise is drawn from a generator of
    the face's own (seed and pixels), on the CPU, so that order, batch and device change nothing but rounding.

    Args:
        load: makes the parts; called once, at the first face. What it cannot find is the reason in the why-log.
        weights_version: hex digest of all weights, for caches; called when one is used.
        steps: of the scheduler, 1 to 1000; the released code's is 50.
        scheduler: `ddpm` (the released code's), `ddim`, `dpmpp` or `unipc`.
        spacing: `leading`, `trailing` or `linspace`; None is what the base model's file says.
        guidance: scale of classifier-free guidance.
        control: scale of the ControlNet's residuals.
        colour: alignment with the degraded face, see `images.align_colour`.
        max_references: the best so many are used; training showed one to four.
        same_person: cosine of two ArcFace identities from which they count as one person (ours).
        size: side of the aligned face in pixels, 512 in the released code.
        batch: faces in one pass.
        dtype: of UNet, ControlNet and identity networks, such as `float16`; None is float16 on CUDA, else float32.
        vae_dtype: of the VAE; float16 overflows in SDXL's.
        offload: keep only the part at work on the device: slower, and the VAE and the identity networks take no room.
        device: None is CUDA where there is one.
        seed: of everything drawn.

    Raises:
        ValueError: a setting outside its range.
    """

    name = "faceme"

    def __init__(
        self,
        load: Callable[[], Parts],
        *,
        weights_version: Callable[[], str],
        steps: int = 50,
        scheduler: str = "ddpm",
        spacing: str | None = None,
        guidance: float = 5.0,
        control: float = 1.0,
        colour: str = "wavelet",
        max_references: int = 4,
        same_person: float = 0.3,
        size: int = 512,
        batch: int = 4,
        dtype: str | None = None,
        vae_dtype: str = "float32",
        offload: bool = False,
        device: str | None = None,
        seed: int = 233,
    ):
        if scheduler not in SCHEDULERS:
            raise ValueError(f"ref_fr.scheduler is {scheduler!r}: choose one of {', '.join(SCHEDULERS)}.")
        if not 1 <= steps <= 1000 or batch < 1 or size % 64:
            raise ValueError(
                f"ref_fr.steps is 1 to 1000, ref_fr.batch at least 1 and ref_fr.size a multiple of 64, not {steps}, "
                f"{batch} and {size}."
            )
        if not 1 <= max_references <= 70:
            raise ValueError(
                f"ref_fr.max_references is {max_references}: the prompt has room for 1 to 70 beside its words, and "
                "FaceMe was trained with at most 4."
            )
        self._load, self._weights_version = load, weights_version
        self.steps, self.scheduler, self.spacing = steps, scheduler, spacing
        self.guidance, self.control, self.colour = guidance, control, colour
        self.max_references, self.same_person = max_references, same_person
        self.size, self.batch, self.offload, self.seed = size, batch, offload, seed
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.dtype = getattr(torch, dtype) if dtype else torch.float16 if self.device.type == "cuda" else torch.float32
        self.vae_dtype = getattr(torch, vae_dtype)
        self._failure = ""
        self._described: dict[tuple, Reference | ImageError | None] = {}
        self._embedded: dict[tuple, tuple[Tensor, Tensor]] = {}

    @classmethod
    def released(
        cls,
        *,
        base: str = "realvisxl_v3",
        controlnet: str = "faceme/controlnet",
        mix: str = "faceme/mix/mix.safetensors",
        photomaker: str = "photomaker/photomaker-v1.safetensors",
        antelope: str | None = None,
        photomaker_lora: bool = False,
        prompt: str = "A photo of face.",
        negative: str = "A photo of face.",
        word: str = "face",
        **settings: Any,
    ) -> "FaceMe":
        """The released weights, or others of the same shapes.

        Args:
            base, controlnet, mix, photomaker: a folder or file, or a name of the weights catalogue and a path in it.
            antelope: folder of antelopev2; None is the catalogue's.
            photomaker_lora: an experiment, see `faceme_id.apply_photomaker_lora`; FaceMe never had it.
            prompt, negative, word: the released code's; `word` is what the references replace.
            settings: of the constructor.
        """
        options = {"base": base, "controlnet": controlnet, "mix": mix, "photomaker": photomaker}
        texts = {"prompt": prompt, "negative": negative, "word": word}

        def load() -> Parts:
            places = {option: _place(option, value) for option, value in options.items()}
            return load_released(places, antelope, photomaker_lora, **texts)

        def version() -> str:
            places = [_place(option, value) for option, value in options.items()]
            seen = Antelope(antelope).version
            return _digest(*map(_files_version, places), seen, str(photomaker_lora), json.dumps(texts))

        return cls(load, weights_version=version, **settings)

    @classmethod
    def tiny(cls, *, weights_seed: int = 0, **settings: Any) -> "FaceMe":
        """Random networks of SDXL's shape, narrow enough for a CPU: the whole path without a weight."""
        from face2scene.ref_fr.faceme_tiny import tiny_parts

        made = cls(lambda: tiny_parts(weights_seed), weights_version=lambda: f"tiny {weights_seed}", **settings)
        made.name = "faceme_tiny"
        return made

    @cached_property
    def fingerprint(self) -> str:
        names = ("steps", "scheduler", "spacing", "guidance", "control", "colour", "max_references", "same_person")
        settings = {name: getattr(self, name) for name in (*names, "size", "seed")}
        settings |= {"dtype": str(self.dtype), "vae_dtype": str(self.vae_dtype), "name": self.name}
        code = code_version(base, faceme_id, references, inspect.getmodule(FaceMe))
        return _digest(self._weights_version(), json.dumps(settings, sort_keys=True), code)

    def ready(self) -> None:
        """Load the networks now."""
        _ = self.parts

    @property
    def parts(self) -> Parts:
        """The networks, loaded at the first call.

        Raises:
            StageOneError: they cannot be; the same sentence at every call.
        """
        if self._failure:
            raise StageOneError(self._failure)
        try:
            return self._parts
        except (OSError, ValueError, ModuleNotFoundError) as error:
            self._failure = f"ref_fr={self.name} cannot be loaded: {error}"
            raise StageOneError(self._failure) from error

    @cached_property
    def _parts(self) -> Parts:
        parts = self._load()
        parts.describer.ready()
        room = len(parts.prompt.positive) - parts.prompt.place
        if self.max_references > room:
            raise ValueError(f"ref_fr.max_references is {self.max_references} and the prompt has room for {room}.")
        for network in (parts.unet, parts.controlnet, parts.id_encoder, parts.mix):
            nn.Module.to(network, self.dtype)  # diffusers' own method warns of what it has nothing to warn of
        nn.Module.to(parts.vae, self.vae_dtype)
        if not self.offload:
            for network in (parts.unet, parts.controlnet, parts.id_encoder, parts.mix, parts.vae):
                network.to(self.device)
        return parts

    @contextmanager
    def _at_work(self, *networks: nn.Module) -> Iterator[None]:
        if not self.offload:
            yield
            return
        try:
            for network in networks:
                network.to(self.device)
            yield
        finally:
            for network in networks:
                network.to("cpu")

    # --- references

    def reference_tokens(self, paths: Sequence[Path]) -> tuple[Tensor, tuple[str, ...]]:
        """The chosen references of one person as prompt tokens (N, D) on the CPU, and notes for the why-log.

        Raises:
            StageOneError: no reference, none with a face, or a network is missing.
        """
        parts = self.parts
        keys = [_file_key(path) for path in paths]
        for key, path in zip(keys, paths, strict=True):
            if key not in self._described:
                self._described[key] = self._describe(path)
        chosen, notes = choose(
            paths, [self._described[k] for k in keys], most=self.max_references, same_person=self.same_person
        )
        new = {_file_key(one.path): one for one in chosen if _file_key(one.path) not in self._embedded}
        with torch.inference_mode(), self._at_work(parts.id_encoder):
            for key, one in new.items():  # one at a time: a batch would round the others differently
                looks = parts.id_encoder(one.pixels[None].to(self.device, self.dtype))[0].cpu()
                self._embedded[key] = looks, torch.from_numpy(one.identity)
        pairs = [self._embedded[_file_key(one.path)] for one in chosen]
        looks, identities = (torch.stack(column).to(self.device, self.dtype) for column in zip(*pairs, strict=True))
        with torch.inference_mode(), self._at_work(parts.mix):
            return parts.mix(looks, identities).float().cpu(), notes

    def _describe(self, path: Path) -> Reference | ImageError | None:
        try:
            return describe(path, self.parts.describer)
        except ImageError as error:
            return error

    # --- faces

    def restore_aligned(self, faces: Tensor, references: Sequence[Sequence[Path]]) -> list[RestoredFace]:
        if faces.shape[1:] != (3, self.size, self.size):
            raise ValueError(f"FaceMe wants faces (B, 3, {self.size}, {self.size}), got {tuple(faces.shape)}.")
        people = [self.reference_tokens(paths) for paths in references]
        faces = in_bytes(faces).cpu()
        made = []
        for start in range(0, len(faces), self.batch):
            rows = slice(start, start + self.batch)
            made += list(self._restore(faces[rows], [tokens for tokens, _ in people[rows]]))
        return [RestoredFace(image, notes) for image, (_, notes) in zip(made, people, strict=True)]

    @torch.inference_mode()
    def _restore(self, faces: Tensor, tokens: Sequence[Tensor]) -> Tensor:
        parts = self.parts
        generators = [face_generator(self.seed, face) for face in faces]
        control = (faces * 2 - 1).to(self.device)
        with self._at_work(parts.vae):
            latents = start_latents(parts.vae, control, self._schedule(), generators)
        prompts = torch.stack([insert_tokens(parts.prompt.positive, parts.prompt.place, one) for one in tokens])
        with self._at_work(parts.unet, parts.controlnet):
            latents = self.denoise(latents, control, prompts, generators)
        with self._at_work(parts.vae):
            scaled = (latents / parts.vae.config.scaling_factor).to(self.vae_dtype)
            images = parts.vae.decode(scaled).sample.float() / 2 + 0.5
        if not torch.isfinite(images).all():
            raise StageOneError(
                "FaceMe's networks gave NaN: set ref_fr.vae_dtype=float32, or ref_fr.dtype=bfloat16 in place of float16"
            )
        return in_bytes(align_colour(in_bytes(images), faces.to(images), self.colour)).cpu()

    def _schedule(self) -> Any:
        kind = getattr(diffusers, SCHEDULERS[self.scheduler])
        given = {"timestep_spacing": self.spacing} if self.spacing else {}
        return kind.from_config(self.parts.schedule, **given)

    def denoise(
        self,
        latents: Tensor,
        control: Tensor,
        prompts: Tensor,
        generators: Sequence[torch.Generator],
        *,
        until: int = 0,
    ) -> Tensor:
        """The guided sampling.

        Args:
            latents: (B, C, h, w) float32, noised.
            control: (B, 3, 8h, 8w) in [-1, 1].
            prompts: (B, L, D), references inserted.
            generators: one per face, for schedulers that add noise.
            until: stop after so many steps; 0 is all of them.
        """
        parts, count = self.parts, len(latents)
        schedule = self._schedule()
        schedule.set_timesteps(self.steps, device=self.device)
        takes_noise = "generator" in inspect.signature(schedule.step).parameters
        noise = {"generator": list(generators)} if takes_noise else {}
        both = torch.cat([parts.prompt.negative.expand_as(prompts), prompts]).to(self.device, self.dtype)
        pooled = torch.cat([parts.prompt.negative_pooled.expand(count, -1), parts.prompt.pooled.expand(count, -1)])
        side = float(control.shape[-1])
        added = {
            "text_embeds": pooled.to(self.device, self.dtype),
            "time_ids": torch.tensor([[side, side, 0, 0, side, side]] * 2 * count).to(self.device, self.dtype),
        }
        seen = torch.cat([control] * 2).to(self.dtype)
        for step, t in enumerate(schedule.timesteps):
            given = torch.cat([schedule.scale_model_input(latents, t)] * 2).to(self.dtype)
            down, middle = parts.controlnet(
                given,
                t,
                encoder_hidden_states=both,
                controlnet_cond=seen,
                conditioning_scale=self.control,
                added_cond_kwargs=added,
                return_dict=False,
            )
            predicted = parts.unet(
                given,
                t,
                encoder_hidden_states=both,
                added_cond_kwargs=added,
                down_block_additional_residuals=down,
                mid_block_additional_residual=middle,
            ).sample.float()
            plain, guided = predicted.chunk(2)
            latents = schedule.step(plain + self.guidance * (guided - plain), t, latents, **noise).prev_sample
            if step + 1 == until:
                break
        return latents


def face_generator(seed: int, face: Tensor) -> torch.Generator:
    """The generator of one face (3, s, s): of `seed` and its pixels, on the CPU."""
    digest = hashlib.sha256((face * 255).round().to(torch.uint8).numpy().tobytes()).hexdigest()
    return torch.Generator().manual_seed(seed_from(seed, "faceme", digest))


def start_latents(vae: AutoencoderKL, control: Tensor, schedule: Any, generators: Sequence[torch.Generator]) -> Tensor:
    """A sample of the VAE's posterior of each face (B, 3, s, s) in [-1, 1], under the noise of t = 999; float32.

    Two draws per generator: the posterior's, then the noise.
    """
    posterior = vae.encode(control.to(vae.dtype)).latent_dist
    mean, std = posterior.mean.float(), posterior.std.float()
    draws = [torch.randn((2, *mean.shape[1:]), generator=generator) for generator in generators]
    draws = torch.stack(draws, dim=1).to(mean)
    clean = (mean + std * draws[0]) * vae.config.scaling_factor
    when = torch.full((len(mean),), START, device=mean.device, dtype=torch.long)
    return schedule.add_noise(clean, draws[1], when)


# --- loading ------------------------------------------------------------------------------------------------------


def load_released(
    places: dict[str, Path], antelope: str | None, photomaker_lora: bool, *, prompt: str, negative: str, word: str
) -> Parts:
    """Read the released files; see `FaceMe.released`.

    Args:
        places: `base`, `controlnet`, `mix`, `photomaker`.

    Raises:
        FileNotFoundError, ValueError: names the file, the tensor and the option.
    """
    found = places["base"]
    mix = faceme_id.load_mix(places["mix"])
    photomaker = faceme_id.read_photomaker(places["photomaker"])
    id_encoder = faceme_id.load_id_encoder(photomaker["id_encoder"], source=places["photomaker"])
    controlnet = load_network(ControlNetModel, places["controlnet"], "controlnet")
    unet = load_network(UNet2DConditionModel, found / "unet", "base")
    vae = load_network(AutoencoderKL, found / "vae", "base")
    if photomaker_lora:
        changed = faceme_id.apply_photomaker_lora(unet, photomaker["lora_weights"], source=places["photomaker"])
        log.warning(
            "PhotoMaker's LoRA was added to %d layers: an experiment, the released FaceMe runs without.", changed
        )
    schedule = read_json(found / "scheduler" / "scheduler_config.json")
    prompts = encode_prompts(found, prompt=prompt, negative=negative, word=word)
    return Parts(vae, unet, controlnet, id_encoder, mix, prompts, schedule, Antelope(antelope))


def load_network(kind: type, folder: Path, option: str) -> Any:
    """Read one network of diffusers' layout; names and shapes are compared before a weight is read.

    Raises:
        FileNotFoundError, ValueError: a file is missing; a tensor is missing, unknown or of another shape.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"There is no config.json in {folder}: ref_fr.{option} has to name the released folder."
        )
    compare_headers(kind, folder)
    return kind.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True).eval().requires_grad_(False)


def compare_headers(kind: type, folder: Path) -> None:
    """Compare the names and shapes in a folder's safetensors headers with the network its config describes.

    Costs no memory: the network is built on the meta device and no weight is read.

    Raises:
        FileNotFoundError, ValueError: which file, which tensor.
    """
    from safetensors import SafetensorError, safe_open

    files = sorted(folder.glob("diffusion_pytorch_model*.safetensors"))
    plain = [f for f in files if ".fp16" not in f.name and ".non_ema" not in f.name]
    if not plain:
        raise FileNotFoundError(f"There is no diffusion_pytorch_model.safetensors in {folder}. Fetch it again.")
    with torch.device("meta"):
        network = kind.from_config(kind.load_config(folder, local_files_only=True))
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    there: dict[str, tuple[int, ...]] = {}
    for file in plain:
        try:
            with safe_open(file, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118 (not a dict)
                    shape = tuple(opened.get_slice(name).get_shape())
                    # the 1 x 1 convolutions of old VAE files became linear layers
                    own = expected.get(name := _renamed(name))
                    there[name] = shape[:2] if own and len(own) == 2 and shape[2:] == (1, 1) else shape
        except SafetensorError as error:
            raise ValueError(f"{file} is not a whole safetensors file ({error}). Fetch it again.") from error
    where = plain[0] if len(plain) == 1 else folder
    missing, unknown = sorted(expected.keys() - there.keys()), sorted(there.keys() - expected.keys())
    wrong = [f"{n} {there[n]} for {expected[n]}" for n in expected if n in there and there[n] != expected[n]]
    if missing or unknown or wrong:
        raise ValueError(
            f"{where} does not fit {kind.__name__}: missing {missing[:3]}, unknown {unknown[:3]}, wrong {wrong[:3]}."
        )


def _renamed(name: str) -> str:
    # VAE files of before 2023 name their attention's layers so; diffusers renames them while loading.
    for old, new in {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}.items():
        if ".attentions." in name:
            name = name.replace(f".{old}.", f".{new}.")
    return name


def encode_prompts(found: Path, *, prompt: str, negative: str, word: str) -> Prompt:
    """Both prompts through both text encoders, in float32 on the CPU; the encoders are not kept.

    Raises:
        FileNotFoundError, ValueError: a text encoder or tokenizer is missing or empty; the word is not in the prompt,
            or is more than one token.
    """
    try:
        tokenizers = [AutoTokenizer.from_pretrained(found / name) for name in ("tokenizer", "tokenizer_2")]
        encoders = [
            CLIPTextModel.from_pretrained(found / "text_encoder", torch_dtype=torch.float32),
            CLIPTextModelWithProjection.from_pretrained(found / "text_encoder_2", torch_dtype=torch.float32),
        ]
    except (OSError, ValueError) as error:
        raise FileNotFoundError(f"The text encoders of {found} cannot be read ({error}): see ref_fr.base.") from error
    for tokenizer, name in zip(tokenizers, ("tokenizer", "tokenizer_2"), strict=True):
        if len(tokenizer) != CLIP_VOCABULARY:
            raise ValueError(
                f"{found / name} has {len(tokenizer)} entries instead of {CLIP_VOCABULARY}: fetch it again."
            )
    return encode_with(tokenizers, encoders, prompt=prompt, negative=negative, word=word)


@torch.no_grad()
def encode_with(tokenizers: Sequence[Any], encoders: Sequence[Any], *, prompt: str, negative: str, word: str) -> Prompt:
    """See `encode_prompts`. The second to last layer of both, side by side; the pooled vector of the second."""
    found = []
    for text in (prompt, negative):
        columns, pooled, ids = [], None, None
        for tokenizer, encoder in zip(tokenizers, encoders, strict=True):
            given = tokenizer(
                text, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
            ).input_ids
            ids = given if ids is None else ids
            output = encoder.eval()(given, output_hidden_states=True)
            columns.append(output.hidden_states[-2][0])
            pooled = getattr(output, "text_embeds", None)
        found.append((torch.cat(columns, dim=-1).float(), pooled[0].float(), ids[0]))
    token = tokenizers[0](word, add_special_tokens=False).input_ids
    places = (found[0][2] == token[0]).nonzero().flatten().tolist()
    if len(token) != 1 or not places:
        raise ValueError(f"ref_fr.word {word!r} has to be one token of ref_fr.prompt {prompt!r}.")
    return Prompt(found[0][0], found[0][1], found[1][0], found[1][1], places[0])


def _place(option: str, value: str) -> Path:
    """A path, or a name of the catalogue and a path in its folder."""
    asset, _, inside = value.partition("/")
    if not Path(value).exists() and asset in weights.catalogue():
        return weights.folder(asset) / inside
    if not Path(value).exists():
        raise FileNotFoundError(f"There is nothing at {value} (ref_fr.{option}).")
    return Path(value)


def _file_key(path: Path) -> tuple:
    try:
        facts = Path(path).stat()
    except OSError as error:
        raise StageOneError(f"the reference {path} is not there") from error
    return (str(path), facts.st_mtime_ns, facts.st_size)


# --- versions -----------------------------------------------------------------------------------------------------


def code_version(*modules: ModuleType) -> str:
    """Digest of what modules do: of their syntax trees, so that comments and docstrings do not count."""
    texts = []
    for module in modules:
        tree = ast.parse(inspect.getsource(module))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
                first = body[0].value
                if isinstance(first, ast.Constant) and isinstance(first.value, str):
                    body[0] = ast.Pass()
        texts.append(ast.dump(tree))
    return _digest(*texts)


def _files_version(place: Path) -> str:
    """Digest of a file or of all files below a folder; the catalogue's marker is believed where it lists them."""
    files = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file() and p.name[0] != ".")
    recorded: dict[Path, str] = {}
    for parent in (place, *place.parents):
        if (parent / weights.MARKER).is_file():
            recorded = {parent / name: sha for name, sha in read_json(parent / weights.MARKER)["files"].items()}
            break
    return _digest(*(f"{file.name} {recorded.get(file) or sha256_of(file)}" for file in files))


def _digest(*texts: str) -> str:
    return hashlib.sha256("\x1f".join(texts).encode()).hexdigest()[:32]
