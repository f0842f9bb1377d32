"""Modules of which one safetensors file holds all weights and the arguments that rebuild them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import nn
from typing_extensions import Self

from face2scene.common.model_files import fit, load_weights, rebuilding, save_weights


class SavedModule(nn.Module):
    """A module with `save` and `from_file`; a subclass sets `kind` and records its arguments as `config`."""

    kind: ClassVar[str]  # of its file, see `model_files.save_weights`
    config: dict[str, Any]  # the constructor's arguments

    def save(self, path: str | Path, *, about: Mapping[str, Any] | None = None) -> None:
        """Write all weights and buffers, with a header that rebuilds the module."""
        save_weights(path, self.state_dict(), kind=self.kind, config=self.config, about=about)

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """The module of a file of `save`, frozen and in evaluation mode.

        Raises:
            FileNotFoundError, ValueError: no such file; another kind, or names or shapes that differ.
        """
        tensors, config, _ = load_weights(path, kind=cls.kind)
        with rebuilding(path):
            module = cls(**config)
            fit(module, tensors, expected=set(module.state_dict()), source=path)
        return module.eval().requires_grad_(False)
