"""What the restorers share: their trained weights lie in one file, apart from the base they were trained on."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from face2scene.common import model_files
from face2scene.common.types import Box, Progress
from face2scene.models.restorer.base_model import DiffusionBase, load_base
from face2scene.models.restorer.tiling import TilePlan

WEIGHTS_FILE = "restorer.safetensors"  # in a folder of trained weights


class RestorerBase(nn.Module):
    """VAE and UNet of a base, parts of both trained; each restorer says what its file holds."""

    kind: ClassVar[str]  # of its file, see `checkpoints`
    config: dict[str, Any]  # the arguments, the base apart
    multiple: int  # sides of tiles are multiples of it
    guidance: float
    text: Tensor  # (2, 77, D) both prompts
    vae: AutoencoderKL
    unet: UNet2DConditionModel

    def checkpoint_gradients(self) -> Self:
        """Keep few activations and compute the others again in the backward pass: less memory, more time."""
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
        """Restore an image by a plan at several guidances; one tile is `restore`.

        The image, the latents and the result stay where `image` is; only tiles and samples go to `device`.

        Args:
            image: (1, 3, H, W) in [0, 1].
            tokens_at: (1, N, D) for a tile's box, in pixels of the image.
            guidances: see `restore`.
            seed: of the sample from the VAE's posterior, where one is taken.
            offload: keep a network on `device` only while it works, and else on the CPU.
            progress: is told the stage, the tiles done and the tiles in all.

        Yields:
            (1, 3, H, W) in [0, 1] for each of `guidances`.
        """
        raise NotImplementedError

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
        tensors, config, _ = model_files.load_weights(path, kind=cls.kind)
        where = str(source) if source else config["source"]
        if "prompts" in config:
            config["prompts"] = tuple(config["prompts"])
        restorer = cls._built(load_base(where, dtype=dtype), config | {"source": where})
        model_files.fit(restorer, tensors, expected=set(restorer._stored()), source=path)
        return restorer.eval().requires_grad_(False)

    @classmethod
    def _built(cls, base: DiffusionBase, config: dict[str, Any]) -> Self:
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
