"""What the restorers share: a base, and trained weights in one file apart from the base they were trained on."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from face2scene.common import model_files
from face2scene.common.types import Box, Progress
from face2scene.models.restorer.base_model import DiffusionBase, PackagedBase, load_base
from face2scene.models.restorer.tiling import TilePlan

WEIGHTS_FILE = "restorer.safetensors"  # in a folder of trained weights
MEMORY_ADVICE = "lower pipeline.tile, set guidance=1, or restore with a bf16 base"


class RestorerBase(nn.Module):
    """VAE and UNet of a base, some of their parts trained; each restorer defines what its file holds."""

    kind: ClassVar[str]  # of its file, see `model_files`
    config: dict[str, Any]  # the constructor's arguments without the base
    multiple: int  # sides of images and tiles are multiples of it
    guidance: float  # scale of classifier-free guidance
    posterior: str  # what `restore` takes of the VAE's posterior: `mean` or `sample`
    text: Tensor  # (2, 77, D) positive and negative prompt
    vae: AutoencoderKL
    unet: UNet2DConditionModel

    def _set_base(
        self,
        base: DiffusionBase | PackagedBase,
        *,
        prompts: Sequence[str],
        timestep: int,
        guidance: float,
        posterior: str,
    ) -> None:
        if posterior not in ("mean", "sample"):
            raise ValueError(f"restorer.adapters.posterior must be mean or sample, not {posterior!r}.")
        self.vae, self.unet = base.vae, base.unet  # frozen, both of the base
        self.register_buffer("text", base.encode_prompts(list(prompts)), persistent=False)
        self.alpha, self.prediction = base.alphas[timestep].item(), base.prediction
        self.timestep, self.guidance, self.posterior = timestep, guidance, posterior

    def _trained_in_float32(self) -> None:
        for parameter in self.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()

    @property
    def vae_dtype(self) -> torch.dtype:
        return self.vae.decoder.conv_in.weight.dtype  # never adapted, never trained

    @property
    def unet_dtype(self) -> torch.dtype:
        return self.unet.time_embedding.linear_1.weight.dtype

    def _autocast(self) -> AbstractContextManager:
        # Only where trained float32 weights lie on a half-precision base; merged weights are all of one precision.
        if self.unet.conv_in.weight.dtype == self.vae_dtype:
            return nullcontext()
        return torch.autocast(self.text.device.type, self.vae_dtype)

    def checkpoint_gradients(self) -> Self:
        """Recompute activations in the backward pass in place of keeping them: less memory, more time."""
        self.vae.enable_gradient_checkpointing()
        self.unet.enable_gradient_checkpointing()
        return self

    def restore_tiled(
        self,
        image: Tensor,
        tokens_at: Callable[[Box], Tensor],
        plan: TilePlan,
        guidances: Sequence[float],
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        offload: bool = False,
        progress: Progress | None = None,
    ) -> Iterator[Tensor]:
        """Restore an image by a plan at several guidances; a plan of one tile gives `restore`.

        The image, the latents and the result stay on `image`'s device; only tiles and samples go to `device`.

        Args:
            image: (1, 3, H, W) in [0, 1].
            tokens_at: (1, N, D) for a tile's box, in pixels of the image.
            guidances: see `restore`.
            seed: of the sample from the VAE's posterior, where one is taken.
            offload: keep a network on `device` only while it runs, otherwise on the CPU.
            progress: called with the stage, the tiles done and the number of tiles.

        Yields:
            (1, 3, H, W) in [0, 1] for each of `guidances`.
        """
        raise NotImplementedError

    def save(self, path: str | Path, *, about: Mapping[str, Any], dtype: torch.dtype | None = None) -> None:
        """Write the trained parts into one safetensors file whose header rebuilds the restorer.

        Args:
            about: provenance, for the header.
            dtype: of the stored LoRA weights; None keeps float32.
        """
        raise NotImplementedError

    @classmethod
    def from_file(
        cls, path: str | Path, *, source: str | Path | None = None, dtype: str | torch.dtype = torch.float32
    ) -> Self:
        """Rebuild from a file of `save` or of a converter.

        Args:
            source: of the base; None is the header's.
            dtype: of the base; the trained parts are float32.
        """
        tensors, config, _ = model_files.load_weights(path, kind=cls.kind)
        where = str(source) if source else config["source"]
        if "prompts" in config:
            config["prompts"] = tuple(config["prompts"])
        restorer = cls._built(load_base(where, dtype=dtype), config | {"source": where})
        model_files.fit(restorer, tensors, expected=set(restorer._stored()), source=path)
        return restorer.eval().requires_grad_(False)

    @classmethod
    def _built(cls, base: DiffusionBase, config: dict[str, Any]) -> Self:
        """A restorer with the settings of a file's header."""
        raise NotImplementedError

    def _stored(self) -> Mapping[str, Tensor]:
        """What `save` writes, by name."""
        raise NotImplementedError

    def save_pretrained(self, folder: str | Path, **about: Any) -> None:
        """`save` into a folder, under the name that `from_pretrained` reads."""
        self.save(Path(folder) / WEIGHTS_FILE, about=about)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **base: Any) -> Self:
        """`from_file` of a folder that `save_pretrained` wrote."""
        return cls.from_file(Path(folder) / WEIGHTS_FILE, **base)
