"""ICC colour profiles: to sRGB and back. Pillow's littlecms converts 8 bits a channel only; imagecodecs' more."""

import io
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from face2scene.image_io import deep

_STEPS = np.linspace(0, 255, 9).round().astype(np.uint8)
_PROBE = np.stack(np.meshgrid(_STEPS, _STEPS, _STEPS), -1).reshape(27, 27, 3)


def quantize(image: np.ndarray, bits: int) -> np.ndarray:
    """[0, 1] to whole levels, rounded to nearest: uint8 or uint16."""
    top = 2**bits - 1
    return (image.clip(0, 1) * top).round().astype(np.uint8 if bits == 8 else np.uint16)


def srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def profile_of(icc: bytes) -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(io.BytesIO(icc))


def colour_space(icc: bytes) -> str:
    return profile_of(icc).profile.xcolor_space.strip()


def to_srgb(colour: np.ndarray, profile: bytes, bits: int, notes: list[str]) -> tuple[np.ndarray, int]:
    if bits == 16:
        try:
            return deep.convert(colour, profile, srgb().tobytes()), 16
        except ModuleNotFoundError as error:
            notes.append(f"16 bits with a colour profile were converted at 8 bits: {error}.")
    return convert(quantize(colour, 8), profile_of(profile), srgb(), "RGB").astype(np.float32) / 255, 8


def other_profile(icc: bytes | None, grey: bool, notes: list[str]) -> bytes | None:
    if not icc:
        return None
    try:
        if colour_space(icc) == "GRAY" and not grey:
            raise ImageCms.PyCMSError("a grey profile of a colour image")
        probe = _PROBE[..., :1] if colour_space(icc) == "GRAY" else _PROBE
        converted = convert(probe, profile_of(icc), srgb(), "RGB")
    except (ImageCms.PyCMSError, OSError) as error:  # treated like a missing one, as browsers do
        notes.append(f"The colour profile cannot be used ({error}): the colours were read as sRGB.")
        return None
    # What a profile does decides, not its name: many that mean sRGB have names of their own.
    return None if np.abs(converted.astype(int) - probe).max() <= 2 else icc


def convert(levels: np.ndarray, source: Any, target: Any, mode: str) -> np.ndarray:
    """Convert uint8 (H, W, 1 or 3) to (H, W, 3), or (H, W) for the mode `L`."""
    if levels.shape[2] == 1 and source.profile.xcolor_space.strip() != "GRAY":
        levels = np.repeat(levels, 3, axis=2)
    image = Image.fromarray(levels.squeeze(2) if levels.shape[2] == 1 else levels)
    return np.asarray(ImageCms.profileToProfile(image, source, target, outputMode=mode))
