"""What the restorers share: their trained weights lie in one file, apart from the base they were trained on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn

WEIGHTS_FILE = "restorer.safetensors"  # in a folder of trained weights


class TrainedRestorer(nn.Module):
    """VAE and UNet of a base, parts of both trained; each restorer says what its file holds."""

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
        """Rebuild from a file of `save`: the base from `source` or where the header says, then what was trained.

        Args:
            dtype: of the base; what was trained is float32.
        """
        raise NotImplementedError

    def save_pretrained(self, folder: str | Path, **about: Any) -> None:
        """`save` into a folder, under the name that `from_pretrained`, and the pipeline's, look for."""
        self.save(Path(folder) / WEIGHTS_FILE, about=about)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **base: Any) -> Self:
        """`from_file` of a folder that `save_pretrained` wrote."""
        return cls.from_file(Path(folder) / WEIGHTS_FILE, **base)
