"""What the restorers share: a base, and trained weights in one file apart from the base they were trained on."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from typing_extensions import Self

from face2scene.common import model_files
from face2scene.common.choices import one_of
from face2scene.common.shipped import shipped
from face2scene.models.restorer.base_model import DiffusionBase, PackagedBase, amplification, load_base

log = logging.getLogger(__name__)
WEIGHTS_FILE = "restorer.safetensors"  # in a folder of trained weights
MEMORY_ADVICE = "lower pipeline.tile, set guidance=1, or dtype=fp16"
_HALF = (torch.bfloat16, torch.float16)


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
        self.base_origin = dict(getattr(base, "origin", {}))  # for the header of the weights
        self.register_buffer("text", base.encode_prompts(list(prompts)), persistent=False)
        self.alpha, self.prediction = base.alphas[timestep].item(), base.prediction
        self.timestep, self.guidance, self.posterior = timestep, guidance, posterior
        factor = amplification(self.alpha, self.prediction)
        log.info("An error of the UNet's prediction is %.3g times as large in the latent (t = %d).", factor, timestep)

    def _trained_in_float32(self) -> None:
        for parameter in self.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()

    @property
    def vae_dtype(self) -> torch.dtype:
        return next(self.vae.decoder.parameters()).dtype  # never adapted, never trained

    @property
    def unet_dtype(self) -> torch.dtype:
        return self.unet.time_embedding.linear_1.weight.dtype

    def _autocast(self) -> AbstractContextManager:
        """For the VAE; inside, the UNet has `_unet_autocast`."""
        # Only where trained float32 weights lie on a half-precision network; merged weights are all of one precision.
        if self.vae_dtype not in _HALF or all(p.dtype == self.vae_dtype for p in self.vae.parameters()):
            return nullcontext()
        return torch.autocast(self.text.device.type, self.vae_dtype)

    def _unet_autocast(self) -> AbstractContextManager:
        # A float32 UNet is never rounded, also where the training's mixed_precision is bf16: see `amplification`.
        kind = self.text.device.type
        if not torch.amp.is_autocast_available(kind):  # meta
            return nullcontext()
        mixed = self.unet_dtype in _HALF and self.unet.conv_in.weight.dtype != self.unet_dtype
        return torch.autocast(kind, self.unet_dtype if mixed else None, enabled=mixed)

    def checkpoint_gradients(self) -> Self:
        """Recompute activations in the backward pass in place of keeping them: less memory, more time."""
        self.vae.enable_gradient_checkpointing()
        self.unet.enable_gradient_checkpointing()
        return self

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        *,
        source: str | Path | None = None,
        dtype: str | torch.dtype | None = None,
        unet_dtype: str | torch.dtype | None = None,
    ) -> Self:
        """Rebuild from a file of `save` or of a converter.

        Args:
            source: of the base; None is the header's. A base of other content than the header's gives a warning.
            dtype, unet_dtype: of the base, see `load_base`; None is as it was trained, or float32 where an older
                header does not say. The trained parts are float32.

        Raises:
            ValueError: the weights do not fit the base.
        """
        tensors, config, _ = model_files.load_weights(path, kind=cls.kind)
        where, trained = str(source) if source else config["source"], config.pop("base", {})
        with model_files.rebuilding(path):
            if dtype is None:
                dtype, unet_dtype = trained.get("dtype", torch.float32), unet_dtype or trained.get("unet_dtype")
            if "prompts" in config:
                config["prompts"] = tuple(config["prompts"])
            base = load_base(where if source else shipped(where) or where, dtype=dtype, unet_dtype=unet_dtype)
            restorer = cls._built(base, config | {"source": where})
            model_files.fit(restorer, tensors, expected=set(restorer._stored()), source=path)
            found = {k: base.origin.get(k) for k in trained}
        if other := [f"{k}={found[k]} (trained: {v})" for k, v in trained.items() if found[k] != v]:
            log.warning("%s was trained on another base than %s: %s.", path, where, ", ".join(other))
        return restorer.eval().requires_grad_(False)

    @classmethod
    def _built(cls, base: DiffusionBase, config: dict[str, Any]) -> Self:
        """A restorer with the settings of a file's header."""
        raise NotImplementedError

    def _stored(self) -> Mapping[str, Tensor]:
        """What `save` writes, by name."""
        raise NotImplementedError
