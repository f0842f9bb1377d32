"""What the restorers share: their trained weights lie in one file, apart from the base they were trained on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from face2scene import checkpoints
from face2scene.restorer.backbone import Base, load_base

WEIGHTS_FILE = "restorer.safetensors"  # in a folder of trained weights


class TrainedRestorer(nn.Module):
    """VAE and UNet of a base, parts of both trained; each restorer says what its file holds."""

    kind: ClassVar[str]  # of its file, see `checkpoints`
    config: dict[str, Any]  # the arguments, the base apart
    vae: AutoencoderKL
    unet: UNet2DConditionModel

    def checkpoint_gradients(self) -> Self:
        """Keep few activations and compute the others again in the backward pass: less memory, more time."""
        self.vae.enable_gradient_checkpointing()
        self.unet.enable_gradient_checkpointing()
        return self

    def save(self, path: str | Path, *, about: Mapping[str, Any], dtype: torch.dtype | None = None) -> None:
        """Write what was trained into one safetensors file whose header rebuilds the restorer."""
        raise NotImplementedError

    @classmethod
    def from_file(
        cls, path: str | Path, *, source: str | Path | None = None, dtype: str | torch.dtype = torch.float32
    ) -> Self:
        """Rebuild from a file of `save`, or of a converter: the base from `source` or where the header says.

        Args:
            dtype: of the base; what was trained is float32.
        """
        tensors, config, _ = checkpoints.load_weights(path, kind=cls.kind)
        where = str(source) if source else config["source"]
        if "prompts" in config:
            config["prompts"] = tuple(config["prompts"])
        restorer = cls._built(load_base(where, dtype=dtype), config | {"source": where})
        checkpoints.fit(restorer, tensors, expected=set(restorer._stored()), source=path)
        return restorer.eval().requires_grad_(False)

    @classmethod
    def _built(cls, base: Base, config: dict[str, Any]) -> Self:
        """A restorer of the settings in a file's header."""
        raise NotImplementedError

    def _stored(self) -> Mapping[str, Tensor]:
        """What `save` writes, by name."""
        raise NotImplementedError

    def save_pretrained(self, folder: str | Path, **about: Any) -> None:
        """`save` into a folder, under the name that `from_pretrained`, and the pipeline's, look for."""
        self.save(Path(folder) / WEIGHTS_FILE, about=about)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **base: Any) -> Self:
        """`from_file` of a folder that `save_pretrained` wrote."""
        return cls.from_file(Path(folder) / WEIGHTS_FILE, **base)
