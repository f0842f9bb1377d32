"""What the restorers share: a base, and trained weights in one file apart from the base they were trained on."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from face2scene.common import model_files
from face2scene.models.restorer.base_model import DiffusionBase, PackagedBase, load_base
from face2scene.models.saved_module import one_of

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

    def __init__(
        self,
        base: DiffusionBase | PackagedBase,
        *,
        prompts: Sequence[str],
        timestep: int,
        guidance: float,
        posterior: str,
    ):
        super().__init__()
        one_of("restorer.adapters.posterior", posterior, ("mean", "sample"))
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
        with model_files.rebuilding(path):
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
