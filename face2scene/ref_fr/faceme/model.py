"""FaceMe (Liu et al., AAAI 2025), the paper's Stage I: SDXL with a ControlNet on the degraded face and identity tokens
of the person's references in the prompt.

Follows the released code (modyu-liu/FaceMe) for its released weights: control in [-1, 1], start from the face's latent
with the noise of t = 999, DDPM, guidance 5, the negative prompt with the unreplaced word, no PhotoMaker LoRA. Unlike
there, models are loaded once for any number of people, faces are batched, every face has its own random generator, and
the VAE may run in float32.
"""

import hashlib
import inspect
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from face2scene.assets import catalogue
from face2scene.assets.catalogue import WeightsError
from face2scene.common.choices import one_of
from face2scene.common.memory import named_device, on_device
from face2scene.common.reproducibility import seed_from
from face2scene.image_io.arrays import align_colour
from face2scene.ref_fr import base
from face2scene.ref_fr.base import AlignedRefFR, RestoredFace, RestorerUnavailableError, in_bytes
from face2scene.ref_fr.faceme import id_encoder, loading, references
from face2scene.ref_fr.faceme.id_encoder import insert_tokens
from face2scene.ref_fr.faceme.loading import Parts, load_released
from face2scene.ref_fr.faceme.references import Antelope, ReferenceCache, choose, describe
from face2scene.ref_fr.fingerprint import code_version, digest, files_version, resolve_paths

# Schedulers of the variance-preserving form, as the start latent's noise; Euler's have another.
SCHEDULERS = {
    "ddpm": "DDPMScheduler",
    "ddim": "DDIMScheduler",
    "dpmpp": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}
DTYPES = ("float16", "bfloat16", "float32")
START = 999  # timestep of the start latent's noise, for every schedule


