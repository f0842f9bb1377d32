"""Degradation as a value: a Recipe is an ordered tuple of operators with every number in it.

Drawn once (space.py), stored as JSON, applied to any number of images of any size.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from face2scene.common.reproducibility import seed_from
from face2scene.degradation.functional.convolve import convolve_and_resize
from face2scene.degradation.operators import OPERATORS, STORED_NAMES
from face2scene.degradation.operators.basic import Blur, Operator, Resize, RestoreSize, Size
from face2scene.degradation.operators.validation import Number
from face2scene.image_io.arrays import to_array, to_bytes, to_tensor

SCHEMA = 1


@dataclass(frozen=True)
class Recipe:
    """An ordered degradation. Equality, hash and `key` are those of the operators; the noise seed does not count.

    Operator number n draws its noise from a generator seeded by (noise_seed, n) alone: the same recipe on the
    same image gives the same bytes in any process, order, batch or number of threads of one platform.
    """

    operators: tuple[Operator, ...] = ()
    noise_seed: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "operators", tuple(self.operators))
        Number(0, 2**63 - 1, whole=True)(self, "noise_seed")
        for operator in self.operators:
            if type(operator) not in STORED_NAMES:
                raise TypeError(f"Recipe.operators holds {operator!r}: it must be one of {', '.join(OPERATORS)}.")

    @property
    def key(self) -> str:
        """Sixteen hex digits that identify the operators, whatever the noise seed."""
        text = json.dumps([_operator_to_dict(operator) for operator in self.operators], sort_keys=True)
        return hashlib.sha256(f"{SCHEMA}:{text}".encode()).hexdigest()[:16]

    def with_noise_seed(self, noise_seed: int) -> "Recipe":
        """The same operators with another noise realisation."""
        return replace(self, noise_seed=noise_seed)

    def apply(self, image: Tensor, *, keep_size: bool = True, gradients: bool = False) -> Tensor:
        """Degrade an image (3, H, W), float32 in [0, 1], on its device; the input is not modified.

        On the CPU one thread computes, whatever `torch.set_num_threads` says, since the last digits depend on the
        number of threads; use several cores through a loader's workers. On a GPU everything but the real JPEG codec
        stays on it, and random bits are those of the CPU. One operator differs by at most 1e-4 there on images up to
        2000 pixels a side (resizes; the others 1e-5). Over a whole recipe that can change an 8-bit or a JPEG rounding,
        so the two agree in the mean (1e-3), not pixel by pixel.

        Args:
            keep_size: False leaves out the closing `RestoreSize`: the small input of a super-resolution method.
            gradients: let gradients flow to `image`; computed another way, equal to within 1e-4 an operator.

        Raises:
            ValueError: not such an image; too small for a kernel at some stage; the recipe ends at another size;
                gradients through a real codec.
        """
        _check_image(image)
        with torch.set_grad_enabled(gradients), _one_thread():
            return self._degrade(image, keep_size)

    def apply_array(self, image: np.ndarray, *, keep_size: bool = True) -> np.ndarray:
        """`apply` for a NumPy image (H, W, 3), uint8 or float in [0, 1].

        Returns:
            uint8 (rounded to nearest) for uint8, else float32: the values of `apply` on the same image.
        """
        if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3:
            got = image.shape if isinstance(image, np.ndarray) else type(image).__name__
            raise ValueError(f"An image is an array (H, W, 3), got {got}: repeat a grey one to three channels.")
        if image.dtype != np.uint8 and image.dtype.kind != "f":
            raise ValueError(f"An image is uint8, or float in [0, 1], got {image.dtype}: divide by its full scale.")
        degraded = self.apply(to_tensor(image), keep_size=keep_size)
        return to_bytes(degraded) if image.dtype == np.uint8 else to_array(degraded)

    def _degrade(self, image: Tensor, keep_size: bool) -> Tensor:
        size = (int(image.shape[-2]), int(image.shape[-1]))
        operators = self.operators
        if not keep_size and operators and isinstance(operators[-1], RestoreSize):
            operators = operators[:-1]
        degraded, position = image, 0
        while position < len(operators):
            fused = _blur_and_resize(degraded, operators[position : position + 2], size)
            if fused is None:
                degraded = operators[position](degraded, _generator(self.noise_seed, position), size)
                position += 1
            else:
                degraded = fused
                position += 2
        if keep_size and degraded.shape != image.shape:
            raise ValueError(
                f"The recipe makes {tuple(degraded.shape[-2:])} pixels of {size}: "
                "end it with RestoreSize, or apply it with keep_size=False."
            )
        return degraded.clone() if degraded is image else degraded

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        operators = [_operator_to_dict(operator) for operator in self.operators]
        return {"schema": SCHEMA, "operators": operators, "noise_seed": self.noise_seed}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Recipe":
        """The inverse of `to_dict`.

        Raises:
            ValueError: another schema version, an unknown operator or field, a value outside its range.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"A recipe is a mapping with schema, operators and noise_seed, not {values!r}.")
        if "schema" not in values or values["schema"] != SCHEMA:
            raise ValueError(
                f"The recipe has schema version {values.get('schema')!r}: this version of the code reads {SCHEMA} only."
            )
        if unknown := sorted(set(values) - {"schema", "operators", "noise_seed"}):
            raise ValueError(f"A recipe has no {unknown}: its fields are schema, operators and noise_seed.")
        if not isinstance(values.get("operators"), list | tuple):
            raise ValueError(f"Recipe.operators is {values.get('operators')!r}: it must be a list of operators.")
        return cls(tuple(_operator_from_dict(o) for o in values["operators"]), values.get("noise_seed", 0))

    def to_json(self) -> str:
        """One line of JSON; every number comes back bit for bit."""
        return json.dumps(self.to_dict(), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Recipe":
        """The inverse of `to_json`.

        Raises:
            ValueError: truncated text or no JSON; and the errors of `from_dict`.
        """
        try:
            values = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"The recipe is not whole JSON, it may have been cut ({error}).") from error
        return cls.from_dict(values)


def apply_batch(
    images: Tensor, recipes: Sequence[Recipe], *, keep_size: bool = True, gradients: bool = False
) -> Tensor:
    """Degrade a batch (B, 3, H, W), on its device, each image by its own recipe.

    Image number n is `recipes[n].apply(images[n])`, byte for byte, whatever else is in the batch. Options and
    errors are those of `apply`.

    Raises:
        ValueError: not one recipe per image; results of different sizes (only where `keep_size` is False).
    """
    if not isinstance(images, Tensor) or images.dim() != 4 or len(images) != len(recipes):
        got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"A batch is a tensor (B, 3, H, W) with B recipes, got {got} and {len(recipes)} recipes.")
    options = {"keep_size": keep_size, "gradients": gradients}
    degraded = [recipe.apply(image, **options) for recipe, image in zip(recipes, images, strict=True)]
    sizes = dict.fromkeys(str(tuple(image.shape[-2:])) for image in degraded)
    if len(sizes) > 1:
        raise ValueError(f"The recipes of a batch make images of {' and '.join(sizes)} pixels: apply them one by one.")
    return torch.stack(degraded) if degraded else images.clone()


def _operator_to_dict(operator: Operator) -> dict[str, Any]:
    values = {f.name: getattr(operator, f.name) for f in fields(operator)}
    return {"kind": STORED_NAMES[type(operator)]} | {name: v for name, v in values.items() if v is not None}


def _operator_from_dict(values: Any) -> Operator:
    kind = values.get("kind") if isinstance(values, Mapping) else None
    if kind not in OPERATORS:
        raise ValueError(f"Unknown operator {kind!r} in {values!r}: choose from {', '.join(OPERATORS)}.")
    given = {name: value for name, value in values.items() if name != "kind"}
    known = {f.name for f in fields(OPERATORS[kind])}
    needed = {f.name for f in fields(OPERATORS[kind]) if f.default is MISSING}
    if given.keys() - known or needed - given.keys():
        raise ValueError(
            f"{kind} does not fit: unknown {sorted(given.keys() - known)}, "
            f"missing {sorted(needed - given.keys())}; its fields are {sorted(known)}."
        )
    return OPERATORS[kind](**given)


def _blur_and_resize(image: Tensor, pair: tuple[Operator, ...], size: Size) -> Tensor | None:
    """A blur and the resize after it in one, where that is faster: two passes over the image less; else None."""
    match pair:
        case (Blur() as blur, Resize() as step):
            target, steps = step.target(image, size), step.steps(image, size)
            return convolve_and_resize(image, blur, target, step.mode, step.antialias, steps)
    return None


def _generator(noise_seed: int, position: int) -> torch.Generator:
    # Part of the recipe's format: another formula would change every stored recipe's grain.
    return torch.Generator().manual_seed(seed_from(noise_seed, position))


@contextmanager
def _one_thread() -> Iterator[None]:
    # Half a microsecond.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check_image(image: Tensor) -> None:
    if not isinstance(image, Tensor) or image.dim() != 3 or image.shape[0] != 3:
        got = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
        raise ValueError(f"An image is a tensor (3, H, W), got {got}: repeat a grey one to three channels.")
    if image.dtype != torch.float32:
        raise ValueError(f"An image is float32 in [0, 1], got {image.dtype}: see face2scene.image_io.arrays.to_tensor.")
    if image.numel() == 0:
        raise ValueError(f"An image has at least one pixel, got {tuple(image.shape)}.")
    low, high = (float(v) for v in torch.aminmax(image.detach()))
    if not (low >= 0 and high <= 1):  # false for NaN too
        raise ValueError(f"An image's values lie in [0, 1], got {low:g} to {high:g}: scale or clean it first.")