class FaceMe(AlignedRefFR):
    """FaceMe as a `RefFR`.

    The result depends on the face, the references and the settings alone: every face has its own generator (of seed and
    pixels), on the CPU, so that order, batch and device change only rounding.

    Args:
        load: returns the parts for `dtype` and `vae_dtype`; called once, at the first face.
        weights_version: returns a digest of all weights, for the cache's fingerprint.
        steps: of the scheduler, 1 to 1000; the released code's is 50.
        scheduler: `ddpm` (the released code's), `ddim`, `dpmpp` or `unipc`.
        spacing: `leading`, `trailing` or `linspace`; None is the base model's.
        guidance: scale of classifier-free guidance.
        control: scale of the ControlNet's residuals.
        colour: alignment with the degraded face, see `arrays.align_colour`.
        max_references: number of references used, the best ones; trained with one to four.
        same_person: minimum cosine of two ArcFace identities of one person (ours).
        size: side of the aligned face in pixels, 512 in the released code.
        batch: faces in one pass.
        dtype: of UNet, ControlNet and identity networks, one of `DTYPES`; None is float16 on CUDA, else float32.
        vae_dtype: of the VAE; float16 overflows in SDXL's.
        offload: keep a network on the device only while it runs: slower, with less memory.
        device: None is CUDA where there is one.
        seed: of all noise.

    Raises:
        ValueError: a setting outside its range.
    """

    name = "faceme"

    def __init__(
        self,
        load: Callable[[torch.dtype, torch.dtype], Parts],
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
        one_of("ref_fr.scheduler", scheduler, SCHEDULERS)
        one_of("ref_fr.dtype", dtype or "float16", DTYPES)
        one_of("ref_fr.vae_dtype", vae_dtype, DTYPES)
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
        self.device = named_device(device, "ref_fr.device")
        self.dtype = getattr(torch, dtype) if dtype else torch.float16 if self.device.type == "cuda" else torch.float32
        self.vae_dtype = getattr(torch, vae_dtype)
        self._failure = ""
        self._references = ReferenceCache()

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
            base, controlnet, mix, photomaker: a folder or file, or a name of the asset catalogue and a path in it.
            antelope: folder of antelopev2; None is the catalogue's.
            photomaker_lora: an experiment, see `id_encoder.apply_photomaker_lora`; not part of FaceMe.
            prompt, negative, word: the released code's; the references replace `word`.
            settings: of the constructor.

        Raises:
            FileNotFoundError, ValueError: a file is missing; told before anything is read.
        """
        options = {"base": base, "controlnet": controlnet, "mix": mix, "photomaker": photomaker}
        texts = {"prompt": prompt, "negative": negative, "word": word}
        unpacked = antelope or (catalogue.weights_root() / "antelopev2").is_dir()  # else it is fetched with the others
        places = resolve_paths(options if unpacked else options | {"antelope": "antelopev2"})
        loading.check_files(places, antelope)

        def load(dtype: torch.dtype, vae_dtype: torch.dtype) -> Parts:
            return load_released(places, antelope, photomaker_lora, **texts, dtype=dtype, vae_dtype=vae_dtype)

        def version() -> str:
            encoder = Antelope(antelope).version
            return digest(*map(files_version, places.values()), encoder, str(photomaker_lora), json.dumps(texts))

        return cls(load, weights_version=version, **settings)

    @classmethod
    def tiny(cls, *, weights_seed: int = 0, **settings: Any) -> "FaceMe":
        """Narrow random networks with SDXL's structure, for tests on a CPU."""
        from face2scene.ref_fr.faceme.tiny import tiny_parts

        tiny = cls(lambda *types: tiny_parts(weights_seed), weights_version=lambda: f"tiny {weights_seed}", **settings)
        tiny.name = "faceme_tiny"
        return tiny

    @cached_property
    def fingerprint(self) -> str:
        names = ("steps", "scheduler", "spacing", "guidance", "control", "colour", "max_references", "same_person")
        settings = {name: getattr(self, name) for name in (*names, "size", "seed")}
        settings |= {"dtype": str(self.dtype), "vae_dtype": str(self.vae_dtype), "name": self.name}
        code = code_version(base, loading, id_encoder, references, sys.modules[__name__], align_colour)
        return digest(self._weights_version(), json.dumps(settings, sort_keys=True), code)

    def ready(self) -> None:
        """See `AlignedRefFR`."""
        _ = self.parts

    @property
    def parts(self) -> Parts:
        """The networks, loaded at the first call.

        Raises:
            RestorerUnavailableError: they cannot be loaded; with the same message at every call.
        """
        if self._failure:
            raise RestorerUnavailableError(self._failure)
        try:
            return self._parts
        except (OSError, ValueError, ModuleNotFoundError, WeightsError, torch.OutOfMemoryError) as error:
            self._failure = f"ref_fr={self.name} cannot be loaded: {error}"
            raise RestorerUnavailableError(self._failure) from error

    @cached_property
    def _parts(self) -> Parts:
        parts = self._load(self.dtype, self.vae_dtype)
        parts.reference_encoder.ready()
        limit = len(parts.prompt.positive) - parts.prompt.place
        if self.max_references > limit:
            raise ValueError(f"ref_fr.max_references is {self.max_references} and the prompt has room for {limit}.")
        for network in (parts.unet, parts.controlnet, parts.id_encoder, parts.mix):
            nn.Module.to(network, self.dtype)  # diffusers' own method warns without need
        nn.Module.to(parts.vae, self.vae_dtype)
        if not self.offload:
            for network in (parts.unet, parts.controlnet, parts.id_encoder, parts.mix, parts.vae):
                network.to(self.device)
        return parts

    def _on_device(self, *networks: nn.Module) -> AbstractContextManager[None]:
        return on_device(self.device, *networks) if self.offload else nullcontext()

    # --- references

    def reference_tokens(self, paths: Sequence[Path]) -> tuple[Tensor, tuple[str, ...]]:
        """Prompt tokens (N, D) of the chosen references of one person, on the CPU, and notes for the restoration log.

        Raises:
            FaceRestorationError: no reference, none with a face, or a network is missing.
        """
        parts = self.parts
        if new := self._references.missing(paths):
            with torch.inference_mode(), self._on_device(parts.id_encoder):
                for path in new:
                    self._references.write(path, describe(path, parts.reference_encoder, self._appearance))
        described = self._references.read(paths)
        chosen, notes = choose(paths, described, max_references=self.max_references, same_person=self.same_person)
        appearance = torch.stack([one.appearance for one in chosen]).to(self.device, self.dtype)
        identities = torch.stack([torch.from_numpy(one.identity) for one in chosen]).to(self.device, self.dtype)
        with torch.inference_mode(), self._on_device(parts.mix):
            return parts.mix(appearance, identities).float().cpu(), notes

    def _appearance(self, pixels: Tensor) -> Tensor:
        # one reference at a time, because rounding depends on the batch
        return self.parts.id_encoder(pixels[None].to(self.device, self.dtype))[0].cpu()

    # --- faces

    def restore_aligned(self, faces: Tensor, references: Sequence[Sequence[Path]]) -> list[RestoredFace]:
        if faces.shape[1:] != (3, self.size, self.size):
            raise ValueError(f"FaceMe needs faces (B, 3, {self.size}, {self.size}), got {tuple(faces.shape)}.")
        people = [self.reference_tokens(paths) for paths in references]
        faces = in_bytes(faces).cpu()
        restored: list[Tensor] = []
        for start in range(0, len(faces), self.batch):
            rows = slice(start, start + self.batch)
            try:
                restored += list(self._restore(faces[rows], [tokens for tokens, _ in people[rows]]))
            except torch.OutOfMemoryError as error:
                raise RestorerUnavailableError(
                    f"ref_fr={self.name} ran out of memory with {len(faces[rows])} face(s) at once: set "
                    "ref_fr.batch=1, ref_fr.dtype=float16 or ref_fr.offload=true"
                ) from error
        return [RestoredFace(image, notes) for image, (_, notes) in zip(restored, people, strict=True)]

    @torch.inference_mode()
    def _restore(self, faces: Tensor, tokens: Sequence[Tensor]) -> Tensor:
        parts = self.parts
        generators = [face_generator(self.seed, face) for face in faces]
        control = (faces * 2 - 1).to(self.device)
        with self._on_device(parts.vae):
            latents = start_latents(parts.vae, control, self._schedule(), generators)
        prompts = torch.stack([insert_tokens(parts.prompt.positive, parts.prompt.place, one) for one in tokens])
        with self._on_device(parts.unet, parts.controlnet):
            latents = self.denoise(latents, control, prompts, generators)
        with self._on_device(parts.vae):
            scaled = (latents / parts.vae.config.scaling_factor).to(self.vae_dtype)
            images = parts.vae.decode(scaled).sample.float() / 2 + 0.5
        if not torch.isfinite(images).all():
            raise RestorerUnavailableError(
                "FaceMe's networks gave NaN: set ref_fr.vae_dtype=float32, or ref_fr.dtype=bfloat16 in place of float16"
            )
        images = in_bytes(images)
        if self.colour != "none":  # truncated to bytes, as released
            images = align_colour(images, faces.to(images), self.colour).mul(255).floor().div(255)
        return images.cpu()

    def _schedule(self) -> Any:
        kind = getattr(diffusers, SCHEDULERS[self.scheduler])
        options = {"timestep_spacing": self.spacing} if self.spacing else {}
        return kind.from_config(self.parts.schedule, **options)

    def denoise(
        self,
        latents: Tensor,
        control: Tensor,
        prompts: Tensor,
        generators: Sequence[torch.Generator],
    ) -> Tensor:
        """Sample with classifier-free guidance.

        Args:
            latents: (B, C, h, w) float32, noised.
            control: (B, 3, 8h, 8w) in [-1, 1].
            prompts: (B, L, D), references inserted.
            generators: one per face, for schedulers that add noise.
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
        condition = torch.cat([control] * 2).to(self.dtype)
        for t in schedule.timesteps:
            noisy = torch.cat([schedule.scale_model_input(latents, t)] * 2).to(self.dtype)
            down, middle = parts.controlnet(
                noisy,
                t,
                encoder_hidden_states=both,
                controlnet_cond=condition,
                conditioning_scale=self.control,
                added_cond_kwargs=added,
                return_dict=False,
            )
            predicted = parts.unet(
                noisy,
                t,
                encoder_hidden_states=both,
                added_cond_kwargs=added,
                down_block_additional_residuals=down,
                mid_block_additional_residual=middle,
            ).sample.float()
            negative, positive = predicted.chunk(2)
            guided = negative + self.guidance * (positive - negative)
            latents = schedule.step(guided, t, latents, **noise).prev_sample
        return latents


def face_generator(seed: int, face: Tensor) -> torch.Generator:
    """The CPU generator of a face (3, s, s), seeded by `seed` and its pixels."""
    digest = hashlib.sha256((face * 255).round().to(torch.uint8).numpy().tobytes()).hexdigest()
    return torch.Generator().manual_seed(seed_from(seed, "faceme", digest))


def start_latents(vae: AutoencoderKL, control: Tensor, schedule: Any, generators: Sequence[torch.Generator]) -> Tensor:
    """Posterior samples of faces (B, 3, s, s) in [-1, 1], noised to t = 999, in float32.

    Each generator draws twice: the posterior's sample, then the noise.
    """
    posterior = vae.encode(control.to(vae.dtype)).latent_dist
    mean, std = posterior.mean.float(), posterior.std.float()
    draws = [torch.randn((2, *mean.shape[1:]), generator=generator) for generator in generators]
    sample, noise = torch.stack(draws, dim=1).to(mean)
    clean = (mean + std * sample) * vae.config.scaling_factor
    timesteps = torch.full((len(mean),), START, device=mean.device, dtype=torch.long)
    return schedule.add_noise(clean, noise, timesteps)
